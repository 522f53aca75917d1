"""`deploy farm`"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cli import common

if TYPE_CHECKING:
    from rich.console import RenderableType

    from deploy.boards import Registry
    from deploy.farm.cells import Cell
    from deploy.farm.plan import Plan
    from deploy.farm.runner import Engine, Runner
    from deploy.results.store import Store

F = TypeVar("F", bound=Callable[..., Any])

ROWS = 24  # of the live table; what runs and what failed stands first
_SHOWN_FIRST = ("running", "failed", "building", "waiting", "done", "known")


@click.group("farm", help="Run plans on many boards." + common.example("deploy farm run plan.yaml"))
def command() -> None:
    pass


def _scheduler_option(function: F) -> F:
    return click.option(
        "--scheduler", metavar="ADDRESS", envvar="DEPLOY_SCHEDULER",
        help="Use the boards of the gateways there, as in tls://lab-host:8786 [this machine's alone].",
    )(function)  # fmt: skip


def _keys_option(function: F) -> F:
    return click.option(
        "--keys", "folder", metavar="DIR", type=click.Path(path_type=Path), default="farm-keys", show_default=True,
        help="Certificates of `deploy farm keys`.",
    )(function)  # fmt: skip


@command.command(
    "run",
    help="""
    Measure every cell of PLAN: each bundle on each choice of boards with each setting.

    What has been measured already is not measured again, so a plan that was stopped (Ctrl-C) goes on when it is run
    again.  A cell whose board fails goes to another board of its kind.  The exit code is 1 if a cell failed.
    """
    + common.example("deploy farm run plan.yaml", "deploy farm run plan.yaml --check"),
)
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--again", is_flag=True, help="Measure also what has been measured already.")
@click.option("--check", is_flag=True, help="Say what would be done, and do nothing.")
@_scheduler_option
@_keys_option
@common.strict_option
@common.json_option
@click.pass_obj
def run(
    boards_file: str | None,
    plan_path: Path,
    again: bool,
    check: bool,
    scheduler: str | None,
    folder: Path,
    as_json: bool,
) -> int:
    from deploy.farm import plan as plans
    from deploy.farm.cells import matrix

    plan = plans.load(plan_path)
    registry = common.registry(boards_file)
    store = common.store_of(registry)
    engine = _cluster(scheduler, folder, store) if scheduler else _here(registry)
    try:
        cells = matrix(plan, engine.boards(), engine.seen())
        if check:
            return _check(plan, cells, as_json)
        return _run(plan, cells, engine, registry, again, as_json)
    finally:
        engine.close()


def _run(plan: Plan, cells: list[Cell], engine: Engine, registry: Registry, again: bool, as_json: bool) -> int:
    from deploy.farm.builder import Builder
    from deploy.farm.live import Publisher
    from deploy.farm.runner import Runner
    from deploy.paths import farm_file

    publisher = Publisher(farm_file(registry.state_dir).parent)
    with _Table(plan) as table:

        def watch(runner: Runner) -> None:
            publisher(runner)
            table.update(runner)

        runner = Runner(plan, cells, engine, Builder(plan), common.store_of(registry), again, watch)
        try:
            runner.run()
        finally:
            publisher.close()
    return _show(runner, as_json)


def _cluster(scheduler: str, folder: Path, store: Store) -> Engine:
    """The boards of all gateways."""
    _need_dask()
    from deploy.farm import keys
    from deploy.farm.cluster import Cluster

    return Cluster(keys.address(scheduler), folder, store)


def _need_dask() -> None:
    import importlib.util

    if importlib.util.find_spec("distributed") is None:
        from deploy.errors import FarmError

        raise FarmError("boards of other hosts need dask and distributed", "`pip install 'deploy-hil[farm]'`")


@command.command(
    "keys",
    help="""
    Make the certificates that hosts of a farm show each other, in a folder.

    Every host needs ca.pem and its own role's two files: scheduler, gateway, or client for who runs plans.
    """
    + common.example("deploy farm keys", "deploy farm keys --renew --days 90"),
)
@_keys_option
@click.option("--days", default=365, show_default=True, type=click.IntRange(1, 3650), help="How long they hold.")
@click.option("--renew", is_flag=True, help="New certificates by the authority that is there.")
def keys_(folder: Path, days: int, renew: bool) -> None:
    from deploy.farm import keys

    for path in keys.make(folder, days, renew):
        common.show(str(path))


@command.command(
    "serve",
    help="""
    Be the scheduler that gateways and plans meet at, until Ctrl-C.

    It keeps nothing: killed and started again, it goes on.
    """
    + common.example("deploy farm serve --listen tls://0.0.0.0:8786"),
)
@click.option("--listen", default="tls://0.0.0.0:8786", show_default=True, metavar="ADDRESS")
@_keys_option
def serve(listen: str, folder: Path) -> None:
    _need_dask()
    from deploy.farm import keys
    from deploy.farm.serve import serve as serve_

    serve_(keys.address(listen), folder, lambda where: common.note(f"scheduler at {where}"))


@command.command(
    "gateway",
    help="""
    Offer this machine's boards to plans that run elsewhere, until Ctrl-C.

    Boards are those of boards.yaml (`deploy --boards FILE farm gateway`).  A scheduler that goes is waited for; what
    was measured meanwhile is kept until a plan has it.
    """
    + common.example("deploy farm gateway --scheduler tls://lab-host:8786"),
)
@_scheduler_option
@_keys_option
@click.option("--name", metavar="NAME", help="What plans call this gateway [the host's name].")
@common.strict_option
@click.pass_obj
def gateway(boards_file: str | None, scheduler: str | None, folder: Path, name: str | None) -> None:
    _need_dask()
    from deploy.errors import UsageError
    from deploy.farm import gateway as gateways
    from deploy.farm import keys

    if scheduler is None:
        raise UsageError("which scheduler?", "`--scheduler tls://lab-host:8786`, or $DEPLOY_SCHEDULER")
    registry = common.registry(boards_file)
    held = common.store_of(registry).root / "gateway"
    ours = gateways.Gateway(registry, name or gateways.default_name(), held, common.is_strict())
    gateways.run(ours, keys.address(scheduler), folder, common.note)


@command.command(
    "status",
    help="""Show the gateways of a scheduler.""" + common.example("deploy farm status --scheduler tls://lab-host:8786"),
)
@_scheduler_option
@_keys_option
@common.json_option
@click.pass_obj
def status(boards_file: str | None, scheduler: str | None, folder: Path, as_json: bool) -> None:
    from deploy.errors import UsageError

    if scheduler is None:
        raise UsageError("which scheduler?", "`deploy boards status` shows the boards of this machine")
    cluster: Any = _cluster(scheduler, folder, common.store_of(common.registry(boards_file)))
    try:
        gateways, pulses = cluster.gateways(), cluster.pulses()
    finally:
        cluster.close()
    if as_json:
        common.show_json({"gateways": gateways, "running": pulses})
        return
    table = common.new_table("gateway", "boards", "runs", "last heard of", right=("boards", "runs"))
    for each in gateways:
        running = sum(board in pulses for board in each["boards"])
        heard = each["refused"] or f"{each['last_seen_s']:.0f} s ago"
        table.add_row(each["gateway"], str(len(each["boards"])), str(running), heard)
    common.show_table(table)


@command.command(
    "dashboard",
    help="""
    Show boards, queue, what runs and what was measured as a web page, until Ctrl-C.

    On this machine alone, unless --host says otherwise; then it prints an address with a token, and asks for it.
    Behind that there is no encryption: use a tunnel, or a proxy that has it.
    """
    + common.example("deploy farm dashboard", "deploy farm dashboard --host 0.0.0.0 --port 8700"),
)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="To listen on.")
@click.option("--port", default=8700, show_default=True, type=click.IntRange(0, 65535))
@_scheduler_option
@_keys_option
@click.pass_obj
def dashboard(boards_file: str | None, host: str, port: int, scheduler: str | None, folder: Path) -> None:
    import importlib.util

    from deploy.errors import FarmError

    for module in ("starlette", "uvicorn", "jinja2"):
        if importlib.util.find_spec(module) is None:
            raise FarmError(f"the dashboard needs {module}", "`pip install 'deploy-hil[farm]'`")
    from deploy.cli.runs import summary
    from deploy.farm.dashboard.app import Dashboard
    from deploy.farm.dashboard.server import serve as serve_pages
    from deploy.farm.dashboard.view import View

    registry = common.registry(boards_file)
    store = common.store_of(registry)
    far: Any = _cluster(scheduler, folder, store) if scheduler else None
    view = View(registry, store, far)
    try:
        serve_pages(Dashboard(view, summary), host, port, common.show)
    finally:
        view.close()
        if far:
            far.close()


def _here(registry: Registry) -> Engine:
    """The boards of this machine."""
    from deploy.farm.here import Here

    return Here(registry, common.store_of(registry), common.is_strict())


def _check(plan: Plan, cells: list[Cell], as_json: bool) -> int:
    if as_json:
        common.show_json([vars(cell) for cell in cells])
        return 0
    for cell in cells:
        common.show(f"{cell.id}  on {' or '.join(cell.boards)}")
    built = sum(entry.model is not None for entry in plan.bundles.values())
    common.note(f"{len(cells)} cells; {built} of {len(plan.bundles)} bundles to build")
    return 0


def _show(runner: Runner, as_json: bool) -> int:
    states = runner.states.values()
    failed = [state for state in states if state.state == "failed"]
    if as_json:
        common.show_json(runner.told())
        return 1 if failed else 0
    for error, hint in dict.fromkeys((state.error, state.hint) for state in failed):
        same = [state.cell.id for state in failed if state.error == error]
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        common.note(f"error: {same[0]}{more}: {error}" + (f"\nhint:  {hint}" if hint else ""))
    common.show(f"{runner.plan.name}: {_counted(runner)}")
    return 1 if failed else 0


def _counted(runner: Runner) -> str:
    counts = Counter(state.state for state in runner.states.values())
    words = {"done": "measured", "known": "known already"}
    said = [f"{counts[state]} {words.get(state, state)}" for state in reversed(_SHOWN_FIRST) if counts[state]]
    return f"{len(runner.states)} cells: {', '.join(said)}"


class _Table:
    """A live table on a terminal; elsewhere a line for each cell that is over."""

    def __init__(self, plan: Plan) -> None:
        from rich.console import Console
        from rich.live import Live

        self._plan = plan
        self._said: set[str] = set()
        self._ticker = common.Ticker(4)
        self._live = (
            Live(console=Console(stderr=True), transient=True, auto_refresh=False) if sys.stderr.isatty() else None
        )

    def __enter__(self) -> _Table:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def update(self, runner: Runner) -> None:
        if self._live:
            if self._ticker():
                self._live.update(self._picture(runner), refresh=True)
            return
        for state in runner.states.values():
            if state.state in ("done", "failed") and state.cell.id not in self._said:
                self._said.add(state.cell.id)
                end = f"stored: {state.run}" if state.run else f"failed: {state.error}"
                common.note(f"{state.cell.id} on {state.board or 'no board'}: {end}")

    def _picture(self, runner: Runner) -> RenderableType:
        pulses = runner.pulses
        table = common.new_table("cell", "state", "board", "now", title=f"{self._plan.name}: {_counted(runner)}")
        states = sorted(runner.states.values(), key=lambda s: (_SHOWN_FIRST.index(s.state), s.number))
        for state in states[:ROWS]:
            pulse = pulses.get(state.board or "", {})
            now = state.run or state.error or ""
            if state.state == "running" and pulse.get("cell") == state.cell.id:
                now = pulse_text(pulse)
            table.add_row(state.cell.id, state.state, state.board or "", now)
        if len(states) > ROWS:
            table.add_row(f"and {len(states) - ROWS} more", "", "", "")
        return table


def pulse_text(pulse: Any) -> str:
    """What a cell does right now, in one line."""
    said = [str(pulse["phase"])]
    if "median_ns" in pulse:
        said.append(f"{pulse['invocations']:,} invocations, latest median {common.duration(pulse['median_ns'])}")
    said += [f"{rail} {watts:.3g} W" for rail, watts in pulse.get("watts", {}).items()]
    return "; ".join(said)
