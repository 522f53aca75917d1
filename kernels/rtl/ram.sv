// A memory with one port to write and one to read, whose data come one cycle after the address: block RAM.
module ram #(
    parameter int WIDTH = 64,
    parameter int ROWS  = 1024
) (
    input  logic                    clock,
    input  logic                    write,
    input  logic [$clog2(ROWS)-1:0] write_row,
    input  logic [       WIDTH-1:0] write_data,
    input  logic [$clog2(ROWS)-1:0] read_row,
    output logic [       WIDTH-1:0] read_data
);
  logic [WIDTH-1:0] rows[0:ROWS-1];

  always_ff @(posedge clock) begin
    if (write) rows[write_row] <= write_data;
    read_data <= rows[read_row];
  end
endmodule
