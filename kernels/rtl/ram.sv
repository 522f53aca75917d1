// A memory with one port to write and one to read, whose data come one cycle after the address: block RAM.
module ram #(
    parameter int WIDTH = 64,
    parameter int ROWS  = 1024,
    parameter int PARTS = 1     // of a row that are written each by itself
) (
    input  logic                    clock,
    input  logic [       PARTS-1:0] write,
    input  logic [$clog2(ROWS)-1:0] write_row,
    input  logic [       WIDTH-1:0] write_data,
    input  logic [$clog2(ROWS)-1:0] read_row,
    output logic [       WIDTH-1:0] read_data
);
  localparam int PART = WIDTH / PARTS;
  logic [WIDTH-1:0] rows[0:ROWS-1];

  always_ff @(posedge clock) begin
    for (int i = 0; i < PARTS; i++) if (write[i]) rows[write_row][i*PART+:PART] <= write_data[i*PART+:PART];
    read_data <= rows[read_row];
  end
endmodule
