"""The PYNQ accelerator on its own RTL: cycles are exact, times are cycles at 100 MHz; no silicon is involved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from deploy.fpga import isa, trial
from deploy.fpga.compiler import compile_model
from deploy.fpga.simulator import Bus, library, verilator
from tests.benchmarks.figure import Figure
from tests.conftest import CORPUS

NETWORKS = {
    "tiny_ic_resnet8_int8": ("ResNet-8", 41_000, "fpgaConvNet, one bitstream a model: 411 us at 143 MHz"),
    "tiny_kws_dscnn_int8": ("DS-CNN", 20_000, "fpgaConvNet: 324 us at 143 MHz"),
    "tiny_vww_mobilenetv1_int8": ("MobileNetV1-0.25 VWW", 150_000, "fpgaConvNet: 9,490 us at 111 MHz"),
    "tiny_ad_autoencoder_int8": ("AD autoencoder", 12_000, ""),
}
MHZ = 100
SHARE = 0.75


def figures(folder: Path) -> Iterator[Figure]:
    """Every network with its weights on the chip, and with weights that come anew."""
    if verilator() is None:
        yield Figure("PYNQ accelerator, simulated", "", "not measured: needs Verilator", None)
        return
    library()  # built before anything is timed
    for file, (name, goal, beside) in NETWORKS.items():
        path = CORPUS / "models" / f"{file}.tflite"
        if not path.is_file():
            yield Figure(f"{name}, simulated", f"<= {goal:,} cycles", "not measured: no corpus", None)
            continue
        for stream in (False, True):
            compiled = compile_model(path.read_bytes(), file, stream)
            started = time.process_time()
            trials = trial.run(compiled, Bus())
            took = time.process_time() - started
            cycles, macs = sum(t.cycles for t in trials), sum(t.macs for t in trials)
            share = macs / (cycles * isa.PIXELS * isa.CHANNELS * isa.DEPTH)
            weights = "weights come each time" if stream else "weights on the chip"
            exact = "" if all(t.exact for t in trials) else ", NOT WHAT THE MODEL ANSWERS"
            result = f"{cycles:,} cycles, {cycles / MHZ:.0f} us at {MHZ} MHz, {share:.1%} of the peak{exact}"
            met = cycles <= goal and not exact
            yield Figure(f"{name}, simulated, {weights}", f"<= {goal:,} cycles", result, None if stream else met)
            if not stream and name == "ResNet-8":
                yield Figure("  its share of the peak", f">= {SHARE:.0%}", f"{share:.1%}", share >= SHARE)
                yield Figure(
                    "  simulating it, with its weights and the model in numpy",
                    "< 2 s",
                    f"{took:.2f} s of CPU time",
                    took < 2,
                )
        if beside:
            yield Figure("  beside it, on the same chip", "", beside, None)
