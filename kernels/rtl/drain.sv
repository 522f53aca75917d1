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
    input logic [255:0] finals,  // a byte of right shift, then a byte of factor, then 16 bits of threshold each
    input isa::conv_t conv,

    input logic        table_write,
    input logic [ 9:0] table_entry,
    input logic [63:0] load_data,

    output logic [              7:0] write,       // of each byte
    output logic [$clog2(BANKS)-1:0] write_bank,
    output logic [ $clog2(ROWS)-1:0] write_row,
    output logic [   CHANNELS*8-1:0] write_data,
    output logic                     tile_done
);
  localparam int BANK_BITS = $clog2(BANKS);
  localparam int ROW_BITS = $clog2(ROWS);
  localparam int POSITION_BITS = BANK_BITS + ROW_BITS;
  localparam int LINE = CHANNELS * SUM_BITS;
  localparam int OWN = 8;  // cycles of requantize
  localparam int ALL = 14;  // and of residual

  logic [PIXELS*LINE-1:0] waiting;
  logic [PIXELS*64-1:0] waiting_others;
  logic [255:0] multiplier, bias, final_0;
  logic [4:0] left;
  logic [15:0] y, x, row_start, group_row, plane_2;
  logic [2:0] byte_0;  // where bits are written, of a word that eight channel tiles share
  assign plane_2 = conv.out_plane << 1;

  always_ff @(posedge clock) begin
    if (reset) left <= '0;
    else if (take) left <= 5'(PIXELS);
    else if (left != 0) left <= left - 5'd1;

    if (take) begin
      waiting <= sums;
      waiting_others <= others;
      multiplier <= multipliers;
      bias <= biases;
      final_0 <= finals;
    end else begin
      waiting <= waiting >> LINE;
      waiting_others <= waiting_others >> 64;
    end

    if (take && tile_first) begin
      y <= '0;
      x <= '0;
      row_start <= '0;
      byte_0 <= channel_first ? 3'd0 : byte_0 + 3'd1;
      if (channel_first) group_row <= conv.out_row;
      else if (!conv.binarize || byte_0 == 3'd7) group_row <= group_row + conv.out_rows;
    end else if (left != 0) begin
      if (x == conv.width - 16'd1) begin
        x <= '0;
        y <= y + 16'd1;
        row_start <= row_start + (!conv.split ? conv.out_pitch : y[0] ? conv.out_pitch - plane_2 : plane_2);
      end else x <= x + 16'd1;
    end
  end

  // Where it goes, beside what becomes of the values.
  logic [POSITION_BITS-1:0] position;
  assign position = POSITION_BITS'(row_start + (conv.split ? (x >> 1) + (x[0] ? conv.out_plane : 16'd0) : x));
  logic [BANK_BITS-1:0] bank[1:ALL];
  logic [ROW_BITS-1:0] row[1:ALL];
  logic [ALL:1] valid, final_one;
  logic [63:0] other[1:OWN];
  logic [2:0] byte_at[1:ALL];
  logic [127:0] threshold[1:ALL];
  always_ff @(posedge clock) begin
    byte_at[1] <= byte_0;
    threshold[1] <= final_0[255:128];
    bank[1] <= position[BANK_BITS-1:0];
    row[1] <= group_row[ROW_BITS-1:0] + position[POSITION_BITS-1:BANK_BITS];
    other[1] <= waiting_others[63:0];
    for (int i = 2; i <= ALL; i++) begin
      bank[i] <= bank[i-1];
      row[i] <= row[i-1];
      byte_at[i] <= byte_at[i-1];
      threshold[i] <= threshold[i-1];
    end
    for (int i = 2; i <= OWN; i++) other[i] <= other[i-1];
    if (reset) begin
      valid <= '0;
      final_one <= '0;
    end else begin
      // What has left after requantize must not turn up again after residual, when `conv` is the next layer.
      valid <= {
        valid[ALL-1:OWN+1], valid[OWN] && conv.residual, valid[OWN-1:1],
        left != 0 && y < conv.out_height && x < conv.out_width
      };
      final_one <= {final_one[ALL-1:OWN+1], final_one[OWN] && conv.residual, final_one[OWN-1:1], left == 5'd1};
    end
  end

  logic [CHANNELS*8-1:0] own, total;
  for (genvar c = 0; c < CHANNELS; c++) begin : g_lane
    requantize #(
        .SUM_BITS(SUM_BITS)
    ) lane (
        .clock(clock), .sum(waiting[c*SUM_BITS+:SUM_BITS]), .factor(final_0[64+c*8+:8]), .bias(bias[c*32+:32]),
        .multiplier(multiplier[c*32+:32]), .shift(final_0[c*8+:6]), .once(conv.once), .zero_point(conv.zero_point),
        .least(conv.least), .most(conv.most), .result(own[c*8+:8])
    );
    residual sum (
        .clock(clock), .write(table_write), .write_entry(table_entry), .write_data(load_data), .set(conv.sum_set),
        .own(own[c*8+:8]), .other(other[OWN][c*8+:8]), .shift(conv.sum_shift), .zero_point(conv.sum_zero_point),
        .least(conv.sum_least), .most(conv.sum_most), .result(total[c*8+:8])
    );
  end

  // What the layer answers, as int8 or as a bit for each channel.  The first byte of bits clears those after it.
  logic [63:0] values;
  logic [127:0] limits;
  logic [2:0] byte_now;
  logic [7:0] reached;
  assign values = conv.residual ? total : own;
  assign limits = conv.residual ? threshold[ALL] : threshold[OWN];
  assign byte_now = conv.residual ? byte_at[ALL] : byte_at[OWN];
  for (genvar c = 0; c < CHANNELS; c++) begin : g_bit
    assign reached[c] = 9'($signed(values[c*8+:8])) >= $signed(limits[c*16+:9]);
  end
  always_ff @(posedge clock) begin
    write <= (conv.residual ? valid[ALL] : valid[OWN]) ? 8'hff : 8'h00;
    if (conv.binarize && byte_now != 0) write <= 8'(conv.residual ? valid[ALL] : valid[OWN]) << byte_now;
    write_bank <= conv.residual ? bank[ALL] : bank[OWN];
    write_row <= conv.residual ? row[ALL] : row[OWN];
    write_data <= !conv.binarize ? values : byte_now == 0 ? 64'(reached) : {8{reached}};
    tile_done <= conv.residual ? final_one[ALL] : final_one[OWN];
    if (reset) {write, tile_done} <= '0;
  end
endmodule
