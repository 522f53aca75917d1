"""`deploy measure`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from deploy.cli import common


@click.command(
    "measure",
    help="""
    Measure BUNDLE on a board: latency of one invocation, and energy where the board has a meter.

    Each of several fresh processes is warmed up until it is steady; then only the invocation is timed.  Every
    nanosecond and every power sample is stored; `deploy runs` and `deploy report` show them.
    """
    + common.example("deploy measure --board local net.bundle --duration 10"),
)
@common.board_option
@common.bundle_argument
@click.option("--duration", default=10.0, show_default=True, type=common.Finite(0.01, 86_400), help="Seconds, in all.")
@click.option("--restarts", default=3, show_default=True, type=click.IntRange(1, 100), help="Fresh processes.")
@click.option("--warmup", default=10.0, show_default=True, type=common.Finite(0, 3600), help="Most seconds to warm up.")
@click.option("--idle", default=3.0, show_default=True, type=common.Finite(0.5, 3600), help="Idle seconds, for energy.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@click.option("--signature", help="Measure this signature instead of the first subgraph.")
@common.limit_option
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    board_name: str,
    bundle_path: Path,
    duration: float,
    restarts: int,
    warmup: float,
    idle: float,
    threads: int,
    signature: str | None,
    limit_s: float | None,
    as_json: bool,
) -> None:
    from deploy.measure import Plan, measure

    bundle = common.read_bundle(bundle_path)
    plan = Plan(
        duration_s=duration,
        restarts=restarts,
        warmup_max_s=warmup,
        idle_s=idle,
        threads=threads,
        signature=signature,
        limit_s=limit_s,
    )
    with common.on_board(boards_file, board_name, bundle) as on:
        inputs = _inputs(on.session, bundle, plan)
        with on.stored("measure", vars(plan)) as writer, common.progress_bar(board_name) as bar:
            live = Live(bar)
            measured = measure(on.session, bundle.digest, inputs, plan, writer, bundle.name, live.update)
    if as_json:
        common.show_json({"run": writer.id, "board": board_name, "bundle": bundle.digest, **vars(measured)})
        return
    show(board_name, bundle.name, measured)
    common.show(f"stored: {writer.id}")


class Live:
    """Median and count so far, for the eyes."""

    def __init__(self, bar: common.Progress) -> None:
        self._bar = bar
        self._ticker = common.Ticker()
        self._count = 0
        self._recent: Any = None
        self._doing = ""

    def update(self, doing: str, latencies: Any) -> None:
        if doing != self._doing:
            self._doing = doing
            self._bar.note(doing)
        if len(latencies):
            self._count += len(latencies)
            self._recent = latencies
        if self._recent is not None and self._ticker():
            import numpy as np

            self._bar.info(f"{self._count:,} invocations, median {common.duration(float(np.median(self._recent)))}")


def _inputs(session: Any, bundle: Any, plan: Any) -> list[Any]:
    """The first golden input, so that what is measured is what was proven; random values where there is none."""
    import io

    import numpy as np

    from deploy import inference
    from deploy.data import random_inputs

    manifest = bundle.manifest
    if manifest.golden and plan.signature is None:
        with np.load(io.BytesIO(bundle.files["golden.npz"]), allow_pickle=False) as golden:
            return [golden[f"v0.in{i}"] for i in range(len(manifest.inputs))]
    model = inference.load(session, bundle=bundle.digest, signature=plan.signature, subject=bundle.name)
    inference.unload(session, bundle.name)
    return random_inputs(model.inputs, 1, manifest.seed)[0]


def show(board: str, bundle: str, measured: Any) -> None:
    """The table that everybody reads."""
    latency = measured.latency
    d = common.duration
    table = common.new_table("", "", title=f"{bundle} on {board}")
    table.show_header = False
    interval = f" [{d(latency.low_ns)}, {d(latency.high_ns)}]" if latency.low_ns is not None else ""
    table.add_row("latency", f"median {d(latency.median_ns)}{interval}  95 %, n = {latency.n:,}")
    tail = [
        f"p{p} " + (d(value) if value is not None else f"n/a (n = {latency.n})")
        for p, value in ((90, latency.p90_ns), (95, latency.p95_ns), (99, latency.p99_ns))
    ]
    table.add_row("", f"min {d(latency.min_ns)}  {'  '.join(tail)}  max {d(latency.max_ns)}")
    table.add_row("restarts", "medians " + ", ".join(d(m) for m in latency.restart_medians_ns))
    table.add_row("cold", f"load {d(measured.load_ns)}, first invocation {d(measured.first_ns)}")
    table.add_row("runtime", f"{measured.runtime}; reading the clock takes {measured.clock_overhead_ns} ns, included")
    table.add_row("verdict", ", ".join(measured.verdict))
    common.show_table(table)
    for line in energy_lines(measured.energy, measured.unmetered):
        common.show(f"energy: {line}")


def energy_lines(entries: Any, unmetered: str | None) -> list[str]:
    """One line for each rail; what is missing is said, never zero."""
    if unmetered:
        return [f"not measured ({unmetered})"]
    e = common.energy
    lines = []
    for entry in entries:
        if hasattr(entry, "reason"):
            lines.append(f"{entry.rail}: not measured ({entry.reason})")
            continue
        gross = f"gross {e(entry.gross_uj)}" + (f" +-{e(entry.gross_u_uj)}" if entry.gross_u_uj is not None else "")
        net = "net n/a (no idle baseline)"
        if entry.net_uj is not None:
            net = f"net {e(entry.net_uj)}" + (f" +-{e(entry.net_u_uj)}" if entry.net_u_uj is not None else "")
        idle = f"idle {entry.idle_mw / 1000:.4g} W, " if entry.idle_mw is not None else ""
        lines.append(
            f"{net}, {gross} per invocation (k = 2, repetition only); {idle}active {entry.active_mw / 1000:.4g} W; "
            f"{entry.source} ({entry.scope}), {entry.windows} windows"
        )
    return lines
