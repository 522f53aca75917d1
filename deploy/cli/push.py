"""`deploy push`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli import common

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from deploy.boards import Board, Registry
    from deploy.bundle import Bundle
    from deploy.farm.leases import Standing
    from deploy.fleet import Outcome, Watcher
    from deploy.session import Session


@click.command(
    "push",
    help="""
    Bring BUNDLE (or a .tflite) to a board, or to several at once.

    The board needs python3 and nothing else: the agent travels along, and numpy and LiteRT where the board lacks
    them.  Only what is missing there is sent.  The golden vectors run on the board before the bundle becomes current.

    With several boards (--board repeated, or --tag) a dead one holds up no other; the exit code is 1 if any failed.
    """
    + common.example("deploy push --board local net.bundle", "deploy push --tag lab net.bundle"),
)
@common.boards_option
@common.bundle_argument
@common.kernels_option
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    board_names: tuple[str, ...],
    tags: tuple[str, ...],
    needs: tuple[str, ...],
    bundle_path: Path,
    as_json: bool,
) -> int:
    registry = common.registry(boards_file)
    boards = _chosen(registry, board_names, tags, needs)
    bundle = common.read_bundle(bundle_path)
    if tags or needs or len(boards) > 1:
        return _push_to_all(registry, boards, bundle, as_json)
    (board,) = boards
    with common.session_with(registry, board) as session:
        pushed = common.push_to(session, bundle)
    if as_json:
        common.show_json(_entry(board, bundle, pushed))
    else:
        common.show(common.pushed_line(board, pushed))
    return 0


def _chosen(registry: Registry, names: Sequence[str], tags: Sequence[str], needs: Sequence[str]) -> Sequence[Board]:
    """Every board that is meant and not in quarantine; says which are."""
    if not (tags or needs):
        return registry.select(names or ["local"], ())
    from deploy.farm.choose import candidates
    from deploy.farm.hold import seen_of

    seen = seen_of(registry)
    boards = candidates(registry, names, tags, needs, seen)
    for board in registry.select(names, tags) if names or tags else registry:
        known = seen.get(board.name)
        if board not in boards and known and known.reason is not None:
            common.note(f"{board.name} is in quarantine and left out: {known.reason}")
    return boards


def _push_to_all(registry: Registry, boards: Sequence[Board], bundle: Bundle, as_json: bool) -> int:
    from deploy.farm.hold import hold, leases_of
    from deploy.fleet import push_to_all

    outcomes: dict[str, Outcome] = {}
    passwords = _passwords(boards)
    how = common.how_to_hold()

    def reach(board: Board, watcher: Watcher, ask: Callable[[str], str] | None) -> AbstractContextManager[Session]:
        on_wait = partial(_tell, watcher, how["on_wait"])
        return hold(registry, board, leases=leases, ask=ask, **{**how, "on_wait": on_wait})

    with leases_of(registry) as leases, _Lines() as lines:
        for outcome in push_to_all(
            *(boards, bundle, registry.known_hosts, lines.line, common.is_strict(), common.kernels_mode(), passwords),
            reach,
        ):
            outcomes[outcome.board.name] = outcome
            lines.end(outcome)
    shown: list[dict[str, Any]] = []
    for board in boards:
        outcome = outcomes[board.name]
        if outcome.pinned:
            common.note(f"{board.name}: host key {outcome.pinned} met and pinned in {registry.known_hosts}")
        if outcome.pushed:
            shown.append({**_entry(board, bundle, outcome.pushed), "ok": True})
            if not as_json:
                common.show(common.pushed_line(board, outcome.pushed))
        elif outcome.error:
            error = outcome.error
            shown.append({"board": board.name, "ok": False, "error": str(error), "hint": error.hint})
            if not as_json:
                common.note(f"error: {error}" + (f"\nhint:  {error.hint}" if error.hint else ""))
    if as_json:
        common.show_json(shown)
    return 0 if all(entry["ok"] for entry in shown) else 1


def _tell(watcher: Watcher, on_wait: Callable[[Standing], None], standing: Standing) -> None:
    watcher.note(f"waiting: place {standing.place}")
    on_wait(standing)


def _passwords(boards: Sequence[Board]) -> dict[str, str]:
    """Of serial consoles that log in and whose password no keyring has; asked for before anything else is shown."""
    from deploy.boards import SerialTransport

    asked = {}
    for board in boards if sys.stdin.isatty() else ():
        settings = board.transport
        if isinstance(settings, SerialTransport) and settings.user:
            from deploy.transport.serial import password_prompt, stored_password

            prompt = password_prompt(board.name, settings).rstrip(": ") + " (none: Enter)"
            secret = stored_password(board.name) or click.prompt(
                prompt, hide_input=True, err=True, default="", show_default=False
            )
            if secret:
                asked[board.name] = str(secret)
    return asked


def _entry(board: Board, bundle: Bundle, pushed: Any) -> dict[str, Any]:
    return {"board": board.name, "bundle": bundle.digest, **vars(pushed)}


class _Lines:
    """A live line for each board on a terminal; silent elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._live = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[info]}"), TimeElapsedColumn(),
            console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}

    def line(self, board: Board) -> Watcher:
        task = self._tasks[board.name] = self._live.add_task(board.name, total=None, info="waiting")
        return _Line(self._live, task)

    def end(self, outcome: Outcome) -> None:
        task = self._tasks[outcome.board.name]
        info = outcome.pushed.release if outcome.pushed else f"failed: {outcome.error}"
        self._live.update(task, total=1, completed=1 if outcome.pushed else 0, info=info)
        self._live.stop_task(task)

    def __enter__(self) -> _Lines:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()


class _Line:
    """What `deploy.fleet` tells of one board; rich's own lock keeps threads apart."""

    def __init__(self, live: Progress, task: TaskID) -> None:
        self._live, self._task = live, task

    def note(self, text: str) -> None:
        self._live.update(self._task, total=None, info=text)

    def bytes(self, done: int, total: int) -> None:
        self._live.update(self._task, completed=done, total=total, info=f"{common.size(done)} of {common.size(total)}")
