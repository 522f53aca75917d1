// The AXI4-Lite registers; kernels/rtl/README.md lists them.
module registers #(
    parameter logic [31:0] IDENTITY = 32'h0,
    parameter logic [31:0] SHAPE    = 32'h0
) (
    input logic clock,
    input logic reset,

    input  logic [ 6:0] s_axi_awaddr,
    input  logic        s_axi_awvalid,
    output logic        s_axi_awready,
    input  logic [31:0] s_axi_wdata,
    input  logic [ 3:0] s_axi_wstrb,
    input  logic        s_axi_wvalid,
    output logic        s_axi_wready,
    output logic [ 1:0] s_axi_bresp,
    output logic        s_axi_bvalid,
    input  logic        s_axi_bready,
    input  logic [ 6:0] s_axi_araddr,
    input  logic        s_axi_arvalid,
    output logic        s_axi_arready,
    output logic [31:0] s_axi_rdata,
    output logic [ 1:0] s_axi_rresp,
    output logic        s_axi_rvalid,
    input  logic        s_axi_rready,

    output logic        start,
    output logic        abort,
    output logic [31:0] program_address,
    output logic [31:0] program_words,
    output logic [31:0] model_base,
    output logic [31:0] input_base,
    output logic [31:0] output_base,
    input  logic        busy,
    input  logic        done,
    input  logic        unknown,
    input  logic        bus_error,
    input  logic        step,
    input  logic        beat,
    output logic        interrupt
);
  logic finished, interrupt_enable;
  logic [1:0] errors;
  logic [31:0] cycles, steps, beats;
  assign interrupt = interrupt_enable && finished;

  // A write is taken when its address and its data are both there, and no answer waits.
  logic write;
  assign write = s_axi_awvalid && s_axi_wvalid && !s_axi_bvalid;
  assign s_axi_awready = write;
  assign s_axi_wready = write;
  assign s_axi_arready = !s_axi_rvalid;
  assign s_axi_bresp = 2'b00;
  assign s_axi_rresp = 2'b00;

  function automatic logic [31:0] merge(logic [31:0] old, logic [31:0] data, logic [3:0] strobes);
    for (int i = 0; i < 4; i++) merge[i*8+:8] = strobes[i] ? data[i*8+:8] : old[i*8+:8];
  endfunction

  always_ff @(posedge clock) begin
    start <= 1'b0;
    abort <= 1'b0;
    if (reset) begin
      s_axi_bvalid <= 1'b0;
      s_axi_rvalid <= 1'b0;
      finished <= 1'b0;
      interrupt_enable <= 1'b0;
      errors <= '0;
      {cycles, steps, beats} <= '0;
      {program_address, program_words, model_base, input_base, output_base} <= '0;
    end else begin
      if (busy) begin
        cycles <= cycles + 32'd1;
        steps  <= steps + 32'(step);
        beats  <= beats + 32'(beat);
      end
      if (done) finished <= 1'b1;
      errors <= errors | {bus_error, unknown};

      if (s_axi_bvalid && s_axi_bready) s_axi_bvalid <= 1'b0;
      if (write) begin
        s_axi_bvalid <= 1'b1;
        case (s_axi_awaddr[6:2])
          5'h00:
          if (s_axi_wstrb[0]) begin
            interrupt_enable <= s_axi_wdata[2];
            abort <= s_axi_wdata[1];
            if (s_axi_wdata[0] && !busy && !start) begin
              start <= 1'b1;
              finished <= 1'b0;
              errors <= '0;
              {cycles, steps, beats} <= '0;
            end
          end
          5'h01: if (s_axi_wstrb[0] && s_axi_wdata[1]) finished <= 1'b0;
          5'h04: program_address <= merge(program_address, s_axi_wdata, s_axi_wstrb);
          5'h05: program_words <= merge(program_words, s_axi_wdata, s_axi_wstrb);
          5'h06: model_base <= merge(model_base, s_axi_wdata, s_axi_wstrb);
          5'h07: input_base <= merge(input_base, s_axi_wdata, s_axi_wstrb);
          5'h08: output_base <= merge(output_base, s_axi_wdata, s_axi_wstrb);
          default: ;
        endcase
      end

      if (s_axi_rvalid && s_axi_rready) s_axi_rvalid <= 1'b0;
      if (s_axi_arvalid && s_axi_arready) begin
        s_axi_rvalid <= 1'b1;
        case (s_axi_araddr[6:2])
          5'h00: s_axi_rdata <= {29'b0, interrupt_enable, 2'b0};
          5'h01: s_axi_rdata <= {28'b0, errors, finished, busy || start};
          5'h02: s_axi_rdata <= IDENTITY;
          5'h03: s_axi_rdata <= SHAPE;
          5'h04: s_axi_rdata <= program_address;
          5'h05: s_axi_rdata <= program_words;
          5'h06: s_axi_rdata <= model_base;
          5'h07: s_axi_rdata <= input_base;
          5'h08: s_axi_rdata <= output_base;
          5'h09: s_axi_rdata <= cycles;
          5'h0a: s_axi_rdata <= steps;
          5'h0b: s_axi_rdata <= beats;
          default: s_axi_rdata <= '0;
        endcase
      end
    end
  end
endmodule
