"""
Many boards at once: one thread and one conversation for each, so that none waits for another.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deploy import accelerate, kernels, push, runtime
from deploy.boards import Board
from deploy.bundle import Bundle
from deploy.errors import DeployError
from deploy.push import Pushed
from deploy.session import Session, connect


class Watcher(Protocol):
    """What is told of one board; called from that board's thread."""

    def note(self, text: str) -> None:
        """What is going on, in a few words."""
        ...

    def bytes(self, done: int, total: int) -> None:
        """So many bytes are there."""
        ...


# Connects to a board, telling its watcher what that waits for, and asking for a password if need be.
Reach = Callable[[Board, Watcher, Callable[[str], str] | None], AbstractContextManager[Session]]


@dataclass(frozen=True)
class Outcome:
    """
    How a push to one board ended.

    Attributes:
        pushed: None where it failed.
        error: why it failed, or None.
        pinned: fingerprint of a host key that was met and recorded just now, or None.
    """

    board: Board
    pushed: Pushed | None
    error: DeployError | None
    pinned: str | None


def push_to_all(
    boards: Sequence[Board],
    bundle: Bundle,
    known_hosts: Path,
    watch: Callable[[Board], Watcher],
    strict: bool = False,
    kernels_mode: str = "off",
    passwords: Mapping[str, str] | None = None,
    reach: Reach | None = None,
) -> Iterator[Outcome]:
    """
    Bring runtime and bundle to every board at the same time; yields how each ended, as they end.

    A board that is dead or slow holds up no other.  Its error is its outcome; errors that are no `DeployError` are
    bugs, and raised here.

    Args:
        watch: called once for each board, here, for who is told about it.
        strict: see `deploy.session.connect`.
        kernels_mode: see `bring`.
        passwords: of serial consoles, by board; nobody can be asked later, when many boards talk at once.
        reach: connects; without it, and without a lease, `deploy.session.connect`.
    """
    ended: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()

    def one(board: Board, watcher: Watcher) -> None:
        pinned = None
        try:
            watcher.note("reaching it")
            secret = (passwords or {}).get(board.name)
            ask = None if secret is None else lambda prompt: secret
            with (
                reach(board, watcher, ask) if reach else connect(board, known_hosts, ask=ask, strict=strict) as session
            ):
                pinned = session.pinned
                pushed = bring(session, bundle, watcher, kernels_mode)
            ended.put(Outcome(board, pushed, None, pinned))
        except DeployError as error:
            ended.put(Outcome(board, None, error, pinned))
        except BaseException as error:
            ended.put(error)

    for board in boards:
        # A daemon: Ctrl-C ends the process, and with it every conversation, which ends the agents.
        threading.Thread(target=one, args=(board, watch(board)), name=f"push {board.name}", daemon=True).start()
    for _ in boards:
        outcome = ended.get()
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome


def bring(session: Session, bundle: Bundle, watcher: Watcher, kernels_mode: str = "off") -> Pushed:
    """
    Bring the runtime and our kernels, if the board lacks them, and the bundle; build what simulates its accelerator.

    One round trip where there is nothing to do.

    Args:
        kernels_mode: what the bundle is proven with, and used with in this conversation: see `deploy.kernels.ensure`.
    """
    accelerate.make_ready(session.board, watcher.note)
    known = kernels.current(session, kernels_mode)
    nothing_to_do = push.already(session, bundle)
    if nothing_to_do and known:
        session.kernels = known
        return nothing_to_do
    runtime.ensure(session, watcher.bytes, watcher.note)
    kernels.ensure(session, kernels_mode, watcher.bytes, watcher.note)
    if nothing_to_do:
        return nothing_to_do
    return push.push(session, bundle, watcher.bytes, watcher.note)
