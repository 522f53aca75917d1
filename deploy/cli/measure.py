"""`deploy measure`"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cli import common
from deploy.cli.live import Lines, Live

if TYPE_CHECKING:
    from deploy.bundle import Bundle
    from deploy.measure import Measured, Plan
    from deploy.results.store import RunWriter

F = TypeVar("F", bound=Callable[..., Any])


def parse_cpus(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """``0,2-3`` as numbers."""
    if text is None:
        return None
    cpus: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            cpus += range(int(first), int(last or first) + 1)
    except ValueError:
        cpus = []
    if not cpus or min(cpus) < 0 or max(cpus) > 4095:
        raise click.BadParameter(f"{text!r} is no list of CPUs such as 0 or 0,2-3", context, parameter)
    return tuple(sorted(set(cpus)))


def plan_options(function: F) -> F:
    """How to measure; `plan_from` reads them."""
    for option in reversed((
        click.option("--duration", default=10.0, show_default=True, type=common.Finite(0.01, 86_400),
                     help="Seconds, in all; with --until, at most."),
        click.option("--until", type=common.Share(0.002, 0.5), metavar="PERCENT",
                     help="Stop when the median is known as precisely as that (half of its 95 % interval)."),
        click.option("--restarts", default=3, show_default=True, type=click.IntRange(1, 100), help="Fresh processes."),
        click.option("--warmup", default=10.0, show_default=True, type=common.Finite(0, 3600),
                     help="Most seconds to warm up."),
        click.option("--idle", default=3.0, show_default=True, type=common.Finite(0.5, 3600),
                     help="Idle seconds, for energy."),
        click.option("--windows", default=5, show_default=True, type=click.IntRange(0, 1000),
                     help="Spans that energy is taken from, where there is a meter; 0 for none."),
        click.option("--window", default=10.0, show_default=True, type=common.Finite(0.1, 86_400),
                     help="Seconds of each of them."),
        click.option("--modelled", is_flag=True, help="Where there is no meter, say what a model says."),
        click.option("--rate", type=common.Finite(0.001, 1e6), metavar="HZ",
                     help="Start so many a second, whatever the board does, and count latency from the schedule."),
        click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024)),
        click.option("--pin", callback=parse_cpus, metavar="CPUS", help="Run on these CPUs alone, as in 0,2-3."),
        click.option("--signature", help="Measure this signature instead of the first subgraph."),
        common.limit_option,
    )):  # fmt: skip
        function = option(function)
    return function


def plan_from(options: dict[str, Any]) -> Plan:
    """The plan of `plan_options`; they are taken out of `options`."""
    from deploy.measure import Plan

    names = {"duration": "duration_s", "warmup": "warmup_max_s", "idle": "idle_s", "window": "window_s"}
    fields = {field.name for field in dataclasses.fields(Plan)}
    taken = {name: options.pop(name) for name in list(options) if names.get(name, name) in fields}
    return Plan(**{names.get(name, name): value for name, value in taken.items()})


@click.command(
    "measure",
    help="""
    Measure BUNDLE on a board: latency of one invocation, and energy where the board has a meter.

    Each of several fresh processes is warmed up until it is steady; then only the invocation is timed.  Every
    nanosecond and every power sample is stored; `deploy runs` and `deploy report` show them.

    Several bundles need --interleave: they take turns, process by process, and `deploy compare` sees the pairs.  With
    --strict the exit code is 1 unless the verdict is ok.  --json prints one line for each event.
    """
    + common.example(
        "deploy measure --board local net.bundle --duration 10",
        "deploy measure --board local net.bundle --until 1% --duration 60 --pin 1",
        "deploy measure --board local old.bundle new.bundle --interleave --restarts 10",
    ),
)
@common.any_board_name_option
@common.strict_host_key_option
@common.kernels_option
@click.argument("bundle_paths", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--interleave", is_flag=True, help="Let several bundles take turns.")
@click.option(
    "--count", is_flag=True, help="Also count an invocation's instructions, on an emulated core like the board's."
)
@click.option("--strict", is_flag=True, help="Exit with 1 unless every verdict is ok.")
@plan_options
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    /,
    board_name: str | None,
    bundle_paths: tuple[Path, ...],
    interleave: bool,
    count: bool,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> int:
    from deploy.errors import UsageError

    if len(bundle_paths) > 1 and not interleave:
        raise UsageError(
            f"{len(bundle_paths)} bundles", "`--interleave` lets them take turns; else measure them singly"
        )
    if interleave and len(bundle_paths) < 2:
        raise UsageError("--interleave needs two bundles or more")
    plan = plan_from(options)
    if interleave and plan.until:
        raise UsageError("--interleave and --until do not go together", "`--restarts N` makes N pairs")
    bundles = [common.read_bundle(path) for path in bundle_paths]
    outcomes = run(boards_file, board_name, bundles, plan, Lines if as_json else Live, count)
    for bundle, writer, measured in outcomes:
        board_name = writer.known()["board"]["name"]
        if as_json:
            result = {"run": writer.id, "board": board_name, "bundle": bundle.digest, **vars(measured)}
            if count:
                result["instructions"] = writer.known()["instructions"]
            common.show_line({"event": "result", **result})
        else:
            show(board_name, bundle.name, measured)
            if count:
                counted = writer.known()["instructions"]
                common.show(
                    f"count: {counted['instructions']:,} instructions of a {counted['cpu']}; {counted['method']}"
                )
            common.show(f"stored: {writer.id}")
    return 1 if strict and any(measured.verdict != ("ok",) for _, _, measured in outcomes) else 0


def run(
    boards_file: str | None,
    board_name: str | None,
    bundles: Sequence[Bundle],
    plan: Plan,
    watcher: type[Live] | type[Lines],
    count: bool = False,
) -> list[tuple[Bundle, RunWriter, Measured]]:
    """Bring the bundles to the board and measure them, in turns where there are several; each becomes a run."""
    from deploy.measure import Turn, interleave, measure
    from deploy.prepare import input_values

    with common.on_board(boards_file, board_name, bundles[0]) as on, contextlib.ExitStack() as stack:
        board_name = on.board.name
        if count:
            from deploy.virtual.count import cpu_of

            cpu_of(on.session.hello["identity"])  # refused now, and not after the measurement
        for other in bundles[1:]:
            common.bring(on.session, other)
        inputs = [input_values(on.session, bundle, plan) for bundle in bundles]
        writers = [
            stack.enter_context(dataclasses.replace(on, bundle=bundle).stored("measure", vars(plan)))
            for bundle in bundles
        ]
        live: Live | Lines = watcher(f"{' and '.join(bundle.name for bundle in bundles)} on {board_name}")
        stack.enter_context(live)
        if len(bundles) == 1:
            found = [measure(on.session, bundles[0].digest, inputs[0], plan, writers[0], bundles[0].name, live.update)]
        else:
            each = zip(bundles, inputs, writers, strict=True)
            turns = [Turn(bundle.digest, given, writer, bundle.name) for bundle, given, writer in each]
            found = interleave(on.session, turns, plan, live.update)
        if count:
            for bundle, given, writer in zip(bundles, inputs, writers, strict=True):
                writer.set(instructions=counted_on(on.session, bundle, given))
    return list(zip(bundles, writers, found, strict=True))


def counted_on(session: Any, bundle: Bundle, inputs: list[Any]) -> dict[str, Any]:
    """For the record: a count, and never a time."""
    from deploy.virtual.count import count_for

    return dataclasses.asdict(count_for(session.hello["identity"], bundle.model, inputs, session.kernels.mode))


def show(board: str, bundle: str, measured: Any) -> None:
    """The table that everybody reads."""
    latency = measured.latency
    d = common.duration
    table = common.new_table("", "", title=f"{bundle} on {board}")
    table.show_header = False
    simulated = "simulated" in measured.verdict
    if simulated and latency.min_ns == latency.max_ns:
        same = f"the same in all {latency.n:,} invocations"
        told = measured.accelerator
        beside = "; without what the CPU runs" if told["nodes"] < told["of"] else ""
        table.add_row("latency", f"simulated {d(latency.median_ns)}, {same}{beside}")
    else:
        interval = f" [{d(latency.low_ns)}, {d(latency.high_ns)}]  95 %" if latency.low_ns is not None else ""
        table.add_row("latency", f"median {d(latency.median_ns)}{interval}, n = {latency.n:,}")
        table.add_row("", f"min {d(latency.min_ns)}  {tail(latency)}  max {d(latency.max_ns)}")
    if measured.service:
        table.add_row("service", f"median {d(measured.service.median_ns)}; {measured.late_starts:,} starts came late")
    for line in accelerator_lines(measured.accelerator):
        table.add_row("accelerator", line)
    if simulated:
        table.add_row("runtime", measured.runtime)
    else:
        table.add_row("restarts", "medians " + ", ".join(d(m) for m in latency.restart_medians_ns))
        table.add_row("cold", f"load {d(measured.load_ns)}, first invocation {d(measured.first_ns)}")
        clock = f"reading the clock takes {measured.clock_overhead_ns} ns, included"
        table.add_row("runtime", f"{measured.runtime}; {clock}")
    table.add_row("verdict", ", ".join(measured.verdict))
    common.show_table(table)
    if measured.verdict != ("ok",):
        common.show(f"`deploy explain {measured.verdict[0]}` says what that means and what to do")
    for line in energy_lines(measured.energy, measured.unmetered):
        common.show("energy: " + line.replace("; ", "\n        "))


def accelerator_lines(told: Mapping[str, Any] | None) -> list[str]:
    """What a board told of its accelerator; movement apart, as its bus is beside the computation."""
    from deploy.accelerate import summary

    if not told:
        return []
    lines = [summary(told)]
    if told["why"]:
        return lines
    cycles, moved, simulated = sum(told["cycles"]), sum(told["bus_bytes"]), told["simulated"]
    at = f" at {simulated['clock_hz'] / 1e6:g} MHz" if simulated else ""
    lines.append(f"{cycles:,} cycles an invocation{at}")
    if simulated:
        rate = simulated["bytes_per_cycle"] * simulated["clock_hz"]
        lines.append(
            f"{moved:,} bytes moved beside them: {common.duration(moved / rate * 1e9)} at {rate / 1e6:g} MB/s, "
            f"{simulated['latency_cycles']} cycles until memory answers"
        )
    else:
        lines.append(f"{moved:,} bytes moved beside them")
    return lines


def tail(latency: Any) -> str:
    """Percentiles, each with what it does not exceed (95 %, one-sided); those that n does not support are not given."""
    d = common.duration
    parts = []
    for name, value, bound in (
        ("p90", latency.p90_ns, latency.p90_bound_ns),
        ("p95", latency.p95_ns, latency.p95_bound_ns),
        ("p99", latency.p99_ns, latency.p99_bound_ns),
        ("p99.9", latency.p999_ns, latency.p999_bound_ns),
    ):
        if value is None:
            parts.append(f"{name} n/a (n = {latency.n})")
        else:
            parts.append(f"{name} {d(value)}" + (f" (<= {d(bound)})" if bound is not None else ""))
    return "  ".join(parts)


def energy_lines(entries: Any, unmetered: str | None) -> list[str]:
    """One line for each rail; what is missing is said, never zero."""
    if unmetered:
        return [f"not measured ({unmetered})"]
    lines = []
    for entry in entries:
        if hasattr(entry, "reason"):
            lines.append(f"{entry.rail}: not measured ({entry.reason})")
            continue
        net = "net n/a (no idle baseline)"
        if entry.net_uj is not None:
            net = f"net {_with_error(entry.net_uj, entry.net_u_uj)}"
        idle = f"idle {entry.idle_mw / 1000:.4g} W, " if entry.idle_mw is not None else ""
        said = [f"{net}, gross {_with_error(entry.gross_uj, entry.gross_u_uj)} per invocation (k = 2)"]
        said.append(f"{idle}active {entry.active_mw / 1000:.4g} W")
        windows = f", {entry.windows} windows" if entry.windows else ""
        each = getattr(entry, "window_net_uj", ())
        windows += f" of {common.energy(min(each))} to {common.energy(max(each))}" if len(each) > 1 else ""
        said.append(f"{entry.source} ({entry.scope}){windows}")
        rejected, codes = getattr(entry, "rejected", ()), getattr(entry, "codes", ())
        if rejected:
            said.append("rejected " + ", ".join(f"window {n} ({' '.join(why)})" for n, why in rejected))
        if codes:
            said.append(", ".join(codes))
        if getattr(entry, "unstated", ()):
            said.append(f"not in the error: {', '.join(entry.unstated)}")
        lines.append("; ".join(said))
    return lines


def _with_error(value_uj: float, error_uj: float | None) -> str:
    if error_uj is None:
        return f"{common.energy(value_uj)} (error unknown: fewer than three windows)"
    return f"{common.energy(value_uj)} +-{common.energy(error_uj)}"
