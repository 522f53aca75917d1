// The whole accelerator: AXI4-Lite registers, one AXI4 master of 64 bits, an interrupt.  README.md has the picture.
module accelerator #(
    parameter int PIXELS = 12,
    parameter int CHANNELS = 8,
    parameter int BANKS = 16,
    parameter int ROWS = 1024,
    parameter int WORDS = 9216,
    parameter int TAPS = 1024,
    parameter int PROGRAM_WORDS = 1024
) (
    input  logic        clock,
    input  logic        reset_n,
    output logic        irq,

    input  logic [ 6:0] s_axi_awaddr,
    input  logic        s_axi_awvalid,
    output logic        s_axi_awready,
    input  logic [31:0] s_axi_wdata,
    input  logic [ 3:0] s_axi_wstrb,
    input  logic        s_axi_wvalid,
    output logic        s_axi_wready,
    output logic [ 1:0] s_axi_bresp,
    output logic        s_axi_bvalid,
    input  logic        s_axi_bready,
    input  logic [ 6:0] s_axi_araddr,
    input  logic        s_axi_arvalid,
    output logic        s_axi_arready,
    output logic [31:0] s_axi_rdata,
    output logic [ 1:0] s_axi_rresp,
    output logic        s_axi_rvalid,
    input  logic        s_axi_rready,

    output logic [31:0] m_axi_araddr,
    output logic [ 7:0] m_axi_arlen,
    output logic [ 2:0] m_axi_arsize,
    output logic [ 1:0] m_axi_arburst,
    output logic [ 3:0] m_axi_arcache,
    output logic [ 2:0] m_axi_arprot,
    output logic        m_axi_arvalid,
    input  logic        m_axi_arready,
    input  logic [63:0] m_axi_rdata,
    input  logic [ 1:0] m_axi_rresp,
    input  logic        m_axi_rlast,
    input  logic        m_axi_rvalid,
    output logic        m_axi_rready,
    output logic [31:0] m_axi_awaddr,
    output logic [ 7:0] m_axi_awlen,
    output logic [ 2:0] m_axi_awsize,
    output logic [ 1:0] m_axi_awburst,
    output logic [ 3:0] m_axi_awcache,
    output logic [ 2:0] m_axi_awprot,
    output logic        m_axi_awvalid,
    input  logic        m_axi_awready,
    output logic [63:0] m_axi_wdata,
    output logic [ 7:0] m_axi_wstrb,
    output logic        m_axi_wlast,
    output logic        m_axi_wvalid,
    input  logic        m_axi_wready,
    input  logic [ 1:0] m_axi_bresp,
    input  logic        m_axi_bvalid,
    output logic        m_axi_bready
);
  localparam int VERSION = 2;  // isa.VERSION
  localparam int SUM_BITS = 25;
  localparam int BANK_BITS = $clog2(BANKS);
  localparam int ROW_BITS = $clog2(ROWS);
  localparam int TAP_BITS = $clog2(TAPS);
  localparam int WORD_BITS = $clog2(WORDS);

  logic reset;
  always_ff @(posedge clock) reset <= !reset_n;

  assign {m_axi_arsize, m_axi_awsize} = {3'd3, 3'd3};
  assign {m_axi_arburst, m_axi_awburst} = {2'd1, 2'd1};
  assign {m_axi_arcache, m_axi_awcache} = {4'b0011, 4'b0011};
  assign {m_axi_arprot, m_axi_awprot} = 6'd0;
  assign m_axi_wstrb = 8'hff;

  // Control.
  logic start, abort, busy, done, unknown, load_failed, store_failed;
  isa::step_t step;
  logic [31:0] program_address, program_words, model_base, input_base, output_base;
  registers #(
      .IDENTITY({16'hd1a5, 16'(VERSION)}),
      .SHAPE({8'(PIXELS), 8'(CHANNELS), 8'd4, 8'(BANKS)})
  ) control (
      .clock, .reset, .s_axi_awaddr, .s_axi_awvalid, .s_axi_awready, .s_axi_wdata, .s_axi_wstrb, .s_axi_wvalid,
      .s_axi_wready, .s_axi_bresp, .s_axi_bvalid, .s_axi_bready, .s_axi_araddr, .s_axi_arvalid, .s_axi_arready,
      .s_axi_rdata, .s_axi_rresp, .s_axi_rvalid, .s_axi_rready, .start, .abort, .program_address, .program_words,
      .model_base, .input_base, .output_base, .busy, .done, .unknown, .bus_error(load_failed || store_failed), .step(step.valid),
      .beat((m_axi_rvalid && m_axi_rready) || (m_axi_wvalid && m_axi_wready)), .interrupt(irq)
  );

  // Loads and stores.
  isa::move_t move;
  logic load_push, load_full, load_busy, load_ended, store_start, store_busy;
  logic [15:0] load_entry;
  logic weight_write, tap_write, table_write, activation_write, program_write;
  logic [BANK_BITS-1:0] load_bank;
  logic [ROW_BITS-1:0] load_row;
  logic [63:0] load_data;
  read_engine #(
      .BANK_BITS(BANK_BITS),
      .ROW_BITS (ROW_BITS)
  ) loads (
      .clock, .reset, .abort, .push(load_push), .full(load_full), .move, .busy(load_busy), .ended(load_ended),
      .failed(load_failed), .m_axi_araddr, .m_axi_arlen, .m_axi_arvalid, .m_axi_arready, .m_axi_rdata, .m_axi_rresp,
      .m_axi_rlast, .m_axi_rvalid, .m_axi_rready, .weight_write, .tap_write, .table_write, .activation_write,
      .program_write, .entry(load_entry), .bank(load_bank), .row(load_row), .data(load_data)
  );

  logic store_read;
  logic [ROW_BITS-1:0] store_row;
  logic [15:0] store_position;
  logic [PIXELS*64-1:0] lanes;
  write_engine #(
      .ROW_BITS(ROW_BITS)
  ) stores (
      .clock, .reset, .abort, .start(store_start), .move, .busy(store_busy), .failed(store_failed), .read(store_read),
      .read_row(store_row), .read_position(store_position), .read_data(lanes[63:0]), .m_axi_awaddr, .m_axi_awlen,
      .m_axi_awvalid, .m_axi_awready, .m_axi_wdata, .m_axi_wlast, .m_axi_wvalid, .m_axi_wready, .m_axi_bresp,
      .m_axi_bvalid, .m_axi_bready
  );

  // Steps.
  isa::conv_t conv;
  logic tile_done;
  sequencer #(
      .PIXELS(PIXELS),
      .PROGRAM_WORDS(PROGRAM_WORDS)
  ) steps (
      .clock, .reset, .start, .abort, .program_address, .program_words(program_words[23:0]), .model_base, .input_base,
      .output_base, .busy, .done, .unknown, .move, .load_push, .load_full, .load_busy, .load_ended, .program_write,
      .program_entry(load_entry), .program_data(load_data), .store_start, .store_busy, .step, .conv, .tile_done
  );

  // What comes along with a step: [i] is valid i cycles after it.
  logic [11:1] step_at, first_at, last_at, tile_first_at, channel_first_at, plain_at, parameters_at;
  logic [1:0] parameter_at[1:10];
  always_ff @(posedge clock) begin
    if (reset || abort) {step_at, last_at, parameters_at} <= '0;
    else begin
      step_at <= {step_at[10:1], step.valid};
      last_at <= {last_at[10:1], step.last};
      parameters_at <= {parameters_at[10:1], step.parameters};
    end
    first_at <= {first_at[10:1], step.first};
    tile_first_at <= {tile_first_at[10:1], step.tile_first};
    channel_first_at <= {channel_first_at[10:1], step.channel_first};
    plain_at <= {plain_at[10:1], step.plain};
    parameter_at[1] <= step.parameter_word;
    for (int i = 2; i <= 10; i++) parameter_at[i] <= parameter_at[i-1];
  end

  // Operands.  A store reads in the place of a step.
  isa::step_t fetched;
  always_comb begin
    fetched = step;
    if (store_read) begin
      fetched.plain = 1'b1;
      fetched.row = 16'(store_row);
      fetched.base = store_position;
    end
  end

  logic [PIXELS*32-1:0] lower, upper;
  logic [PIXELS-1:0] present;
  logic [255:0] weights;
  logic [7:0] write;
  logic [BANK_BITS-1:0] write_bank;
  logic [ROW_BITS-1:0] write_row;
  logic [63:0] write_data;
  fetch #(
      .PIXELS(PIXELS),
      .BANKS (BANKS),
      .ROWS  (ROWS),
      .TAPS  (TAPS),
      .WORDS (WORDS)
  ) operands (
      .clock, .step(fetched), .conv, .tap_write, .tap_entry(load_entry[TAP_BITS-1:0]), .weight_write,
      .weight_slice(load_entry[WORD_BITS+1:0]), .load_data, .write(activation_write ? 8'hff : write),
      .write_bank(activation_write ? load_bank : write_bank), .write_row(activation_write ? load_row : write_row),
      .write_data(activation_write ? load_data : write_data), .lanes, .lower, .upper, .present, .weights
  );

  logic [PIXELS*CHANNELS*SUM_BITS-1:0] sums;
  array #(
      .PIXELS(PIXELS),
      .CHANNELS(CHANNELS),
      .SUM_BITS(SUM_BITS)
  ) multipliers (
      .clock, .lower, .upper, .weights, .binary(conv.binary), .present, .add(step_at[10]), .restart(first_at[10]),
      .maximum(conv.maximum), .sums
  );

  // What is added to a tile was read in its last step.
  logic [PIXELS*64-1:0] others;
  always_ff @(posedge clock) if (step_at[4] && plain_at[4]) others <= lanes;

  // Parameters keep pace with the steps, so that the tile before is not finished with the wrong ones.
  logic [255:0] late[6:10];
  logic [255:0] multiplier, bias, finals;
  always_ff @(posedge clock) begin
    late[6] <= weights;
    for (int i = 7; i <= 10; i++) late[i] <= late[i-1];
    if (parameters_at[10]) begin
      if (parameter_at[10] == 2'd0) multiplier <= late[10];
      if (parameter_at[10] == 2'd1) bias <= late[10];
      if (parameter_at[10] == 2'd2) finals <= late[10];
    end
  end

  drain #(
      .PIXELS(PIXELS),
      .CHANNELS(CHANNELS),
      .SUM_BITS(SUM_BITS),
      .BANKS(BANKS),
      .ROWS(ROWS)
  ) results (
      .clock, .reset(reset || abort), .take(last_at[11]), .tile_first(tile_first_at[11]),
      .channel_first(channel_first_at[11]), .sums, .others, .multipliers(multiplier), .biases(bias), .finals, .conv,
      .table_write, .table_entry(load_entry[9:0]), .load_data, .write, .write_bank, .write_row, .write_data, .tile_done
  );
endmodule
