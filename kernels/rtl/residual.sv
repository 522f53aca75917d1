// One int8 addition, bit for bit as TFLite's reference ADD: six cycles from `own` and `other` to `result`.
//
// Both operands are looked up scaled and multiplied, so that their sum is TFLite's 64-bit product and no multiplier is
// needed.  There are two pairs of tables, so that one can be loaded while the other is used.
module residual (
    input  logic               clock,
    input  logic               write,
    input  logic        [ 9:0] write_entry,  // set, table (own, other), value + 128
    input  logic        [63:0] write_data,
    input  logic               set,
    input  logic signed [ 7:0] own,
    input  logic signed [ 7:0] other,
    input  logic        [ 4:0] shift,        // right, after 31
    input  logic signed [ 7:0] zero_point,
    input  logic signed [ 7:0] least,
    input  logic signed [ 7:0] most,
    output logic signed [ 7:0] result
);
  logic [63:0] own_1, other_1;
  logic signed [63:0] sum_2, rounded;
  logic signed [35:0] high_3, nudged_4, shifted_5, placed;

  ram #(
      .WIDTH(64),
      .ROWS (512)
  ) own_table (
      .clock(clock), .write(write && !write_entry[8]), .write_row({write_entry[9], write_entry[7:0]}),
      .write_data(write_data), .read_row({set, !own[7], own[6:0]}), .read_data(own_1)
  );
  ram #(
      .WIDTH(64),
      .ROWS (512)
  ) other_table (
      .clock(clock), .write(write && write_entry[8]), .write_row({write_entry[9], write_entry[7:0]}),
      .write_data(write_data), .read_row({set, !other[7], other[6:0]}), .read_data(other_1)
  );

  assign rounded = sum_2 + 64'sd1073741824;
  assign placed  = shifted_5 + 36'(zero_point);

  always_ff @(posedge clock) begin
    sum_2  <= $signed(own_1) + $signed(other_1);
    high_3 <= 36'(rounded >>> 31);
    if (shift == 0) nudged_4 <= high_3;
    else nudged_4 <= high_3 + (36'sd1 <<< (shift - 5'd1)) - 36'(high_3[35]);
    shifted_5 <= nudged_4 >>> shift;
    if (placed < 36'(least)) result <= least;
    else if (placed > 36'(most)) result <= most;
    else result <= placed[7:0];
  end
endmodule
