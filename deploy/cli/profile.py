"""`deploy profile`"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli import common
from deploy.cli.live import Lines, Live
from deploy.cli.measure import parse_cpus

if TYPE_CHECKING:
    from deploy.bundle import Bundle
    from deploy.profile import Profile
    from deploy.virtual.count import Count


@click.command(
    "profile",
    help="""
    Show what each operator of BUNDLE takes on a board.

    The board cuts the model after every operator and times the cuts in turns; an operator's time is the difference of
    neighbours, with its 95 % interval.  The sum of all is compared with the untouched model.  --count counts the
    instructions of each operator on an emulated Arm core instead, which needs no board.
    """
    + common.example(
        "deploy profile --board local net.bundle", "deploy profile net.bundle --count --cpu a76 --group 4"
    ),
)
@common.any_board_option
@common.kernels_option
@common.bundle_argument
@click.option("--duration", default=10.0, show_default=True, type=common.Finite(0.01, 86_400), help="Seconds, in all.")
@click.option("--restarts", default=5, show_default=True, type=click.IntRange(1, 100), help="Fresh processes.")
@click.option("--group", default=1, show_default=True, type=click.IntRange(1, 100_000), help="Operators told together.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@click.option("--pin", callback=parse_cpus, metavar="CPUS", help="Run on these CPUs alone, as in 0,2-3.")
@click.option("--count", is_flag=True, help="Count instructions on an emulated core.")
@click.option("--cpu", default="a53", show_default=True, help="For --count.")
@common.limit_option
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    board_name: str | None,
    bundle_path: Path,
    duration: float,
    restarts: int,
    group: int,
    threads: int,
    pin: tuple[int, ...] | None,
    count: bool,
    cpu: str,
    limit_s: float | None,
    as_json: bool,
) -> None:
    from deploy.measure import Plan
    from deploy.prepare import input_values
    from deploy.profile import profile

    bundle = common.read_bundle(bundle_path)
    if count:
        _count(bundle, cpu, group, as_json)
        return
    settings = {"duration_s": duration, "restarts": restarts, "group": group, "threads": threads, "pin": pin}
    watcher = Lines if as_json else Live
    with common.on_board(boards_file, board_name, bundle) as on:
        board_name = on.board.name
        inputs = input_values(on.session, bundle, Plan())
        with on.stored("profile", settings) as writer, watcher(f"{bundle.name} on {board_name}") as live:
            found = profile(
                on.session, bundle.digest, bundle.model, inputs, writer, duration_s=duration, restarts=restarts,
                group=group, threads=threads, pin=pin, limit_s=limit_s, subject=bundle.name, watch=live.update,
            )  # fmt: skip
    if as_json:
        common.show_line({"event": "result", "run": writer.id, "board": board_name, "bundle": bundle.digest,
                          **vars(found)})  # fmt: skip
        return
    show(f"{bundle.name} on {board_name}", found)
    common.show(f"stored: {writer.id}")


def show(title: str, found: Profile) -> None:
    """The table that everybody reads."""
    from deploy.cli.measure import accelerator_lines

    d = common.duration
    table = common.new_table("op", "operator", "time", "95 %", "share", "run by", title=title,
                             right=("op", "time", "share"))  # fmt: skip
    for op in found.ops:
        number = str(op.first) if op.first == op.last else f"{op.first}-{op.last}"
        interval = "n/a" if op.low_ns is None or op.high_ns is None else f"{d(op.low_ns)} to {d(op.high_ns)}"
        if op.low_ns is not None and not op.certain:
            interval += "  not told from 0"
        table.add_row(number, ", ".join(op.names), d(op.time_ns), interval, f"{op.share:.1%}", op.kernel or "unknown")
    common.show_table(table)
    common.show(f"invocation without operators {d(found.overhead_ns)}, with all {d(found.sum_ns)}")
    interval = ""
    if found.whole_low_ns is not None and found.whole_high_ns is not None:
        interval = f" [{d(found.whole_low_ns)}, {d(found.whole_high_ns)}]"
    common.show(f"untouched model {d(found.whole_ns)}{interval}: the sum differs by {found.gap:+.2%}")
    for line in accelerator_lines(found.accelerator):
        common.show(f"accelerator: {line}")
    if found.refused:
        common.show(f"{len(found.refused)} cuts were refused by the runtime, their operators told with the next")


def _library(cpu: str, folder: Path) -> Path | None:
    """Our kernels for that core, in a file; None where they are off, or cannot be built and were not asked for."""
    from deploy.errors import KernelsMissing
    from deploy.kernels import library_for
    from deploy.virtual.count import core_named

    mode = common.kernels_mode()
    if mode == "off":
        return None
    machine = core_named(cpu).machine
    try:
        library = library_for({"machine": machine, "pointer_bits": 32 if machine == "armv7l" else 64}, common.note)
    except KernelsMissing as error:
        if mode != "auto":
            raise
        common.note(f"without our kernels: {error}")
        return None
    path = folder / "libdeploy_kernels.so"
    path.write_bytes(library)
    return path


def _count(bundle: Bundle, cpu: str, group: int, as_json: bool) -> None:
    """Instructions of each operator, as differences of neighbouring cuts."""
    import numpy as np

    from deploy.data import random_inputs
    from deploy.errors import BuildError, DeployError
    from deploy.model_file import operator_names
    from deploy.prepare import golden_inputs
    from deploy.virtual.count import count_models
    from devices.protocol.cut import CutError, Graph

    try:
        graph = Graph(bundle.model)
        models = [(cut, graph.cut(cut)) for cut in graph.cuts(group)]
    except CutError as error:
        raise BuildError(f"{bundle.name}: {error}") from None
    inputs: list[Any] = random_inputs(bundle.manifest.inputs, 1, bundle.manifest.seed)[0]
    if bundle.manifest.golden:
        inputs = golden_inputs(bundle)
    with tempfile.TemporaryDirectory(prefix="deploy-profile-") as folder:
        library = _library(cpu, Path(folder))
        options = {"mode": common.kernels_mode()} if library else None
        found = count_models([(model, inputs) for _, model in models], cpu, library, options)
    names = operator_names(bundle.model, bundle.name)
    counted: list[tuple[int, Count]] = []
    for (cut, _), outcome in zip(models, found, strict=True):
        if isinstance(outcome, DeployError):
            if cut == len(names):
                raise outcome
        else:
            counted.append((cut, outcome))
    rows: list[dict[str, Any]] = [
        {"first": before, "last": after - 1, "names": names[before:after],
         "instructions": later.instructions - earlier.instructions}
        for (before, earlier), (after, later) in itertools.pairwise(counted)
    ]  # fmt: skip
    whole = counted[-1][1]
    if as_json:
        common.show_json({"cpu": whole.cpu, "method": whole.method, "runtime": whole.runtime, "ops": rows,
                          "whole": whole.instructions, "overhead": counted[0][1].instructions})  # fmt: skip
        return
    title = f"{bundle.name} on an emulated {whole.cpu}"
    columns = ("op", "operator", "instructions", "share")
    table = common.new_table(*columns, title=title, right=("op", "instructions", "share"))
    total = int(np.sum([row["instructions"] for row in rows])) or 1
    for row in rows:
        number = str(row["first"]) if row["first"] == row["last"] else f"{row['first']}-{row['last']}"
        table.add_row(number, ", ".join(row["names"]), f"{row['instructions']:,}", f"{row['instructions'] / total:.1%}")
    common.show_table(table)
    ours = "with our kernels" if whole.kernels else "without our kernels"
    common.show(f"{whole.instructions:,} instructions in all, {ours}; {whole.method}, {whole.runtime}")
