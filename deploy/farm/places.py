"""
Boards that labgrid shares out: `place:` in boards.yaml.

Our lease keeps users of deploy apart, labgrid's place everybody else.  The place is acquired with each lease and
released with it, by labgrid's own ``labgrid-client`` (26.0 was tried), which finds its coordinator as always:
$LG_COORDINATOR.  A place that this user acquired by hand is used and left acquired.  labgrid's locks never expire, so
we remember which we acquired: one that a killed process of ours left behind is released with the board's next lease.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

from deploy.boards import Board
from deploy.errors import PlaceError, one_line
from deploy.farm.seen import Sightings

CLIENT = "labgrid-client"
CLIENT_S = 60.0


@contextlib.contextmanager
def acquired(board: Board, sightings: Sightings) -> Iterator[None]:
    """
    The board's place is ours while the body runs; nothing happens for a board without one.  The lease is held already.

    Args:
        sightings: where is remembered that we acquired it.

    Raises:
        PlaceError: labgrid does not give it, or is not there.
    """
    if board.place is None:
        yield
        return
    left_behind = sightings.acquired(board.name)
    sightings.acquiring(board.name, True)
    try:
        ask(board, "acquire")
    except PlaceError as error:
        mine = f"You have already acquired place {board.place}." in error.message
        if not (mine and left_behind):
            sightings.acquiring(board.name, False)
        if not mine:
            raise
    try:
        yield
    except BaseException:
        with contextlib.suppress(PlaceError):  # what happened first is said
            _release(board, sightings)
        raise
    _release(board, sightings)


def _release(board: Board, sightings: Sightings) -> None:
    if sightings.acquired(board.name):
        ask(board, "release")
        sightings.acquiring(board.name, False)


def ask(board: Board, *words: str) -> str:
    """
    Let labgrid do something with the board's place, and return what it says.

    Raises:
        PlaceError: it fails, or takes longer than `CLIENT_S`.
    """
    program = shutil.which(CLIENT)
    if program is None:
        raise PlaceError(
            f"board {board.name!r} is labgrid's place {board.place!r}, and there is no {CLIENT} here",
            "`pip install labgrid` brings it",
            board=board.name,
        )
    command = [program, "-p", str(board.place), *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=CLIENT_S,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        reason = f"no answer within {CLIENT_S:.0f} s"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        if not done.returncode:
            return done.stdout
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = one_line(said[-1]).removeprefix(f"{CLIENT}: Error: ") if said else f"exit status {done.returncode}"
    raise PlaceError(
        f"labgrid's place {board.place!r} of board {board.name!r}: {' '.join(words)}: {reason}",
        f"`{CLIENT} -p {board.place} show` says who has it",
        board=board.name,
    )
