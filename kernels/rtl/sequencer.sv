// Fetches a program, decodes its instructions and issues the steps of its layers, one in each cycle.
//
// deploy/fpga/isa.py says what the fields mean and where they lie.
module sequencer #(
    parameter int PIXELS   = 12,
    parameter int ROW_BITS = 10,
    parameter int TAP_BITS = 10,
    parameter int WORD_BITS = 14,
    parameter int PROGRAM_WORDS = 1024
) (
    input logic clock,
    input logic reset,

    input  logic        start,
    input  logic        abort,
    input  logic [31:0] program_address,
    input  logic [23:0] program_words,
    input  logic [31:0] model_base,
    input  logic [31:0] input_base,
    input  logic [31:0] output_base,
    output logic        busy,
    output logic        done,        // for one cycle
    output logic        unknown,     // it met an operation that does not exist

    // Loads.
    output logic        load_push,
    input  logic        load_full,
    input  logic        load_busy,
    input  logic        load_ended,
    output logic [ 2:0] load_memory,
    output logic [31:0] load_address,
    output logic [23:0] load_beats,
    output logic [15:0] load_to,
    output logic [15:0] load_rows,
    output logic [15:0] load_positions,
    input  logic        program_write,
    input  logic [15:0] program_entry,
    input  logic [63:0] program_data,

    // Stores take the same fields.
    output logic store_start,
    input  logic store_busy,

    // A step; valid in the same cycle.
    output logic                 step,
    output logic                 parameters,     // the words of parameters, not of weights
    output logic [          1:0] parameter_index,// which of them
    output logic                 first,          // of a tile
    output logic                 last,
    output logic                 tile_first,     // of a channel tile's positions
    output logic                 channel_first,  // in the first channel tile
    output logic                 plain,
    output logic                 half,
    output logic [ TAP_BITS-1:0] tap,
    output logic [ ROW_BITS-1:0] row,
    output logic [         15:0] base,
    output logic [WORD_BITS-1:0] weight,
    input  logic                 tile_done,

    // Fields of the layer that others use.
    output logic               once,
    output logic               diagonal,
    output logic               maximum,
    output logic               add,
    output logic               split,
    output logic        [15:0] width,
    output logic        [ 7:0] tile_rows,
    output logic        [ 7:0] tile_columns,
    output logic        [15:0] out_row,
    output logic        [15:0] out_rows,
    output logic        [15:0] out_pitch,
    output logic        [15:0] out_plane,
    output logic        [15:0] out_height,
    output logic        [15:0] out_width,
    output logic signed [ 7:0] pad,
    output logic signed [ 7:0] zero_point,
    output logic signed [ 7:0] least,
    output logic signed [ 7:0] most,
    output logic               sum_set,
    output logic        [ 4:0] sum_shift,
    output logic signed [ 7:0] sum_zero_point,
    output logic signed [ 7:0] sum_least,
    output logic signed [ 7:0] sum_most
);
  localparam int PROGRAM_BITS = $clog2(PROGRAM_WORDS);
  localparam logic [1:0] PARAMETERS = 2'd3;  // words of parameters

  typedef enum logic [3:0] {
    IDLE,
    FETCH,
    FETCHING,
    READ,
    DISPATCH,
    PARAMETER,
    STEP,
    RESIDUAL,
    FLUSH,
    STORE,
    DRAIN
  } state_t;
  state_t state;

  // The instruction.
  logic [PROGRAM_BITS-1:0] at;
  logic [3:0] reading;
  logic [63:0] word[0:7];
  logic [63:0] read_word;
  ram #(
      .WIDTH(64),
      .ROWS (PROGRAM_WORDS)
  ) program_memory (
      .clock(clock), .write(program_write), .write_row(program_entry[PROGRAM_BITS-1:0]), .write_data(program_data),
      .read_row(at), .read_data(read_word)
  );

  logic [7:0] op;
  logic [15:0] wait_loads, channel_tiles, position_tiles, in_row, in_rows, first_tap, taps, depth_steps, weights;
  logic [15:0] residual_row, residual_rows;
  logic [31:0] origin;
  assign op = word[0][7:0];
  assign wait_loads = word[0][23:8];
  assign {split, add, maximum, diagonal, once} = word[0][28:24];
  assign channel_tiles = word[0][47:32];
  assign position_tiles = word[0][63:48];
  assign {taps, first_tap, in_rows, in_row} = word[1];
  assign {tile_columns, tile_rows, width, weights, depth_steps} = word[2];
  assign {out_plane, out_pitch, out_rows, out_row} = word[3];
  assign {most, least, zero_point, pad, out_width, out_height} = word[4];
  assign {sum_most, sum_least, sum_zero_point} = word[5][63:40];
  assign sum_shift = word[5][37:33];
  assign sum_set = word[5][32];
  assign residual_rows = word[5][31:16];
  assign residual_row = word[5][15:0];

  assign origin = word[0][27:26] == 2'd0 ? model_base : word[0][27:26] == 2'd1 ? input_base : output_base;
  assign load_memory = state == FETCH ? 3'd4 : {1'b0, word[0][25:24]};
  assign load_address = state == FETCH ? program_address : origin + word[1][31:0];
  assign load_beats = state == FETCH ? program_words : word[1][55:32];
  assign load_to = state == FETCH ? 16'd0 : word[2][15:0];
  assign load_rows = word[2][31:16];
  assign load_positions = word[2][47:32];

  logic [15:0] ended;
  logic ready;
  assign ready = ended >= wait_loads;
  assign load_push = state == FETCH || (state == DISPATCH && ready && op == 8'd1 && !load_full);
  assign store_start = state == DISPATCH && ready && op == 8'd2;
  assign busy = state != IDLE;

  // The loops: channel tiles, position tiles, taps, groups of input channels.
  logic [15:0] channel_tile, position_tile, tap_number, depth_step, outstanding;
  logic [15:0] step_row, channel_row, other_row;
  logic [WORD_BITS-1:0] tile_weights;
  logic [4:0] rest;  // cycles until a tile may end: the one before must have been drained
  logic end_of_taps, ends, held;
  assign end_of_taps = depth_step == depth_steps - 16'd1 && tap_number == taps - 16'd1;
  assign ends = (state == STEP && end_of_taps && !add) || state == RESIDUAL;
  assign held = ends && rest != 0;

  assign parameters = state == PARAMETER;
  assign step = (state == STEP || state == RESIDUAL) && !held;
  assign last = ends && !held;
  assign first = state == STEP && tap_number == 0 && depth_step == 0;
  assign tile_first = position_tile == 0;
  assign channel_first = channel_tile == 0;
  assign plain = state == RESIDUAL;
  assign half = depth_step[0];
  assign tap = TAP_BITS'(first_tap + tap_number);
  assign row = state == RESIDUAL ? other_row[ROW_BITS-1:0] : step_row[ROW_BITS-1:0];

  always_ff @(posedge clock) begin
    done <= 1'b0;
    unknown <= 1'b0;
    if (reset) begin
      state <= IDLE;
      outstanding <= '0;
      ended <= '0;
    end else begin
      if (load_ended) ended <= ended + 16'd1;
      outstanding <= outstanding + 16'(last) - 16'(tile_done);
      if (last) rest <= 5'(PIXELS - 1);
      else if (rest != 0) rest <= rest - 5'd1;

      case (state)
        IDLE:
        if (start) begin
          state <= FETCH;
          ended <= '0;
        end
        FETCH: begin
          state <= FETCHING;
          at <= '0;
        end
        FETCHING:
        if (!load_busy) begin
          state   <= READ;
          reading <= '0;
        end
        READ: begin
          reading <= reading + 4'd1;
          if (reading < 4'd8) at <= at + 1'b1;
          if (reading != 0) word[reading[2:0]-3'd1] <= read_word;
          if (reading == 4'd8) state <= DISPATCH;
        end
        DISPATCH:
        if (ready) begin
          reading <= '0;
          case (op)
            8'd0: state <= DRAIN;
            8'd1: if (!load_full) state <= READ;
            8'd2: state <= STORE;
            8'd3: begin
              state <= PARAMETER;
              parameter_index <= '0;
              weight <= weights[WORD_BITS-1:0];
              {channel_tile, position_tile, tap_number, depth_step, base} <= '0;
              step_row <= in_row;
              channel_row <= in_row;
              other_row <= residual_row;
              rest <= '0;
            end
            default: begin
              unknown <= 1'b1;
              state   <= DRAIN;
            end
          endcase
        end
        PARAMETER: begin
          parameter_index <= parameter_index + 2'd1;
          weight <= weight + 1'b1;
          if (parameter_index == PARAMETERS - 2'd1) begin
            state <= STEP;
            tile_weights <= weight + 1'b1;
          end
        end
        STEP, RESIDUAL:
        if (step) begin
          weight <= weight + 1'b1;
          if (state == STEP) begin
            if (depth_step == depth_steps - 16'd1) begin
              depth_step <= '0;
              tap_number <= tap_number + 16'd1;
              step_row   <= channel_row;
            end else begin
              depth_step <= depth_step + 16'd1;
              if (depth_step[0]) step_row <= step_row + in_rows;
            end
            if (end_of_taps && add) state <= RESIDUAL;
          end
          if (last) begin
            tap_number <= '0;
            depth_step <= '0;
            if (position_tile != position_tiles - 16'd1) begin
              state <= STEP;
              position_tile <= position_tile + 16'd1;
              base <= base + 16'(PIXELS);
              weight <= tile_weights;
            end else begin
              position_tile <= '0;
              base <= '0;
              parameter_index <= '0;
              channel_tile <= channel_tile + 16'd1;
              other_row <= other_row + residual_rows;
              if (diagonal) begin
                step_row <= channel_row + in_rows;
                channel_row <= channel_row + in_rows;
              end
              state <= channel_tile == channel_tiles - 16'd1 ? FLUSH : PARAMETER;
            end
          end
        end
        FLUSH: if (outstanding == 0) state <= READ;
        STORE: if (!store_busy && reading[0]) state <= READ;
        else reading <= 4'd1;
        DRAIN:
        if (!load_busy && !store_busy && outstanding == 0) begin
          done  <= 1'b1;
          state <= IDLE;
        end
        default: state <= IDLE;
      endcase
      if (state == STORE && !store_busy && reading[0]) reading <= '0;

      if (abort && state != IDLE) begin
        state <= DRAIN;
        outstanding <= '0;
      end
    end
  end
endmodule
