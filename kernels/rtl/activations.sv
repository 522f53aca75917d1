// The activation memory: banks of 8 bytes, and the network that gives each of PIXELS lanes its own position.
//
// Position p of a tensor lies in bank p % BANKS, so PIXELS positions in a row never meet in a bank.
module activations #(
    parameter int PIXELS = 12,
    parameter int BANKS  = 16,
    parameter int ROWS   = 1024
) (
    input  logic                     clock,
    // Write one position, or some of its bytes.
    input  logic [              7:0] write,
    input  logic [$clog2(BANKS)-1:0] write_bank,
    input  logic [ $clog2(ROWS)-1:0] write_row,
    input  logic [             63:0] write_data,
    // Read positions from (row, rotation) on; lanes appear two cycles later.
    input  logic [ $clog2(ROWS)-1:0] row,
    input  logic [$clog2(BANKS)-1:0] rotation,
    output logic [    PIXELS*64-1:0] lanes
);
  localparam int BANK_BITS = $clog2(BANKS);
  localparam int ROW_BITS = $clog2(ROWS);

  logic [BANKS*64-1:0] raw;
  logic [BANK_BITS-1:0] rotation_1;

  for (genvar b = 0; b < BANKS; b++) begin : g_bank
    // A bank below the rotation holds a position of the next row.
    logic [ROW_BITS-1:0] bank_row;
    assign bank_row = row + ROW_BITS'(BANK_BITS'(b) < rotation);
    ram #(
        .WIDTH(64),
        .ROWS (ROWS),
        .PARTS(8)
    ) bank (
        .clock(clock),
        .write(write_bank == BANK_BITS'(b) ? write : 8'd0),
        .write_row(write_row),
        .write_data(write_data),
        .read_row(bank_row),
        .read_data(raw[b*64+:64])
    );
  end

  always_ff @(posedge clock) rotation_1 <= rotation;

  for (genvar l = 0; l < PIXELS; l++) begin : g_lane
    logic [BANK_BITS-1:0] from;
    assign from = rotation_1 + BANK_BITS'(l);
    always_ff @(posedge clock) lanes[l*64+:64] <= raw[{from, 6'd0}+:64];
  end
endmodule
