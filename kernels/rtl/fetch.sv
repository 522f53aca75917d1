// From a step to the operands of the array: five cycles.
//
// A step names a tap; output position i reads input position i + offset, so PIXELS lanes read PIXELS positions in a row
// whatever the kernel, and what a lane reads outside the image is replaced by `pad`.  This is all there is of im2col.
module fetch #(
    parameter int PIXELS = 12,
    parameter int BANKS  = 16,
    parameter int ROWS   = 1024,
    parameter int TAPS   = 1024,
    parameter int WORDS  = 9216
) (
    input logic clock,

    input isa::step_t step,
    input isa::conv_t conv,

    // What is loaded.
    input logic                        tap_write,
    input logic [    $clog2(TAPS)-1:0] tap_entry,
    input logic                        weight_write,
    input logic [ $clog2(WORDS)+2-1:0] weight_slice,
    input logic [                63:0] load_data,

    // What is written.
    input logic [                7:0] write,        // of each byte
    input logic [$clog2(BANKS)-1:0] write_bank,
    input logic [ $clog2(ROWS)-1:0] write_row,
    input logic [             63:0] write_data,

    output logic [PIXELS*64-1:0] lanes,    // as read, 4 cycles after the step
    output logic [PIXELS*32-1:0] lower,    // 5 cycles after the step
    output logic [PIXELS*32-1:0] upper,
    output logic [   PIXELS-1:0] present,  // what a lane reads is no padding
    output logic [        255:0] weights
);
  localparam int BANK_BITS = $clog2(BANKS);
  localparam int ROW_BITS = $clog2(ROWS);
  localparam int TAP_BITS = $clog2(TAPS);
  localparam int WORD_BITS = $clog2(WORDS);

  // 1: the tap.
  logic [63:0] tap_1;
  isa::step_t step_1;
  ram #(
      .WIDTH(64),
      .ROWS (TAPS)
  ) tap_memory (
      .clock(clock), .write(tap_write), .write_row(tap_entry), .write_data(load_data), .read_row(step.tap[TAP_BITS-1:0]),
      .read_data(tap_1)
  );

  // Row and column of each lane in the tile.  Sides are 255 at most; what lies beyond the last row is never written.
  logic [7:0] y[0:PIXELS-1], x[0:PIXELS-1], start_y[0:PIXELS-1], start_x[0:PIXELS-1];
  logic [3:0] narrow;
  assign narrow = conv.width > 16'(PIXELS) ? 4'(PIXELS) : conv.width[3:0];
  for (genvar l = 0; l < PIXELS; l++) begin : g_lane
    logic [3:0] rows;
    always_comb begin
      rows = 0;
      for (int k = 1; k < PIXELS; k++) if (8'(k) * 8'(narrow) <= 8'(l)) rows = rows + 1;
    end
    logic [8:0] next_x;
    assign next_x = 9'(x[l]) + 9'(conv.tile_columns);
    always_ff @(posedge clock) begin
      start_y[l] <= 8'(rows);
      start_x[l] <= 8'(l) - 8'(rows) * 8'(narrow);
      if (step.valid && step.first) begin
        if (step.tile_first) begin
          y[l] <= start_y[l];
          x[l] <= start_x[l];
        end else if (16'(next_x) >= conv.width) begin
          y[l] <= y[l] + conv.tile_rows + 8'd1;
          x[l] <= 8'(next_x - conv.width[8:0]);
        end else begin
          y[l] <= y[l] + conv.tile_rows;
          x[l] <= next_x[7:0];
        end
      end
    end
  end

  // 2: where that is, and for which lanes it is inside.
  logic [15:0] position;
  assign position = step_1.base + (step_1.plain ? 16'd0 : tap_1[15:0]);
  logic [BANK_BITS-1:0] rotation_2;
  logic [ROW_BITS-1:0] row_2;
  logic [PIXELS-1:0] inside_2, inside_3, inside_4;
  isa::step_t step_2, step_3, step_4;

  always_ff @(posedge clock) begin
    {step_1, step_2, step_3, step_4} <= {step, step_1, step_2, step_3};

    rotation_2 <= position[BANK_BITS-1:0];
    row_2 <= step_1.row[ROW_BITS-1:0] + ROW_BITS'($signed(position) >>> BANK_BITS);
    for (int l = 0; l < PIXELS; l++)
      inside_2[l] <= !step_1.plain && y[l] >= tap_1[23:16] && y[l] <= tap_1[31:24] && x[l] >= tap_1[39:32] &&
                     x[l] <= tap_1[47:40];
    inside_3 <= inside_2;
    inside_4 <= inside_3;
  end

  // 3, 4: the memories.
  activations #(
      .PIXELS(PIXELS),
      .BANKS (BANKS),
      .ROWS  (ROWS)
  ) memory (
      .clock(clock), .write(write), .write_bank(write_bank), .write_row(write_row), .write_data(write_data),
      .row(row_2), .rotation(rotation_2), .lanes(lanes)
  );

  logic [255:0] weights_3, weights_4;
  for (genvar s = 0; s < 4; s++) begin : g_slice
    ram #(
        .WIDTH(64),
        .ROWS (WORDS)
    ) slice (
        .clock(clock), .write(weight_write && weight_slice[1:0] == 2'(s)), .write_row(weight_slice[WORD_BITS+1:2]),
        .write_data(load_data), .read_row(step_2.weight[WORD_BITS-1:0]), .read_data(weights_3[s*64+:64])
    );
  end

  // 5: the operands.
  logic [127:0] nibbles;
  assign nibbles = step_4.upper_nibbles ? weights_4[255:128] : weights_4[127:0];
  always_ff @(posedge clock) begin
    weights_4 <= weights_3;
    weights   <= weights_4;
    if (step_4.nibbles) for (int i = 0; i < 32; i++) weights[i*8+:8] <= {{4{nibbles[i*4+3]}}, nibbles[i*4+:4]};
    present <= inside_4;
    for (int l = 0; l < PIXELS; l++) begin
      if (!inside_4[l]) begin
        lower[l*32+:32] <= {4{conv.pad}};
        upper[l*32+:32] <= {4{conv.pad}};
      end else begin
        lower[l*32+:32] <= !conv.diagonal && step_4.half ? lanes[l*64+32+:32] : lanes[l*64+:32];
        upper[l*32+:32] <= conv.diagonal || step_4.half ? lanes[l*64+32+:32] : lanes[l*64+:32];
      end
    end
  end
endmodule
