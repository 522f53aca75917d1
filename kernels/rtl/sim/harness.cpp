// The verilated accelerator on a modelled bus, behind a C ABI: deploy/fpga/simulator.py drives it through ctypes.
//
// The memory answers reads in order, `latency` cycles after the address and then at most one beat in `interval` cycles;
// every ready and valid of the bus may stall at random.  The rules of AXI that the master must keep are checked always.
#include <cstdint>
#include <cstring>
#include <deque>

#include "Vaccelerator.h"
#include "verilated.h"

namespace {

constexpr int kLongestBurst = 16;  // of AXI3

struct Burst {
  uint32_t address;
  int beats;
  uint64_t due;
};

struct Beat {
  uint64_t value;
  bool last;
};

struct Simulation {
  VerilatedContext context;
  Vaccelerator top{&context};
  uint8_t* memory = nullptr;  // what the master reaches, from address 0: the caller's
  uint64_t memory_bytes = 0;
  uint64_t cycle = 0;

  // How the bus behaves.
  uint32_t latency = 0, interval = 1, stall = 0, seed = 1;  // stall: of 65536
  bool hangs = false;                                       // no read is ever answered

  std::deque<Burst> reads;
  uint64_t next_beat = 0;
  std::deque<Burst> writes;
  std::deque<Beat> data;
  std::deque<uint64_t> answers;
  bool bad_write = false;

  // What the master may not do.
  uint64_t violations = 0;
  const char* last_violation = "";
  struct {
    bool arvalid, awvalid, wvalid, arready, awready, wready, wlast;
    uint32_t araddr, awaddr;
    uint8_t arlen, awlen;
    uint64_t wdata;
  } before = {};

  bool stalls() {
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return (seed & 0xffff) < stall;
  }

  void check(bool holds, const char* rule) {
    if (holds) return;
    ++violations;
    last_violation = rule;
  }

  bool inside(uint32_t address) const { return uint64_t{address} + 8 <= memory_bytes; }

  void check_burst(uint32_t address, int beats) {
    check(beats <= kLongestBurst, "a burst has more than 16 beats");
    check(address % 8 == 0, "a burst does not begin at a multiple of 8");
    check(address / 4096 == (address + beats * 8 - 1) / 4096, "a burst crosses 4 KiB");
  }

  /// One rising edge.  Inputs are set before it, outputs read before it: both are what the edge sees.
  void tick() {
    top.clock = 0;
    top.m_axi_arready = !hangs && reads.size() < 8 && !stalls();
    if (!top.m_axi_rvalid) {
      const bool due = !reads.empty() && cycle >= reads.front().due && cycle >= next_beat;
      if (due && !stalls()) {
        const Burst& read = reads.front();
        top.m_axi_rvalid = 1;
        top.m_axi_rresp = inside(read.address) ? 0 : 3;
        uint64_t value = 0;
        if (inside(read.address)) memcpy(&value, &memory[read.address], 8);
        top.m_axi_rdata = value;
        top.m_axi_rlast = read.beats == 1;
      }
    }
    top.m_axi_awready = writes.size() < 4 && !stalls();
    top.m_axi_wready = !stalls();
    if (!top.m_axi_bvalid && !answers.empty() && cycle >= answers.front() && !stalls()) {
      top.m_axi_bvalid = 1;
      top.m_axi_bresp = bad_write ? 3 : 0;
    }
    top.eval();

    const bool ar = top.m_axi_arvalid && top.m_axi_arready, aw = top.m_axi_awvalid && top.m_axi_awready;
    const bool w = top.m_axi_wvalid && top.m_axi_wready;
    const bool r = top.m_axi_rvalid && top.m_axi_rready, b = top.m_axi_bvalid && top.m_axi_bready;
    if (before.arvalid && !before.arready)
      check(top.m_axi_arvalid && top.m_axi_araddr == before.araddr && top.m_axi_arlen == before.arlen,
            "a read address changed before it was taken");
    if (before.awvalid && !before.awready)
      check(top.m_axi_awvalid && top.m_axi_awaddr == before.awaddr && top.m_axi_awlen == before.awlen,
            "a write address changed before it was taken");
    if (before.wvalid && !before.wready)
      check(top.m_axi_wvalid && top.m_axi_wdata == before.wdata && top.m_axi_wlast == before.wlast,
            "write data changed before they were taken");
    before = {bool(top.m_axi_arvalid), bool(top.m_axi_awvalid), bool(top.m_axi_wvalid), bool(top.m_axi_arready),
              bool(top.m_axi_awready), bool(top.m_axi_wready), bool(top.m_axi_wlast), top.m_axi_araddr,
              top.m_axi_awaddr, top.m_axi_arlen, top.m_axi_awlen, top.m_axi_wdata};
    if (ar) {
      check_burst(top.m_axi_araddr, top.m_axi_arlen + 1);
      reads.push_back({top.m_axi_araddr, top.m_axi_arlen + 1, cycle + latency});
    }
    if (aw) {
      check_burst(top.m_axi_awaddr, top.m_axi_awlen + 1);
      writes.push_back({top.m_axi_awaddr, top.m_axi_awlen + 1, 0});
    }
    if (w) data.push_back({top.m_axi_wdata, bool(top.m_axi_wlast)});
    take_writes();
    if (r) {
      Burst& read = reads.front();
      read.address += 8;
      next_beat = cycle + interval;
      if (--read.beats == 0) reads.pop_front();
    }

    top.clock = 1;
    top.eval();
    ++cycle;
    if (r) top.m_axi_rvalid = 0;
    if (b) {
      top.m_axi_bvalid = 0;
      answers.pop_front();
      bad_write = false;
    }
  }

  /// Data may come before their address.
  void take_writes() {
    while (!data.empty() && !writes.empty()) {
      Burst& write = writes.front();
      if (inside(write.address)) {
        memcpy(&memory[write.address], &data.front().value, 8);
      } else {
        bad_write = true;
      }
      write.address += 8;
      check(data.front().last == (write.beats == 1), "wlast is not with the last beat");
      data.pop_front();
      if (--write.beats == 0) {
        writes.pop_front();
        answers.push_back(cycle + latency);
      }
    }
  }
};

}  // namespace

extern "C" {

/// `memory` must outlive the simulation; others may map it, too, and write to it meanwhile.
Simulation* simulation_create(uint8_t* memory, uint64_t memory_bytes) {
  auto* sim = new Simulation;
  sim->memory = memory;
  sim->memory_bytes = memory_bytes;
  sim->top.reset_n = 0;
  for (int i = 0; i < 4; ++i) sim->tick();
  sim->top.reset_n = 1;
  sim->tick();
  sim->tick();
  return sim;
}

void simulation_destroy(Simulation* sim) { delete sim; }

/// latency and interval in cycles; stall: probability in 65536ths that a ready or a valid waits; hangs: reads never end.
void simulation_bus(Simulation* sim, uint32_t latency, uint32_t interval, uint32_t stall, uint32_t seed, int hangs) {
  sim->latency = latency;
  sim->interval = interval;
  sim->stall = stall;
  sim->seed = seed ? seed : 1;
  sim->hangs = hangs != 0;
}

void simulation_write(Simulation* sim, uint32_t address, uint32_t value) {
  sim->top.s_axi_awaddr = address;
  sim->top.s_axi_wdata = value;
  sim->top.s_axi_wstrb = 15;
  sim->top.s_axi_awvalid = sim->top.s_axi_wvalid = 1;
  sim->top.s_axi_bready = 1;
  bool taken = false;
  while (!taken) {
    sim->top.eval();
    taken = sim->top.s_axi_awready && sim->top.s_axi_wready;
    sim->tick();
  }
  sim->top.s_axi_awvalid = sim->top.s_axi_wvalid = 0;
  sim->tick();
}

uint32_t simulation_read(Simulation* sim, uint32_t address) {
  sim->top.s_axi_araddr = address;
  sim->top.s_axi_arvalid = 1;
  sim->top.s_axi_rready = 1;
  sim->tick();
  sim->top.s_axi_arvalid = 0;
  while (!sim->top.s_axi_rvalid) sim->tick();
  const uint32_t value = sim->top.s_axi_rdata;
  sim->tick();
  return value;
}

/// Clock until the interrupt rises, or `most` cycles have gone; returns the cycles.
uint64_t simulation_wait(Simulation* sim, uint64_t most) {
  const uint64_t start = sim->cycle;
  while (!sim->top.irq && sim->cycle - start < most) sim->tick();
  return sim->cycle - start;
}

uint64_t simulation_cycle(Simulation* sim) { return sim->cycle; }

/// How often a rule of AXI was broken; `rule` gets the last one.
uint64_t simulation_violations(Simulation* sim, const char** rule) {
  *rule = sim->last_violation;
  return sim->violations;
}
}
