"""
Arm without a board: instructions counted under QEMU, and llvm-mca's model of the inner loops.

These are counts and models, never times.  A count compares one layer through `deploy_conv_run()` with the same layer as
a model in stock LiteRT, whose interpreter costs some thousand instructions.  A model assumes that every load hits.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.errors import CountError
from deploy.virtual import count
from kernels import build
from tests.benchmarks.figure import Figure
from tests.conftest import ROOT
from tests.kernels.library import FAMILIES
from tests.kernels.single_op import Quantization, SingleOp

SHAPES = ((14, 256, 256, 3), (28, 128, 128, 3), (16, 64, 64, 3))  # height and width, channels, output channels, kernel
# family, cores, percent of the groups kept, goal: ours over XNNPACK's int8 at most
COUNTS = (
    ("w4", ("a53", "a72", "a76"), 100, 1.15),
    ("w2", ("a53", "a72"), 100, 0.9),
    ("binary", ("a53", "a72"), 100, 1 / 6),
    ("binary", ("a76",), 100, 1 / 2.2),
    ("tile8", ("a53", "a72", "a76"), 25, 1 / 3),
    ("w8", ("a53", "a72", "a76"), 100, None),
    ("tile4", ("a53", "a72", "a76"), 25, None),
)


@dataclass(frozen=True)
class Loop:
    """
    An inner loop to be modelled.

    Attributes:
        source: under kernels/, without the suffix .cc; the loop with the most instructions `counted` is taken.
        macs: multiplications that each of these stands for.
        goals: per core of LLVM, multiplications in a cycle at least.
    """

    what: str
    source: str
    counted: str
    macs: int
    goals: dict[str, float]


LOOPS = (
    Loop("int8", "w8/tile_4x16c16_neon", "smull|smlal", 8, {"cortex-a57": 7, "cortex-a53": 4.5}),
    Loop("w4a8", "w4/tile_4x16c16_neon", "smlal", 8, {"cortex-a53": 5.5, "cortex-a57": 0}),
    Loop("w2a8", "w2/tile_6x16c16_neon", "smlal", 8, {"cortex-a53": 0, "cortex-a57": 0}),
    Loop("binary", "binary/tile_4x64c16_neon", "cnt", 128, {"cortex-a57": 60, "cortex-a53": 30}),
    Loop("SDOT int8", "w8/tile_8x16c16_neondot", "sdot", 16, {"neoverse-n1": 28}),
    Loop("SDOT w4a8", "w4/tile_8x16c16_neondot", "sdot", 16, {"neoverse-n1": 0}),
)


def figures(folder: Path) -> Iterator[Figure]:
    """Counts, then models; a row without what it needs says what is missing."""
    yield from counts(folder)
    yield from models(folder)


def counts(folder: Path) -> Iterator[Figure]:
    try:
        program = build.build("aarch64", folder / "arm_layer", program=ROOT / "tests" / "benchmarks" / "arm_layer.cc")
        stock: dict[tuple[str, tuple[int, int, int, int]], int] = {}
        for family, cores, kept, goal in COUNTS:
            for core in cores:
                for shape in SHAPES:
                    if (core, shape) not in stock:
                        stock[core, shape] = stock_int8(core, shape)
                    ours = layer(program, core, family, shape, kept)
                    yield _count(core, family, shape, kept, goal, ours, stock[core, shape])
    except (CountError, build.BuildFailed) as error:
        yield Figure("instructions executed on emulated Arm cores", "", f"not counted: {error}", None)


def _count(
    core: str, family: str, shape: tuple[int, int, int, int], kept: int, goal: float | None, ours: int, stock: int
) -> Figure:
    size, channels, out_c, kernel = shape
    what = f"{core}, instructions: {family}{f' {100 - kept} % pruned' if kept < 100 else ''} conv"
    ratio = ours / stock
    return Figure(
        f"{what} {size}x{size}x{channels} k{kernel} to {out_c}, over XNNPACK int8",
        "" if goal is None else f"<= {goal:.3g}",
        f"{ratio:.3f} ({ours:,} / {stock:,})",
        None if goal is None else ratio <= goal,
    )


def layer(program: Path, core: str, family: str, shape: tuple[int, int, int, int], kept: int) -> int:
    """Instructions of one deploy_conv_run(), the library's own choice of variant."""
    arguments = [str(n) for n in (FAMILIES.index(family), *shape, kept)]
    before, after, empty = count.count_program(program, arguments, cpu=core)
    return (after.executed - before.executed) - (empty.executed - after.executed)


def stock_int8(core: str, shape: tuple[int, int, int, int]) -> int:
    """Instructions of one invocation of the layer in stock LiteRT, dense and 8 bits."""
    size, channels, out_c, kernel = shape
    rng = np.random.default_rng(0)
    model = SingleOp(
        "CONV_2D", (1, size, size, channels), (1, size, size, out_c),
        rng.integers(-127, 128, (out_c, kernel, kernel, channels)).astype(np.int8), np.zeros(out_c, np.int32),
        input=Quantization((0.05,), 3), output=Quantization((0.5,), -5), filter=Quantization((0.01,) * out_c),
    ).model()  # fmt: skip
    inputs = rng.integers(-128, 128, (1, size, size, channels)).astype(np.int8)
    return count.count_instructions(model, [inputs], cpu=core).instructions


def models(folder: Path) -> Iterator[Figure]:
    mca = next(
        (
            found
            for name in ("llvm-mca", *(f"llvm-mca-{n}" for n in range(22, 13, -1)))
            if (found := shutil.which(name))
        ),
        None,
    )
    if mca is None:
        yield Figure("llvm-mca's model of the inner loops", "", "not modelled: `sudo apt install llvm`", None)
        return
    version = re.search(
        r"LLVM version (\S+)", subprocess.run([mca, "--version"], capture_output=True, text=True).stdout
    )
    for loop in LOOPS:
        body = inner_loop(assembly(folder, loop.source), loop.counted)
        macs = loop.macs * sum(re.match(loop.counted, line) is not None for line in body)
        for core, goal in loop.goals.items():
            rate = macs / cycles(mca, core, body)
            yield Figure(
                f"{core}, llvm-mca: {loop.what} inner loop, {macs} MAC in {len(body)} instructions",
                f">= {goal} MAC/cycle" if goal else "",
                f"{rate:.2f} MAC/cycle (LLVM {version[1] if version else '?'})",
                rate >= goal if goal else None,
            )


def assembly(folder: Path, source: str) -> list[str]:
    """The file as the library's build compiles it, to assembly."""
    file = build.HERE / f"{source}.cc"
    flags = next(flags for found, flags in build.sources("aarch64") if found == file)
    out = folder / "loop.s"
    compiler = [sys.executable, "-m", "ziglang", "c++", *build.TARGETS["aarch64"], *build.COMPILE, *flags]
    command = [*compiler, "-Qunused-arguments", "-g0", f"-I{build.HERE}", "-S", str(file), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return out.read_text().splitlines()


def inner_loop(lines: list[str], counted: str) -> list[str]:
    """The instructions from a label to the branch back to it, of the loop with the most that match `counted`."""
    best: list[str] = []
    label = ""
    body: list[str] = []
    for line in lines:
        code = line.split("//")[0].strip()
        if named := re.fullmatch(r"(\.L\w+|\w+):", code):
            label, body = named[1], []
        elif code and not code.startswith("."):
            body.append(re.sub(r"\.L\w+", ".Lloop", code))
            back = re.search(r"(\.L\w+)$", code)
            if back and back[1] == label and _matching(body, counted) > _matching(best, counted):
                best = list(body)
    return best


def _matching(body: list[str], counted: str) -> int:
    return sum(re.match(counted, line) is not None for line in body)


def cycles(mca: str, core: str, body: list[str], iterations: int = 500) -> float:
    """Cycles of one iteration in the model of a core."""
    text = "\n".join([".arch armv8.2-a+dotprod", ".Lloop:", *body, ""])
    command = [mca, "-mtriple=aarch64", f"-mcpu={core}", f"-iterations={iterations}"]
    said = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    total = re.search(r"Total Cycles:\s+(\d+)", said)
    assert total, said
    return int(total[1]) / iterations
