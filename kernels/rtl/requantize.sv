// One sum to int8, bit for bit as kernels/common/requantize.h: seven cycles from `sum` to `result`.
module requantize #(
    parameter int SUM_BITS = 25
) (
    input  logic                       clock,
    input  logic signed [SUM_BITS-1:0] sum,
    input  logic signed [        31:0] bias,
    input  logic        [        31:0] multiplier,
    input  logic        [         5:0] shift,       // right, after 31
    input  logic                       once,        // round once
    input  logic signed [         7:0] zero_point,
    input  logic signed [         7:0] least,
    input  logic signed [         7:0] most,
    output logic signed [         7:0] result
);
  // 1: the bias.
  logic signed [31:0] total_1;
  logic [31:0] multiplier_1;
  logic [5:0] shift_1, shift_2, shift_3, shift_4, shift_5;

  // 2: two DSPs for the lower 24 bits of the sum; the upper 8, of large biases only, in logic.
  logic signed [42:0] low_2, high_2;
  logic signed [40:0] top_2, top;
  logic signed [24:0] lower;
  logic signed [17:0] multiplier_low, multiplier_high;
  assign lower = {1'b0, total_1[23:0]};
  assign multiplier_low = {2'b00, multiplier_1[15:0]};
  assign multiplier_high = {2'b00, multiplier_1[31:16]};
  always_comb begin
    top = '0;
    for (int i = 0; i < 7; i++) if (total_1[24+i]) top = top + ({9'b0, multiplier_1} << i);
    if (total_1[31]) top = top - ({9'b0, multiplier_1} << 7);
  end

  // 3: the product.  4: rounding once keeps a bit more.  5: half a step.  6: the shift.  7: the range.
  logic signed [63:0] product_3, rounded;
  logic signed [35:0] high_4, nudged_5, shifted_6, placed;
  assign rounded = product_3 + 64'sd1073741824;
  assign placed  = shifted_6 + 36'(zero_point);

  always_ff @(posedge clock) begin
    total_1 <= 32'(sum) + bias;
    multiplier_1 <= multiplier;
    shift_1 <= shift;

    low_2 <= lower * multiplier_low;
    high_2 <= lower * multiplier_high;
    top_2 <= top;
    shift_2 <= shift_1;

    product_3 <= 64'(low_2) + (64'(high_2) <<< 16) + (64'(top_2) <<< 24);
    shift_3 <= shift_2;

    high_4 <= once ? 36'(product_3 >>> 30) : 36'(rounded >>> 31);
    shift_4 <= once ? shift_3 + 6'd1 : shift_3;

    if (shift_4 == 0) nudged_5 <= high_4;
    else nudged_5 <= high_4 + (36'sd1 <<< (shift_4 - 6'd1)) - 36'(high_4[35] && !once);
    shift_5 <= shift_4;

    shifted_6 <= nudged_5 >>> shift_5;

    if (placed < 36'(least)) result <= least;
    else if (placed > 36'(most)) result <= most;
    else result <= placed[7:0];
  end
endmodule
