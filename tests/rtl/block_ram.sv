// What Yosys uses of a 7-series block RAM (UG473): one port writes 36 or 72 bits a row, the other reads them, both at
// one clock; a read gets what was there before a write in the same cycle.  Anything else ends the simulation.
module RAMB36E1 #(
    parameter RAM_MODE = "TDP",
    parameter integer READ_WIDTH_A = 0,
    parameter integer READ_WIDTH_B = 0,
    parameter integer WRITE_WIDTH_A = 0,
    parameter integer WRITE_WIDTH_B = 0,
    parameter WRITE_MODE_A = "WRITE_FIRST",
    parameter WRITE_MODE_B = "WRITE_FIRST",
    parameter integer DOA_REG = 0,
    parameter integer DOB_REG = 0,
    parameter RAM_EXTENSION_A = "NONE",
    parameter RAM_EXTENSION_B = "NONE",
    parameter [71:0] INIT_A = 0,
    parameter [71:0] INIT_B = 0,
    parameter [71:0] SRVAL_A = 0,
    parameter [71:0] SRVAL_B = 0
) (
    input  logic        CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB,
    input  logic        RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB,
    input  logic [15:0] ADDRARDADDR, ADDRBWRADDR,
    input  logic [31:0] DIADI, DIBDI,
    input  logic [ 3:0] DIPADIP, DIPBDIP, WEA,
    input  logic [ 7:0] WEBWE,
    output logic [31:0] DOADO, DOBDO,
    output logic [ 3:0] DOPADOP, DOPBDOP
);
  localparam bit SIMPLE = RAM_MODE == "SDP";  // the whole width in one row: port A reads, port B writes
  localparam int BYTES = SIMPLE ? 8 : 4;
  localparam int ROW_BITS = SIMPLE ? 9 : 10;
  logic [BYTES-1:0][8:0] rows[0:2**ROW_BITS-1];  // the ninth bit is parity's

  logic [BYTES-1:0][8:0] given, read;
  logic [BYTES-1:0] write;
  logic [ROW_BITS-1:0] write_row, read_row;
  if (SIMPLE) begin : g_simple
    assign write = ENBWREN ? WEBWE : 0;
    assign write_row = ADDRBWRADDR[14:6];
    assign read_row = ADDRARDADDR[14:6];
    for (genvar i = 0; i < 4; i++) begin : g_byte
      assign given[i] = {DIPADIP[i], DIADI[i*8+:8]};
      assign given[i+4] = {DIPBDIP[i], DIBDI[i*8+:8]};
      assign {DOPADOP[i], DOADO[i*8+:8]} = read[i];
      assign {DOPBDOP[i], DOBDO[i*8+:8]} = read[i+4];
    end
  end else begin : g_dual
    assign write = ENARDEN ? WEA : 0;
    assign write_row = ADDRARDADDR[14:5];
    assign read_row = ADDRBWRADDR[14:5];
    for (genvar i = 0; i < 4; i++) begin : g_byte
      assign given[i] = {DIPADIP[i], DIADI[i*8+:8]};
      assign {DOPBDOP[i], DOBDO[i*8+:8]} = read[i];
    end
    assign {DOPADOP, DOADO} = '0;
  end

  always_ff @(posedge CLKARDCLK) begin
    for (int i = 0; i < BYTES; i++) if (write[i]) rows[write_row][i] <= given[i];
    if (SIMPLE ? ENARDEN : ENBWREN) read <= rows[read_row];
  end

  initial begin
    if (!(SIMPLE ? READ_WIDTH_A == 72 && WRITE_WIDTH_B == 72 && READ_WIDTH_B == 0 && WRITE_WIDTH_A == 0
                 : READ_WIDTH_B == 36 && WRITE_WIDTH_A == 36 && READ_WIDTH_A == 0 && WRITE_WIDTH_B == 0) ||
        DOA_REG != 0 || DOB_REG != 0 || WRITE_MODE_A != "READ_FIRST" || WRITE_MODE_B != "READ_FIRST")
      $fatal(1, "a block RAM in a mode that this model does not have");
  end
endmodule
