// From finished sums to the activation memory: one position, all its CHANNELS values, in each cycle.
module drain #(
    parameter int PIXELS   = 12,
    parameter int CHANNELS = 8,
    parameter int SUM_BITS = 25,
    parameter int BANKS    = 16,
    parameter int ROWS     = 1024
) (
    input logic clock,
    input logic reset,

    input logic take,           // the sums of a tile are there
    input logic tile_first,     // its first position is position 0
    input logic channel_first,  // it is of the first channel tile
    input logic [PIXELS*CHANNELS*SUM_BITS-1:0] sums,
    input logic [PIXELS*64-1:0] others,  // what is added to them
    input logic [255:0] multipliers,
    input logic [255:0] biases,
    input logic [63:0] shifts,

    // Of the layer.
    input logic               once,
    input logic               add,
    input logic               split,
    input logic        [15:0] width,
    input logic        [15:0] out_row,
    input logic        [15:0] out_rows,
    input logic        [15:0] out_pitch,
    input logic        [15:0] out_plane,
    input logic        [15:0] out_height,
    input logic        [15:0] out_width,
    input logic signed [ 7:0] zero_point,
    input logic signed [ 7:0] least,
    input logic signed [ 7:0] most,
    input logic               sum_set,
    input logic        [ 4:0] sum_shift,
    input logic signed [ 7:0] sum_zero_point,
    input logic signed [ 7:0] sum_least,
    input logic signed [ 7:0] sum_most,

    input logic        table_write,
    input logic [ 9:0] table_entry,
    input logic [63:0] load_data,

    output logic                     write,
    output logic [$clog2(BANKS)-1:0] write_bank,
    output logic [ $clog2(ROWS)-1:0] write_row,
    output logic [   CHANNELS*8-1:0] write_data,
    output logic                     tile_done
);
  localparam int BANK_BITS = $clog2(BANKS);
  localparam int ROW_BITS = $clog2(ROWS);
  localparam int POSITION_BITS = BANK_BITS + ROW_BITS;
  localparam int LINE = CHANNELS * SUM_BITS;
  localparam int OWN = 7;  // cycles of requantize
  localparam int ALL = 13;  // and of residual

  logic [PIXELS*LINE-1:0] waiting;
  logic [PIXELS*64-1:0] waiting_others;
  logic [255:0] multiplier, bias;
  logic [63:0] shift;
  logic [4:0] left;
  logic [15:0] y, x, row_start, group_row, plane_2;
  assign plane_2 = out_plane << 1;

  always_ff @(posedge clock) begin
    if (reset) left <= '0;
    else if (take) left <= 5'(PIXELS);
    else if (left != 0) left <= left - 5'd1;

    if (take) begin
      waiting <= sums;
      waiting_others <= others;
      multiplier <= multipliers;
      bias <= biases;
      shift <= shifts;
    end else begin
      waiting <= waiting >> LINE;
      waiting_others <= waiting_others >> 64;
    end

    if (take && tile_first) begin
      y <= '0;
      x <= '0;
      row_start <= '0;
      group_row <= channel_first ? out_row : group_row + out_rows;
    end else if (left != 0) begin
      if (x == width - 16'd1) begin
        x <= '0;
        y <= y + 16'd1;
        row_start <= row_start + (!split ? out_pitch : y[0] ? out_pitch - plane_2 : plane_2);
      end else x <= x + 16'd1;
    end
  end

  // Where it goes, beside what becomes of the values.
  logic [POSITION_BITS-1:0] position;
  assign position = POSITION_BITS'(row_start + (split ? (x >> 1) + (x[0] ? out_plane : 16'd0) : x));
  logic [BANK_BITS-1:0] bank[1:ALL];
  logic [ROW_BITS-1:0] row[1:ALL];
  logic [ALL:1] valid, final_one;
  logic [63:0] other[1:OWN];
  always_ff @(posedge clock) begin
    bank[1] <= position[BANK_BITS-1:0];
    row[1] <= group_row[ROW_BITS-1:0] + position[POSITION_BITS-1:BANK_BITS];
    other[1] <= waiting_others[63:0];
    for (int i = 2; i <= ALL; i++) begin
      bank[i] <= bank[i-1];
      row[i]  <= row[i-1];
    end
    for (int i = 2; i <= OWN; i++) other[i] <= other[i-1];
    if (reset) begin
      valid <= '0;
      final_one <= '0;
    end else begin
      // What has left after requantize must not turn up again after residual, when `add` is the next layer's.
      valid <= {valid[ALL-1:OWN+1], valid[OWN] && add, valid[OWN-1:1], left != 0 && y < out_height && x < out_width};
      final_one <= {final_one[ALL-1:OWN+1], final_one[OWN] && add, final_one[OWN-1:1], left == 5'd1};
    end
  end

  logic [CHANNELS*8-1:0] own, total;
  for (genvar c = 0; c < CHANNELS; c++) begin : g_lane
    requantize #(
        .SUM_BITS(SUM_BITS)
    ) lane (
        .clock(clock), .sum(waiting[c*SUM_BITS+:SUM_BITS]), .bias(bias[c*32+:32]), .multiplier(multiplier[c*32+:32]),
        .shift(shift[c*8+:6]), .once(once), .zero_point(zero_point), .least(least), .most(most),
        .result(own[c*8+:8])
    );
    residual sum (
        .clock(clock), .write(table_write), .write_entry(table_entry), .write_data(load_data), .set(sum_set),
        .own(own[c*8+:8]), .other(other[OWN][c*8+:8]), .shift(sum_shift), .zero_point(sum_zero_point),
        .least(sum_least), .most(sum_most), .result(total[c*8+:8])
    );
  end

  assign write = add ? valid[ALL] : valid[OWN];
  assign write_bank = add ? bank[ALL] : bank[OWN];
  assign write_row = add ? row[ALL] : row[OWN];
  assign write_data = add ? total : own;
  assign tile_done = add ? final_one[ALL] : final_one[OWN];
endmodule
