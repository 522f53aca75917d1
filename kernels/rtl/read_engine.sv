// Loads: from AXI4 read bursts to whichever memory, in order, several waiting.
//
// Bursts have at most 16 beats (the PS7's ports are AXI3) and begin at multiples of 128 bytes, so none crosses 4 KiB.
// Every beat is taken as it comes.  After `abort`, what is under way is still awaited, as AXI demands.
module read_engine #(
    parameter int BANK_BITS   = 4,
    parameter int ROW_BITS    = 10,
    parameter int OUTSTANDING = 4    // bursts asked for ahead
) (
    input logic clock,
    input logic reset,
    input logic abort,

    input  logic        push,
    output logic        full,
    input  isa::move_t  move,
    output logic        busy,
    output logic        ended,      // a load has ended
    output logic        failed,

    output logic [31:0] m_axi_araddr,
    output logic [ 7:0] m_axi_arlen,
    output logic        m_axi_arvalid,
    input  logic        m_axi_arready,
    input  logic [63:0] m_axi_rdata,
    input  logic [ 1:0] m_axi_rresp,
    input  logic        m_axi_rlast,
    input  logic        m_axi_rvalid,
    output logic        m_axi_rready,

    output logic                 weight_write,
    output logic                 tap_write,
    output logic                 table_write,
    output logic                 activation_write,
    output logic                 program_write,
    output logic [         15:0] entry,
    output logic [BANK_BITS-1:0] bank,
    output logic [ ROW_BITS-1:0] row,
    output logic [         63:0] data
);
  logic [$bits(move)-1:0] queue[0:3];  // bits: of an array of structures Yosys 0.70 makes a single one
  logic [2:0] count;
  logic [1:0] head, tail;
  assign full = count == 3'd4;

  // The load at work.
  logic working;
  logic [2:0] to_memory;
  logic [31:0] next_address;
  logic [23:0] to_ask, to_come;
  logic [15:0] group_rows, group_positions, position, group_row;
  logic [$clog2(OUTSTANDING+1)-1:0] bursts;
  isa::move_t first;
  assign first = queue[head];

  logic take, asks, last_beat;
  assign take = m_axi_rvalid && m_axi_rready;
  assign asks = m_axi_arvalid && m_axi_arready;
  assign last_beat = take && to_come == 24'd1;
  assign busy = working || count != 0 || bursts != 0;

  always_ff @(posedge clock) begin
    ended  <= 1'b0;
    failed <= 1'b0;
    if (reset) begin
      {count, head, tail} <= '0;
      working <= 1'b0;
      bursts <= '0;
      m_axi_arvalid <= 1'b0;
    end else begin
      if (push && !full) begin
        queue[tail] <= move;
        tail <= tail + 2'd1;
      end
      count <= count + 3'(push && !full) - 3'(!working && count != 0 && bursts == 0);
      if (!working && count != 0 && bursts == 0) begin
        to_memory <= first.memory;
        next_address <= first.address;
        {to_ask, to_come} <= {first.beats, first.beats};
        {entry, group_row} <= {first.to, first.to};
        group_rows <= first.rows;
        group_positions <= first.positions;
        position <= '0;
        head <= head + 2'd1;
        working <= first.beats != 0;
        ended <= first.beats == 0 && first.memory != isa::PROGRAM;
      end

      if (asks) m_axi_arvalid <= 1'b0;
      if (working && to_ask != 0 && (!m_axi_arvalid || asks) && bursts < OUTSTANDING) begin
        m_axi_arvalid <= 1'b1;
        m_axi_araddr <= next_address;
        m_axi_arlen <= to_ask >= 24'd16 ? 8'd15 : 8'(to_ask - 24'd1);
        next_address <= next_address + 32'd128;
        to_ask <= to_ask >= 24'd16 ? to_ask - 24'd16 : 24'd0;
        bursts <= bursts + 1'b1 - (take && m_axi_rlast);
      end else if (take && m_axi_rlast) bursts <= bursts - 1'b1;

      if (take) begin
        if (m_axi_rresp[1]) failed <= 1'b1;
        if (working) begin
          to_come <= to_come - 24'd1;
          entry   <= entry + 16'd1;
          if (position == group_positions - 16'd1) begin
            position  <= '0;
            group_row <= group_row + group_rows;
          end else position <= position + 16'd1;
          if (last_beat) begin
            working <= 1'b0;
            ended   <= to_memory != isa::PROGRAM;
          end
        end
      end

      if (abort) begin
        {count, head, tail} <= '0;
        working <= 1'b0;
      end
    end
  end

  assign m_axi_rready = 1'b1;
  assign data = m_axi_rdata;
  assign weight_write = take && working && to_memory == 3'd0;
  assign tap_write = take && working && to_memory == 3'd1;
  assign table_write = take && working && to_memory == 3'd2;
  assign activation_write = take && working && to_memory == 3'd3;
  assign program_write = take && working && to_memory == isa::PROGRAM;
  assign bank = position[BANK_BITS-1:0];
  assign row = group_row[ROW_BITS-1:0] + ROW_BITS'(position >> BANK_BITS);
endmodule
