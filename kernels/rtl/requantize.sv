// One sum to int8, bit for bit as kernels/common/requantize.h: eight cycles from `sum` to `result`.
module requantize #(
    parameter int SUM_BITS = 25
) (
    input  logic                       clock,
    input  logic signed [SUM_BITS-1:0] sum,
    input  logic        [         7:0] factor,      // of the sum: what a one-bit weight stands for, else 1
    input  logic signed [        31:0] bias,
    input  logic        [        31:0] multiplier,
    input  logic        [         5:0] shift,       // right, after 31
    input  logic                       once,        // round once
    input  logic signed [         7:0] zero_point,
    input  logic signed [         7:0] least,
    input  logic signed [         7:0] most,
    output logic signed [         7:0] result
);
  // 1: the factor.
  logic signed [SUM_BITS+8:0] sum_1;
  logic signed [8:0] positive_factor;
  logic signed [31:0] bias_1;
  logic [31:0] multiplier_1;
  assign positive_factor = {1'b0, factor};

  // 2: the bias.
  logic signed [31:0] total_2;
  logic [31:0] multiplier_2;
  logic [5:0] shift_1, shift_2, shift_3, shift_4, shift_5, shift_6;

  // 3: two DSPs for the lower 24 bits of the sum; the upper 8, of large biases only, in logic.
  logic signed [42:0] low_3, high_3;
  logic signed [40:0] top_3, top;
  logic signed [24:0] lower;
  logic signed [17:0] multiplier_low, multiplier_high;
  assign lower = {1'b0, total_2[23:0]};
  assign multiplier_low = {2'b00, multiplier_2[15:0]};
  assign multiplier_high = {2'b00, multiplier_2[31:16]};
  always_comb begin
    top = '0;
    for (int i = 0; i < 7; i++) if (total_2[24+i]) top = top + ({9'b0, multiplier_2} << i);
    if (total_2[31]) top = top - ({9'b0, multiplier_2} << 7);
  end

  // 4: the product.  5: rounding once keeps a bit more.  6: half a step.  7: the shift.  8: the range.
  logic signed [63:0] product_4, rounded;
  logic signed [35:0] high_5, nudged_6, shifted_7, placed;
  assign rounded = product_4 + 64'sd1073741824;
  assign placed  = shifted_7 + 36'(zero_point);

  always_ff @(posedge clock) begin
    sum_1 <= sum * positive_factor;
    bias_1 <= bias;
    multiplier_1 <= multiplier;
    shift_1 <= shift;

    total_2 <= 32'(sum_1) + bias_1;
    multiplier_2 <= multiplier_1;
    shift_2 <= shift_1;

    low_3 <= lower * multiplier_low;
    high_3 <= lower * multiplier_high;
    top_3 <= top;
    shift_3 <= shift_2;

    product_4 <= 64'(low_3) + (64'(high_3) <<< 16) + (64'(top_3) <<< 24);
    shift_4 <= shift_3;

    high_5 <= once ? 36'(product_4 >>> 30) : 36'(rounded >>> 31);
    shift_5 <= once ? shift_4 + 6'd1 : shift_4;

    if (shift_5 == 0) nudged_6 <= high_5;
    else nudged_6 <= high_5 + (36'sd1 <<< (shift_5 - 6'd1)) - 36'(high_5[35] && !once);
    shift_6 <= shift_5;

    shifted_7 <= nudged_6 >>> shift_6;

    if (placed < 36'(least)) result <= least;
    else if (placed > 36'(most)) result <= most;
    else result <= placed[7:0];
  end
endmodule
