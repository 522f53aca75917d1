"""`deploy accelerate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli import common

if TYPE_CHECKING:
    from deploy.fpga.compiler import Compiled
    from deploy.fpga.trial import Trial


@click.command(
    "accelerate",
    help="""
    Compile a .tflite or a bundle for the integer accelerator of PYNQ boards, and say for each node who runs it and why.

    With --simulate it runs here, on the accelerator's own RTL under Verilator: cycles are exact for that RTL and a bus
    of 8 bytes a cycle, times are cycles at --clock.  No board is involved.
    """
    + common.example("deploy accelerate net.tflite", "deploy accelerate --simulate -o net.accelerated net.bundle"),
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Write what a board needs.")
@click.option("--stream", is_flag=True, help="Bring the weights anew in each invocation, though they fit the chip.")
@click.option("--simulate", is_flag=True, help="Run it on the RTL, with random values.")
@click.option("--clock", default=100.0, show_default=True, type=click.FloatRange(1, 1000), help="MHz, for times.")
@click.option(
    "--latency", default=40, show_default=True, type=click.IntRange(0, 10_000), help="Cycles until memory answers."
)
@common.json_option
def command(
    path: Path, output: Path | None, stream: bool, simulate: bool, clock: float, latency: int, as_json: bool
) -> None:
    from deploy.errors import BundleError
    from deploy.fpga.compiler import compile_model
    from deploy.fpga.package import package

    try:
        data = path.read_bytes() if path.suffix.lower() == ".tflite" else common.read_bundle(path).model
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    packed = package(data, path.name, stream)
    compiled = compile_model(data, path.name, stream or sum(step["kind"] == "pl" for step in packed.steps) > 1)
    trials = _try(compiled, latency) if simulate else None
    if output:
        try:
            output.write_bytes(packed.encode())
        except OSError as error:
            raise BundleError(f"{output}: {error.strerror}") from None
    if as_json:
        facts = {"clock_mhz": clock, "latency_cycles": latency, "source": "simulated:verilator"} if trials else None
        common.show_json({"model": path.name, "nodes": compiled.placements, "trials": trials, "simulation": facts})
        return
    table = common.new_table("node", "operator", "runs on", "why", right=("node",))
    for place in compiled.placements:
        where = "CPU" if place.segment is None else f"accelerator, part {place.segment + 1}"
        table.add_row(str(place.node), place.op, where, place.reason)
    common.show_table(table)
    for segment, trial in zip(compiled.segments, trials or [], strict=False):
        common.show(_line(trial, clock, segment.resident))
    if output:
        common.show(f"{output}: {common.size(output.stat().st_size)}")


def _try(compiled: Compiled, latency: int) -> list[Trial]:
    from deploy.fpga import trial
    from deploy.fpga.simulator import Bus

    return trial.run(compiled, Bus(latency=latency))


def _line(trial: Trial, clock: float, resident: bool) -> str:
    proof = "outputs equal the model's bit for bit" if trial.exact else "OUTPUTS DIFFER FROM THE MODEL'S"
    weights = f"weights stay, brought once in {trial.prepare_cycles:,}" if resident else "weights come each time"
    return (
        f"simulated: {trial.cycles:,} cycles, {trial.cycles / clock:.1f} us at {clock:g} MHz; {trial.share:.1%} of the "
        f"peak; {trial.bus_bytes:,} bytes moved; {weights}; {proof}"
    )
