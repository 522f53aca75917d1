// The multipliers: PIXELS x CHANNELS sums over 4 products each, in every cycle.
//
// One multiplier of a DSP48E1 makes two products: the weights of two channels lie 17 bits apart in its 25-bit operand.
// Four in a row add up in the DSPs' own cascade; each is one cycle behind the one before, and so are its operands.
// The lower sum is at most 4 * 127 * 128 < 2^16 in size, so 17 bits hold it: that is why no weight may be -128.
//
// Where operands are `binary`, their 32 bits are 32 values of -1 or 1: agreement.sv takes the place of the DSPs.
module array #(
    parameter int PIXELS   = 12,
    parameter int CHANNELS = 8,
    parameter int SUM_BITS = 25
) (
    input  logic                                clock,
    // Operands, all of one step.
    input  logic [               PIXELS*32-1:0] lower,      // 4 input channels, for output channels 0 to 3
    input  logic [               PIXELS*32-1:0] upper,      // for output channels 4 to 7
    input  logic [             CHANNELS*32-1:0] weights,    // 4 for each output channel
    input  logic                                binary,
    input  logic [                  PIXELS-1:0] present,    // else it is padding, which adds nothing where binary
    // Of the step whose operands came 5 cycles ago.
    input  logic                                add,
    input  logic                                restart,    // the first step of a tile
    input  logic                                maximum,
    output logic [PIXELS*CHANNELS*SUM_BITS-1:0] sums
);
  localparam int PAIRS = CHANNELS / 2;
  localparam int K = 4;
  localparam int GAP = 17;

  // Two weights in one operand, for each pair of channels and each of the four products.
  logic [PAIRS*K*25-1:0] packed_weights;  // [pair][product], as late as the cascade wants them
  for (genvar c = 0; c < PAIRS; c++) begin : g_weight
    for (genvar k = 0; k < K; k++) begin : g_k
      logic signed [7:0] even, odd;
      logic signed [24:0] late[0:K-1];
      assign even = weights[(2*c*K+k)*8+:8];
      assign odd  = weights[((2*c+1)*K+k)*8+:8];
      always_ff @(posedge clock) late[0] <= binary ? '0 : (25'(odd) <<< GAP) + 25'(even);
      for (genvar d = 1; d <= k; d++) begin : g_delay
        always_ff @(posedge clock) late[d] <= late[d-1];
      end
      assign packed_weights[(c*K+k)*25+:25] = late[k];
    end
  end

  logic [CHANNELS*32-1:0] bit_weights_1, bit_weights_2;
  always_ff @(posedge clock) if (binary) {bit_weights_2, bit_weights_1} <= {bit_weights_1, weights};

  for (genvar p = 0; p < PIXELS; p++) begin : g_position
    position #(
        .CHANNELS(CHANNELS),
        .SUM_BITS(SUM_BITS),
        .GAP(GAP)
    ) lane (
        .clock(clock), .lower(lower[p*32+:32]), .upper(upper[p*32+:32]), .present(present[p]), .packed_weights,
        .bit_weights(bit_weights_2), .binary(binary), .add(add), .restart(restart), .maximum(maximum),
        .sums(sums[p*CHANNELS*SUM_BITS+:CHANNELS*SUM_BITS])
    );
  end
endmodule

// One position: its CHANNELS sums.
module position #(
    parameter int CHANNELS = 8,
    parameter int SUM_BITS = 25,
    parameter int GAP = 17
) (
    input  logic                         clock,
    input  logic [                 31:0] lower,
    input  logic [                 31:0] upper,
    input  logic                         present,
    input  logic [CHANNELS/2*4*25-1:0]   packed_weights,  // product k is 1 + k cycles behind `lower` and `upper`
    input  logic [      CHANNELS*32-1:0] bit_weights,     // 2 cycles behind them
    input  logic                         binary,
    input  logic                         add,
    input  logic                         restart,
    input  logic                         maximum,
    output logic [CHANNELS*SUM_BITS-1:0] sums
);
  localparam int PAIRS = CHANNELS / 2;
  localparam int K = 4;
  localparam int P_BITS = 36;

  logic signed [7:0] lower_values[0:K-1][0:K-1];  // [product][delay]
  logic signed [7:0] upper_values[0:K-1][0:K-1];
  for (genvar k = 0; k < K; k++) begin : g_value
    always_ff @(posedge clock) begin
      lower_values[k][0] <= lower[k*8+:8];
      upper_values[k][0] <= upper[k*8+:8];
    end
    for (genvar d = 1; d <= k; d++) begin : g_delay
      always_ff @(posedge clock) begin
        lower_values[k][d] <= lower_values[k][d-1];
        upper_values[k][d] <= upper_values[k][d-1];
      end
    end
  end

  logic [31:0] bits_1, bits_2;
  logic present_1, present_2, present_3, present_4;
  always_ff @(posedge clock) begin
    if (binary) {bits_2, bits_1} <= {bits_1, lower};
    {present_4, present_3, present_2, present_1} <= {present_3, present_2, present_1, present};
  end

  logic signed [6:0] agreements[0:CHANNELS-1];
  for (genvar c = 0; c < CHANNELS; c++) begin : g_channel
    agreement channel (
        .clock(clock), .enable(binary), .a(bits_2), .b(bit_weights[c*32+:32]), .counts(present_4), .value(agreements[c])
    );
  end

  for (genvar c = 0; c < PAIRS; c++) begin : g_pair
    logic signed [P_BITS-1:0] cascade[0:K-1];
    for (genvar k = 0; k < K; k++) begin : g_k
      logic signed [7:0] value;
      assign value = c < PAIRS / 2 ? lower_values[k][k] : upper_values[k][k];
      logic signed [24:0] two;
      assign two = packed_weights[(c*K+k)*25+:25];
      logic signed [P_BITS-1:0] product;
      assign product = two * value;
      if (k == 0) begin : g_first
        always_ff @(posedge clock) cascade[k] <= product;
      end else begin : g_next
        always_ff @(posedge clock) cascade[k] <= cascade[k-1] + product;
      end
    end
    // A negative lower sum has borrowed one from the upper.  One of product and agreement is always 0.
    logic signed [SUM_BITS-1:0] even_product, odd_product, even, odd;
    assign even_product = SUM_BITS'($signed(cascade[K-1][GAP-1:0]));
    assign odd_product = SUM_BITS'($signed(cascade[K-1][P_BITS-1:GAP])) + SUM_BITS'(cascade[K-1][GAP-1]);
    assign even = even_product | SUM_BITS'(agreements[2*c]);
    assign odd = odd_product | SUM_BITS'(agreements[2*c+1]);
    accumulator #(
        .BITS(SUM_BITS)
    ) even_sum (
        .clock(clock), .add(add), .restart(restart), .maximum(maximum), .value(even),
        .sum(sums[2*c*SUM_BITS+:SUM_BITS])
    );
    accumulator #(
        .BITS(SUM_BITS)
    ) odd_sum (
        .clock(clock), .add(add), .restart(restart), .maximum(maximum), .value(odd),
        .sum(sums[(2*c+1)*SUM_BITS+:SUM_BITS])
    );
  end
endmodule

// One sum, or the largest value.
module accumulator #(
    parameter int BITS = 25
) (
    input  logic                   clock,
    input  logic                   add,
    input  logic                   restart,
    input  logic                   maximum,
    input  logic signed [BITS-1:0] value,
    output logic signed [BITS-1:0] sum
);
  always_ff @(posedge clock)
    if (add) begin
      if (restart || (maximum && value > sum)) sum <= value;
      else if (!maximum) sum <= sum + value;
    end
endmodule
