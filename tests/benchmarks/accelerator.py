"""The PYNQ accelerator on its own RTL: cycles are exact, times are cycles at 100 MHz; no silicon is involved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.build import build
from deploy.fpga import trial
from deploy.fpga.compiler import compile_model
from deploy.fpga.simulator import Bus, library, verilator
from tests.benchmarks.figure import Figure
from tests.conftest import CORPUS


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        source: a model of the corpus, or one of the zoo.
        recipe: that a model of the zoo is built by.  Its weights are random: cycles do not depend on them.
        goal: cycles with the weights on the chip.
        beside: what others need on the same chip.
    """

    name: str
    source: str
    goal: int | None = None
    recipe: str = ""
    beside: str = ""


RESNET = "ResNet-8"
CASES = (
    Case(RESNET, "tiny_ic_resnet8_int8", 41_000, beside="fpgaConvNet, one bitstream a model: 411 us at 143 MHz"),
    Case("DS-CNN", "tiny_kws_dscnn_int8", 20_000, beside="fpgaConvNet: 324 us at 143 MHz"),
    Case("MobileNetV1-0.25 VWW", "tiny_vww_mobilenetv1_int8", 150_000, beside="fpgaConvNet: 9,490 us at 111 MHz"),
    Case("AD autoencoder", "tiny_ad_autoencoder_int8", 12_000),
    Case("CNV, binary", "zoo:cnv", 60_000, "binary+epochs:1", "FINN: 1,510 us"),
    Case("ResNet-8, w4a8", "zoo:resnet8", recipe="w4a8"),
    Case("AD autoencoder, w4a8 in all layers", "zoo:ad_autoencoder", recipe="w4a8+edges:same"),
)
MHZ = 100
SHARE = 0.75


def figures(folder: Path) -> Iterator[Figure]:
    """Every network with its weights on the chip, and with weights that come anew."""
    if verilator() is None:
        yield Figure("PYNQ accelerator, simulated", "", "not measured: needs Verilator", None)
        return
    library()  # built before anything is timed
    for case in CASES:
        model = _model(case, folder)
        goal = f"<= {case.goal:,} cycles" if case.goal else ""
        if model is None:
            yield Figure(f"{case.name}, simulated", goal, "not measured: no corpus", None)
            continue
        for stream in (False, True):
            compiled = compile_model(model, case.name, stream)
            started = time.process_time()
            trials = trial.run(compiled, Bus())
            took = time.process_time() - started
            cycles, moved = sum(t.cycles for t in trials), sum(t.bus_bytes for t in trials)
            share = sum(t.peak_cycles for t in trials) / cycles
            weights = "weights come each time" if stream else "weights on the chip"
            exact = all(t.exact for t in trials)
            result = f"{cycles:,} cycles, {cycles / MHZ:.0f} us at {MHZ} MHz, {share:.1%} of the peak, {moved:,} bytes"
            result += "" if exact else ", NOT WHAT THE MODEL ANSWERS"
            met = None if stream or case.goal is None else cycles <= case.goal and exact
            yield Figure(f"{case.name}, simulated, {weights}", goal, result, met)
            if not stream and case.name == RESNET:
                yield Figure("  its share of the peak", f">= {SHARE:.0%}", f"{share:.1%}", share >= SHARE)
                yield Figure(
                    "  simulating it, with its weights and the model in numpy",
                    "< 2 s",
                    f"{took:.2f} s of CPU time",
                    took < 2,
                )
        if case.beside:
            yield Figure("  beside it, on the same chip", "", case.beside, None)


def _model(case: Case, folder: Path) -> bytes | None:
    """None where the corpus is not here."""
    if not case.recipe:
        path = CORPUS / "models" / f"{case.source}.tflite"
        return path.read_bytes() if path.is_file() else None
    rng = np.random.default_rng(0)
    data = folder / f"{case.source.partition(':')[2]}.npz"
    if case.source == "zoo:ad_autoencoder":
        np.savez(data, x=rng.normal(size=(64, 640)).astype(np.float32))
    else:
        x, y = rng.normal(size=(80, 32, 32, 3)).astype(np.float32), rng.integers(0, 10, 80)
        np.savez(data, x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    return build(case.source, name="bench", recipe=case.recipe, data=str(data), vectors=0).bundle.model
