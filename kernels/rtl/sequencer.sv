// Fetches a program, decodes its instructions and issues the steps of its layers, one in each cycle.
//
// deploy/fpga/isa.py says what the fields mean and where they lie.
module sequencer #(
    parameter int PIXELS        = 12,
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

    // Loads and stores.
    output isa::move_t  move,
    output logic        load_push,
    input  logic        load_full,
    input  logic        load_busy,
    input  logic        load_ended,
    input  logic        program_write,
    input  logic [15:0] program_entry,
    input  logic [63:0] program_data,
    output logic        store_start,
    input  logic        store_busy,

    output isa::step_t step,      // of this cycle
    output isa::conv_t conv,
    input  logic       tile_done
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
  logic [63:0] word[0:7];  // the last two hold nothing yet
  logic [63:0] read_word;
  ram #(
      .WIDTH(64),
      .ROWS (PROGRAM_WORDS)
  ) program_memory (
      .clock(clock), .write(program_write), .write_row(program_entry[PROGRAM_BITS-1:0]), .write_data(program_data),
      .read_row(at), .read_data(read_word)
  );

  isa::load_t load;
  logic [31:0] origin;
  assign conv = {word[5], word[4], word[3], word[2], word[1], word[0]};
  assign load = {word[2], word[1], word[0]};
  assign origin = load.base == 2'd0 ? model_base : load.base == 2'd1 ? input_base : output_base;

  always_comb begin
    move.memory = {1'b0, load.memory};
    move.address = origin + load.offset;
    move.beats = load.beats;
    move.to = load.to;
    move.rows = load.rows;
    move.positions = load.positions;
    if (state == FETCH) begin
      move.memory = isa::PROGRAM;
      move.address = program_address;
      move.beats = program_words;
      move.to = '0;
    end
  end

  logic [15:0] ended;
  logic ready;
  assign ready = ended >= conv.wait_loads;
  assign load_push = state == FETCH || (state == DISPATCH && ready && conv.op == 8'd1 && !load_full);
  assign store_start = state == DISPATCH && ready && conv.op == 8'd2;
  assign busy = state != IDLE;

  // The loops: channel tiles, position tiles, taps, groups of input channels.
  logic [15:0] channel_tile, position_tile, tap_number, depth_step, outstanding;
  logic [15:0] base, step_row, channel_row, other_row, weight, tile_weights;
  logic [1:0] parameter_index;
  logic upper_nibbles;
  logic [4:0] rest;  // cycles until a tile may end: the one before must have been drained
  logic end_of_taps, ends, held;
  assign end_of_taps = depth_step == conv.depth_steps - 16'd1 && tap_number == conv.taps - 16'd1;
  assign ends = (state == STEP && end_of_taps && !conv.residual) || state == RESIDUAL;
  assign held = ends && rest != 0;

  always_comb begin
    step.valid = (state == STEP || state == RESIDUAL) && !held;
    step.parameters = state == PARAMETER;
    step.parameter_word = parameter_index;
    step.first = state == STEP && tap_number == 0 && depth_step == 0;
    step.last = ends && !held;
    step.tile_first = position_tile == 0;
    step.channel_first = channel_tile == 0;
    step.plain = state == RESIDUAL;
    step.half = depth_step[0];
    step.nibbles = conv.nibbles && state != PARAMETER;
    step.upper_nibbles = upper_nibbles;
    step.tap = conv.first_tap + tap_number;
    step.row = state == RESIDUAL ? other_row : step_row;
    step.base = base;
    step.weight = weight;
  end

  always_ff @(posedge clock) begin
    done <= 1'b0;
    unknown <= 1'b0;
    if (reset) begin
      state <= IDLE;
      outstanding <= '0;
      ended <= '0;
    end else begin
      if (load_ended) ended <= ended + 16'd1;
      outstanding <= outstanding + 16'(step.last) - 16'(tile_done);
      if (step.last) rest <= 5'(PIXELS - 1);
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
          case (conv.op)
            8'd0: state <= DRAIN;
            8'd1: if (!load_full) state <= READ;
            8'd2: state <= STORE;
            8'd3: begin
              state <= PARAMETER;
              parameter_index <= '0;
              weight <= conv.weights;
              {channel_tile, position_tile, tap_number, depth_step, base} <= '0;
              step_row <= conv.in_row;
              channel_row <= conv.in_row;
              other_row <= conv.residual_row;
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
          weight <= weight + 16'd1;
          upper_nibbles <= 1'b0;
          if (parameter_index == PARAMETERS - 2'd1) begin
            state <= STEP;
            tile_weights <= weight + 16'd1;
          end
        end
        STEP, RESIDUAL:
        if (step.valid) begin
          // A tile begins with a word of its own.
          if (!conv.nibbles || upper_nibbles || step.last) weight <= weight + 16'd1;
          upper_nibbles <= conv.nibbles && !upper_nibbles && !step.last;
          if (state == STEP) begin
            if (depth_step == conv.depth_steps - 16'd1) begin
              depth_step <= '0;
              tap_number <= tap_number + 16'd1;
              step_row   <= channel_row;
            end else begin
              depth_step <= depth_step + 16'd1;
              if (depth_step[0]) step_row <= step_row + conv.in_rows;
            end
            if (end_of_taps && conv.residual) state <= RESIDUAL;
          end
          if (step.last) begin
            tap_number <= '0;
            depth_step <= '0;
            if (position_tile != conv.position_tiles - 16'd1) begin
              state <= STEP;
              position_tile <= position_tile + 16'd1;
              base <= base + 16'(PIXELS);
              weight <= tile_weights;
            end else begin
              position_tile <= '0;
              base <= '0;
              parameter_index <= '0;
              channel_tile <= channel_tile + 16'd1;
              other_row <= other_row + conv.residual_rows;
              if (conv.diagonal) begin
                step_row <= channel_row + conv.in_rows;
                channel_row <= channel_row + conv.in_rows;
              end
              state <= channel_tile == conv.channel_tiles - 16'd1 ? FLUSH : PARAMETER;
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
