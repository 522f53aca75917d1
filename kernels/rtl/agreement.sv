// How many of 32 pairs of bits agree, less how many do not: one product of vectors of -1 and 1.  Three cycles.
module agreement (
    input  logic              clock,
    input  logic              enable,   // else nothing moves and `value` is 0
    input  logic       [31:0] a,
    input  logic       [31:0] b,
    input  logic              counts,   // 2 cycles later than `a` and `b`; else `value` is 0
    output logic signed [6:0] value
);
  logic [31:0] agree;
  logic [15:0] quarters;
  logic [5:0] total;
  assign agree = ~(a ^ b);

  always_ff @(posedge clock) begin
    if (enable) begin
      for (int i = 0; i < 4; i++) quarters[i*4+:4] <= 4'($countones(agree[i*8+:8]));
      total <= 6'(quarters[3:0]) + 6'(quarters[7:4]) + 6'(quarters[11:8]) + 6'(quarters[15:12]);
    end
    value <= enable && counts ? {total, 1'b0} - 7'd32 : '0;
  end
endmodule
