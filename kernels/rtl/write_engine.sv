// Stores: from the activation memory to AXI4 write bursts.  A burst's beats are read into a buffer, then sent.
module write_engine #(
    parameter int ROW_BITS = 10,
    parameter int LATENCY  = 4    // cycles from `read` to its data
) (
    input logic clock,
    input logic reset,
    input logic abort,

    input  logic        start,
    input  isa::move_t  move,
    output logic        busy,
    output logic        failed,

    output logic                read,
    output logic [ROW_BITS-1:0] read_row,
    output logic [        15:0] read_position,
    input  logic [        63:0] read_data,

    output logic [31:0] m_axi_awaddr,
    output logic [ 7:0] m_axi_awlen,
    output logic        m_axi_awvalid,
    input  logic        m_axi_awready,
    output logic [63:0] m_axi_wdata,
    output logic        m_axi_wlast,
    output logic        m_axi_wvalid,
    input  logic        m_axi_wready,
    input  logic [ 1:0] m_axi_bresp,
    input  logic        m_axi_bvalid,
    output logic        m_axi_bready
);
  typedef enum logic [1:0] {
    IDLE,
    FILL,
    SEND,
    ANSWER
  } state_t;
  state_t state;
  logic [63:0] buffer[0:15];
  logic [23:0] left;
  logic [4:0] size, asked, got, sent;
  logic [LATENCY-1:0] coming;
  logic [15:0] position, group_row, group_rows, group_positions;
  logic [31:0] next_address;
  logic stop;

  assign busy = state != IDLE;
  assign read = state == FILL && asked != size;
  assign read_row = group_row[ROW_BITS-1:0];
  assign read_position = position;
  assign m_axi_wdata = buffer[sent[3:0]];
  assign m_axi_wlast = sent == size - 5'd1;
  assign m_axi_wvalid = state == SEND && sent != size;
  assign m_axi_bready = state == ANSWER;

  always_ff @(posedge clock) begin
    failed <= 1'b0;
    coming <= {coming[LATENCY-2:0], read};
    if (reset) begin
      state <= IDLE;
      coming <= '0;
      m_axi_awvalid <= 1'b0;
      stop <= 1'b0;
    end else begin
      if (abort) stop <= 1'b1;
      if (m_axi_awvalid && m_axi_awready) m_axi_awvalid <= 1'b0;
      if (coming[LATENCY-1]) begin
        buffer[got[3:0]] <= read_data;
        got <= got + 5'd1;
      end
      case (state)
        IDLE: begin
          stop <= 1'b0;
          if (start && move.beats != 0) begin
            state <= FILL;
            left <= move.beats;
            size <= move.beats >= 24'd16 ? 5'd16 : move.beats[4:0];
            {asked, got, sent} <= '0;
            position <= '0;
            group_row <= move.to;
            group_rows <= move.rows;
            group_positions <= move.positions;
            next_address <= move.address;
          end
        end
        FILL: begin
          if (read) begin
            asked <= asked + 5'd1;
            if (position == group_positions - 16'd1) begin
              position  <= '0;
              group_row <= group_row + group_rows;
            end else position <= position + 16'd1;
          end
          if (got == size) begin
            state <= SEND;
            m_axi_awvalid <= 1'b1;
            m_axi_awaddr <= next_address;
            m_axi_awlen <= 8'(size - 5'd1);
            next_address <= next_address + 32'd128;
          end
        end
        SEND: begin
          if (m_axi_wvalid && m_axi_wready) sent <= sent + 5'd1;
          if (sent == size && !m_axi_awvalid) state <= ANSWER;
        end
        ANSWER:
        if (m_axi_bvalid) begin
          if (m_axi_bresp[1]) failed <= 1'b1;
          left <= left - 24'(size);
          size <= left - 24'(size) >= 24'd16 ? 5'd16 : 5'(left - 24'(size));
          {asked, got, sent} <= '0;
          state <= left == 24'(size) || stop || abort ? IDLE : FILL;
        end
      endcase
    end
  end
endmodule
