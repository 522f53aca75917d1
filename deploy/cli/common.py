"""What the verbs share: options, the board, the bundle, progress, and how values are shown."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.units import duration as duration
from deploy.units import energy as energy
from deploy.units import size as size
from deploy.units import span as span

if TYPE_CHECKING:
    from rich.table import Table

    from deploy.boards import Board, Registry
    from deploy.bundle import Bundle
    from deploy.push import Pushed
    from deploy.results.store import RunWriter, Store
    from deploy.session import Session

F = TypeVar("F", bound=Callable[..., Any])


class Span(click.ParamType):  # type: ignore[type-arg]
    """``90s``, ``30m``, ``2h``, ``1d``, or plain seconds."""

    name = "time"

    def __init__(self, low: float, high: float = math.inf) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        text = str(value)
        try:
            number = float(text.rstrip("smhd")) * {"m": 60, "h": 3600, "d": 86400}.get(text[-1:], 1)
        except ValueError:
            number = math.nan
        if not self._low <= number <= self._high or number == math.inf:
            most = f" up to {self._high / 86400:g}d" if self._high < math.inf else ""
            self.fail(f"{text!r} is no time such as 90s, 30m or 2h{most}", parameter, context)
        return number


def example(*lines: str) -> str:
    """The end of a verb's help, indented as the text before it is, which click takes away from both."""
    return "\n".join(["\n", "    \b", "    Example:", *(f"      {line}" for line in lines)])


def _complete_board(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    try:
        names = [board.name for board in registry(context.find_root().params.get("boards_file"))]
    except Exception:  # a completion has nobody to tell
        return []
    return [name for name in names if name.startswith(incomplete)]


def board_name_option(function: F) -> F:
    """`board_option` for a verb that has a `--strict` of its own."""
    return click.option(
        "--board", "-b", "board_name", default="local", show_default=True, metavar="NAME",
        shell_complete=_complete_board, help="Board of boards.yaml.",
    )(function)  # fmt: skip


def board_option(function: F) -> F:
    return board_name_option(strict_option(function))


def any_board_name_option(function: F) -> F:
    """`any_board_option` for a verb that has a `--strict` of its own."""
    for option in (
        click.option(
            "--needs", multiple=True, metavar="WHAT", expose_value=False, callback=_set("deploy.needs"),
            help="It must have that: dotprod, aarch64, jetson, meter, memory>=2G, ...; may be repeated.",
        ),
        click.option(
            "--tag", multiple=True, metavar="TAG", expose_value=False, callback=_set("deploy.tags"),
            help="Any board with this tag, the first that is free.",
        ),
        click.option(
            "--board", "-b", "board_name", metavar="NAME", shell_complete=_complete_board,
            help="Board of boards.yaml [local].",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def any_board_option(function: F) -> F:
    """One board, by name, or any that has a tag, or what is needed; `on_board` picks it."""
    return any_board_name_option(strict_option(function))


def _set(key: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A callback that keeps an option's value for whoever asks `_meta`."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        context.meta[key] = value

    return keep


def _meta(key: str, otherwise: Any) -> Any:
    context = click.get_current_context(silent=True)
    return context.meta.get(key, otherwise) if context else otherwise


def boards_option(function: F) -> F:
    """One board or several."""
    function = click.option(
        "--needs", multiple=True, metavar="WHAT", help="Only boards that have that: dotprod, aarch64, meter, ..."
    )(function)
    function = click.option(
        "--tag", "tags", multiple=True, metavar="TAG", help="Every board of boards.yaml with this tag; may be repeated."
    )(strict_option(function))
    return click.option(
        "--board", "-b", "board_names", multiple=True, metavar="NAME", shell_complete=_complete_board,
        help="Board of boards.yaml; may be repeated [local].",
    )(function)  # fmt: skip


def _set_strict(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.meta["deploy.strict"] = context.meta.get("deploy.strict", False) or value


def _host_key_option(*names: str) -> Callable[[F], F]:
    host_key = click.option(
        *names, is_flag=True, expose_value=False, envvar="DEPLOY_STRICT", callback=_set_strict,
        help="Pin no host key: refuse a board that is met for the first time [$DEPLOY_STRICT].",
    )  # fmt: skip
    return lambda function: lease_options(host_key(function))


def lease_options(function: F) -> F:
    """For every verb that takes a board; `session_with` obeys them."""
    return wait_options(
        click.option(
            "--evict", is_flag=True, expose_value=False, callback=_set("deploy.evict"),
            help="End what still runs there for somebody whose lease has ended.",
        )(function)
    )  # fmt: skip


def wait_options(function: F) -> F:
    """How to stand in the queue."""
    function = click.option(
        "--priority", type=click.IntRange(-1000, 1000), default=0, envvar="DEPLOY_PRIORITY", expose_value=False,
        callback=_set("deploy.priority"), help="In the queue, higher ones first [0, $DEPLOY_PRIORITY].",
    )(function)  # fmt: skip
    return click.option(
        "--wait", type=Span(0), metavar="TIME", envvar="DEPLOY_WAIT", expose_value=False, callback=_set("deploy.wait"),
        help="Wait so long for a board that somebody else has: 0, 90s, 10m [without end, $DEPLOY_WAIT].",
    )(function)  # fmt: skip


def wait_s() -> float | None:
    """How long to wait for a board; None: as long as it takes."""
    waits: float | None = _meta("deploy.wait", None)
    return waits


# For every verb that connects; `is_strict` says whether it was given.  Where `--strict` means something else already,
# the long name alone is left.
strict_option = _host_key_option("--strict-host-key", "--strict")
strict_host_key_option = _host_key_option("--strict-host-key")


def is_strict() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get("deploy.strict"))


class Finite(click.FloatRange):
    """A number in a range; not NaN and not infinity, which click would take."""

    name = "number"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        number = float(super().convert(value, parameter, context))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number that can be meant.", parameter, context)
        return number


class Share(click.ParamType):  # type: ignore[type-arg]
    """``1%`` or 0.01."""

    name = "share"

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        text = str(value)
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = math.nan
        if not self._low <= number <= self._high:
            allowed = f"between {self._low:.4g} and {self._high:.4g}"
            self.fail(f"{text!r} is not {allowed}, as in 1% or 0.01", parameter, context)
        return number


def kernels_option(function: F) -> F:
    """For every verb that runs a model; `kernels_mode` says what was chosen."""
    return click.option(
        "--kernels", type=click.Choice(["auto", "off", "reference"]), default="auto", show_default=True,
        expose_value=False, callback=_set_kernels,
        help="Our kernels where they win, the stock runtime alone, or our plain versions.",
    )(function)  # fmt: skip


def _set_kernels(context: click.Context, parameter: click.Parameter, value: str) -> None:
    context.meta["deploy.kernels"] = value


def kernels_mode() -> str:
    context = click.get_current_context(silent=True)
    return str(context.meta.get("deploy.kernels", "auto")) if context else "auto"


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def limit_option(function: F) -> F:
    return click.option(
        "--limit-s", type=Finite(min=0.1), metavar="S", help="Time limit of one request to the model [120]."
    )(function)


def bundle_argument(function: F) -> F:
    return click.argument("bundle_path", metavar="BUNDLE", type=click.Path(path_type=Path))(function)


def registry(boards_file: str | None) -> Registry:
    from deploy import boards

    return boards.load(boards_file)


@contextlib.contextmanager
def session_with(
    registry: Registry, *boards: Board, trust: bool = True, wait: float | None = None
) -> Iterator[Session]:
    """
    Take a board, or the first of several that is free, and connect to it.

    Says where we stand in its queue, and when its host key is met first.

    Args:
        wait: how long to wait where the command line does not say.
    """
    from deploy.farm.hold import hold

    with hold(registry, boards, trust=trust, ask=ask_password, **how_to_hold(wait)) as session:
        if session.pinned:
            note(f"{session.board.name}: host key {session.pinned} met and pinned in {registry.known_hosts}")
        yield session


def how_to_hold(wait: float | None = None) -> dict[str, Any]:
    """What the command line says of leases, for `deploy.farm.hold`; see `session_with` for `wait`."""
    return {**how_to_wait(wait), "evict": _meta("deploy.evict", False), "strict": is_strict()}


def how_to_wait(wait: float | None = None) -> dict[str, Any]:
    """The same for `Leases.take`."""
    context = click.get_current_context(silent=True)
    waits = wait_s()
    return {
        "purpose": context.command_path.removeprefix("deploy ") if context else "",
        "priority": _meta("deploy.priority", 0),
        "wait": wait if waits is None else waits,
        "on_wait": lambda standing: note(f"waiting: {standing}"),
    }


def ask_password(prompt: str) -> str:
    """Of a board's console.  Read from the terminal, and kept nowhere."""
    return str(click.prompt(prompt.rstrip(": "), hide_input=True, err=True))


def store_of(registry: Registry) -> Store:
    from deploy.paths import results_dir
    from deploy.results.store import Store

    return Store(results_dir(registry.state_dir))


def store_beside(boards_file: str | None) -> Store:
    """As `store_of`, for whoever needs nothing of the boards: reading their file takes longer than a list of runs."""
    from deploy import paths
    from deploy.results.store import Store

    return Store(paths.results_dir(paths.state_dir(paths.boards_file(boards_file))))


def read_bundle(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Bundle:
    """A bundle, or a .tflite packed on the fly: with `shapes`, without golden vectors."""
    from deploy import bundle
    from deploy.build import build

    if path.suffix.lower() == ".tflite":
        return build(str(path), name=bundle_name(path), vectors=0, shapes=shapes).bundle
    return bundle.read(path)


def bundle_name(path: Path) -> str:
    """A bundle name from a file name."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._+-") else "-" for c in path.stem)
    return kept.lstrip("._+-")[:64] or "model"


def bring(session: Session, bundle: Bundle) -> Pushed:
    """Make sure the board has its runtime and the bundle; says what it did, unless nothing was to do."""
    pushed = push_to(session, bundle)
    if session.kernels.why_off:
        note(f"{session.board.name}: without our kernels: {session.kernels.why_off}")
    if not pushed.was_current:
        note(pushed_line(session.board, pushed))
    return pushed


def push_to(session: Session, bundle: Bundle) -> Pushed:
    """Bring the runtime, if the board lacks it, and the bundle, showing progress."""
    from deploy import fleet

    with progress_bar(f"{session.board.name}: {bundle.name}") as bar:
        return fleet.bring(session, bundle, bar, kernels_mode())


@dataclasses.dataclass(frozen=True)
class OnBoard:
    """A bundle on a board, and the conversation about it."""

    registry: Registry
    session: Session
    bundle: Bundle

    @property
    def board(self) -> Board:
        return self.session.board

    def stored(self, kind: str, settings: Mapping[str, Any]) -> RunWriter:
        """Begin a run in the store."""
        from deploy.prepare import run_record

        return store_of(self.registry).writer(kind, run_record(self.session, self.bundle, settings))


@contextlib.contextmanager
def on_board(boards_file: str | None, board_name: str | None, bundle: Bundle) -> Iterator[OnBoard]:
    """Connect to the board of `any_board_option`, and make sure that it has its runtime and the bundle."""
    from deploy import accelerate

    known = registry(boards_file)
    with session_with(known, *any_board(known, board_name)) as session:
        bring(session, bundle)
        yield OnBoard(known, session, bundle)
        told = session.accelerator
        if told and told["why"]:
            note(f"{session.board.name}: {accelerate.summary(told)}")


def any_board(registry: Registry, board_name: str | None) -> list[Board]:
    """The boards that `any_board_option` allows; where none will do, those in quarantine are looked at again."""
    from deploy.errors import NoSuchBoard
    from deploy.farm.choose import candidates
    from deploy.farm.health import probe_due
    from deploy.farm.hold import leases_of, seen_of

    tags, needs = _meta("deploy.tags", ()), _meta("deploy.needs", ())
    if not (tags or needs):
        return [registry[board_name or "local"]]
    names = [board_name] if board_name else []
    try:
        return candidates(registry, names, tags, needs, seen_of(registry))
    except NoSuchBoard:
        with leases_of(registry) as leases:
            if not list(probe_due(registry, leases)):
                raise
    return candidates(registry, names, tags, needs, seen_of(registry))


def pushed_line(board: Board, pushed: Pushed) -> str:
    from deploy import accelerate

    if pushed.was_current:
        return f"{board.name}: {pushed.release} is current already"
    sent = f"{size(pushed.sent_bytes)} of {size(pushed.total_bytes)} sent" if pushed.sent_bytes else "nothing to send"
    sent += ", the model as a delta" if pushed.delta_base else ""
    proof = pushed.verification.summary if pushed.verification else "no golden vectors: loaded and invoked once"
    who = f"; {accelerate.summary(pushed.accelerator)}" if pushed.accelerator else ""
    return f"{board.name}: {pushed.release} is current ({sent}; {proof}{who})"


class Progress:
    """Something to look at on a terminal; silent elsewhere."""

    def __init__(self, what: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._what = what
        self._live = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[info]}"),
            TimeElapsedColumn(), console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._live.add_task(what, total=None, info="")

    def note(self, text: str) -> None:
        """What is going on."""
        self._live.update(self._task, description=f"{self._what}: {text}", total=None, info="")

    def bytes(self, done: int, total: int) -> None:
        self._live.update(self._task, completed=done, total=total, info=f"{size(done)} of {size(total)}")

    def samples(self, done: int, total: int) -> None:
        self._live.update(self._task, completed=done, total=total, info=f"{done:,} of {total:,} samples")

    def steps(self, done: int, total: int, what: str) -> None:
        self._live.update(self._task, completed=done, total=total, info=f"{done:,} of {total:,} {what}")

    def info(self, text: str) -> None:
        self._live.update(self._task, info=text)

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    bar = Progress(what)
    bar.start()
    try:
        yield bar
    finally:
        bar.stop()


def note(text: str) -> None:
    """A line for the person, not for the pipe."""
    click.echo(text, err=True)


def show(text: str) -> None:
    """A line of result."""
    click.echo(text)


def show_json(value: Any) -> None:
    click.echo(json.dumps(plain(value), indent=1, allow_nan=False))


def show_line(value: Any) -> None:
    """One line of JSON, there at once for whoever reads along."""
    click.echo(json.dumps(plain(value), allow_nan=False))
    sys.stdout.flush()


def show_table(table: Table) -> None:
    from rich.console import Console

    # Where the output is no terminal, a table keeps its columns instead of being folded to 80.
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


def new_table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def plain(value: Any) -> Any:
    """Dataclasses, tuples and numpy scalars as JSON knows them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    # JSON knows neither NaN nor infinity; a missing number is better than a file that nobody can read.
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Ticker:
    """True at most `per_second` times a second: a terminal need not see every frame."""

    def __init__(self, per_second: float = 8.0) -> None:
        self._period_s = 1 / per_second
        self._next = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._period_s
        return True
