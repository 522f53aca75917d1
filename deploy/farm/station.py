"""
The boards of one machine, at work: takes turns on them, under leases, and keeps what came of it in a store.

A plan that runs on this machine alone has one station, whose store is the plan's.  A gateway has one, too, whose store
keeps what was measured until the plan has it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

from deploy.boards import Board, Registry
from deploy.bundle import Bundle
from deploy.errors import AgentBroken, BoardSilent, BoardUnreachable, Busy, DeployError, LeaseHeld, StoreError
from deploy.farm.cells import Pulse, Work, is_board_fault, measure_cell
from deploy.farm.health import probe_due, recover
from deploy.farm.hold import hold
from deploy.farm.labelled import Labelled
from deploy.farm.leases import Leases
from deploy.measure import Seen
from deploy.results.store import Store
from deploy.session import Session

LEAVE_S = 1.0  # a measurement that is told to stop has so long to say goodbye to its board

PROBE_S = 5.0  # between two looks at whether a board in quarantine is due to be probed
_HANGS = (BoardSilent, BoardUnreachable, AgentBroken)

Hold = Callable[..., AbstractContextManager[Session]]


@dataclass(frozen=True)
class Turn:
    """
    Some cells for one board, to be measured one after the other.

    Attributes:
        wait_s: to be spent at most in the queue for the board.
        id: by which it can be called off.
    """

    board: str
    works: tuple[Work, ...]
    wait_s: float = 30.0
    priority: int = 0
    id: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass(frozen=True)
class Outcome:
    """
    What became of one cell.

    Attributes:
        run: where it is in the station's store; None where it failed.
        board_fault: another board may do better.
    """

    cell: str
    run: str | None
    error: str | None = None
    hint: str | None = None
    board_fault: bool = False
    took_s: float = 0.0


class Stopped(DeployError):
    """Whoever ran the plan wants no more of it."""


class Station:
    """
    See the module.

    Args:
        bundle_of, labelled_of: the bundle, or the samples, of a digest, which whoever gives the work has brought here.
        hold: as `deploy.farm.hold.hold`, which it is unless there are no real boards.
        care: bring boards that fall silent back, and look after those in quarantine.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        leases: Leases,
        bundle_of: Callable[[str], Bundle],
        labelled_of: Callable[[str], Labelled],
        strict: bool = False,
        hold: Hold = hold,
        care: bool = True,
    ) -> None:
        self._registry = registry
        self._store = store
        self._leases = leases
        self._bundle_of = bundle_of
        self._labelled_of = labelled_of
        self._care = care
        self._strict = strict
        self._hold = hold
        self._lock = threading.Lock()
        self._pulses: dict[str, tuple[str, Pulse]] = {}
        self._sessions: set[Session] = set()
        self._done = store.cells()
        self._stopping = threading.Event()
        self._running: dict[str, str] = {}  # turn -> board
        self._called_off: set[str] = set()  # turns
        if care:
            threading.Thread(target=self._probe, name="probes", daemon=True).start()

    def take(self, turn: Turn) -> list[Outcome]:
        """
        Have a turn: measure its cells until they are done or the board fails.

        Cells that are missing in the answer were not tried: the board was not ours in time, failed, or all is to stop.
        What this station has measured already is not measured again.

        Raises:
            StoreError: nothing can be kept here.
        """
        outcomes = [self._known(work, turn.board) for work in turn.works]
        left = [work for work, outcome in zip(turn.works, outcomes, strict=True) if outcome is None]
        found = [outcome for outcome in outcomes if outcome is not None]
        if not left:
            return found
        board = self._registry[turn.board]
        pulse = Pulse()
        pulse.note("waiting for the board")
        with self._lock:
            self._pulses[turn.board] = (left[0].cell, pulse)
            self._running[turn.id] = turn.board
        try:
            return found + self._at_board(board, turn, left)
        finally:
            with self._lock:
                self._pulses.pop(turn.board, None)
                self._running.pop(turn.id, None)
                self._called_off.discard(turn.id)

    def pulses(self) -> dict[str, dict[str, Any]]:
        """Board -> the cell that it runs, and how that looks."""
        with self._lock:
            return {board: {"cell": cell, **pulse.snapshot()} for board, (cell, pulse) in self._pulses.items()}

    def forget(self, runs: list[str]) -> None:
        """Drop runs that another store has now."""
        with self._lock:
            gone = set(runs)
            self._done = {key: run for key, run in self._done.items() if run not in gone}
        for run in runs:
            self._store.drop(run)

    def stop(self) -> None:
        """Let nothing begin any more, and end what runs, at once."""
        self._stopping.set()

    def call_off(self, turns: list[str]) -> None:
        """End these turns, as `stop` ends all; returns when they have ended, or have been hung up on."""
        with self._lock:
            mine = {turn: board for turn, board in self._running.items() if turn in turns}
            self._called_off |= mine.keys()
        end = time.monotonic() + LEAVE_S
        while time.monotonic() < end and any(turn in self._running for turn in mine):
            time.sleep(0.05)
        self.hang_up({board for turn, board in mine.items() if turn in self._running})

    def hang_up(self, boards: set[str] | None = None) -> None:
        """Close the conversations of those that did not end by themselves, see `LEAVE_S`; all, or with some boards."""
        with self._lock:
            sessions = [session for session in self._sessions if boards is None or session.board.name in boards]
        for session in sessions:
            with suppress(DeployError, OSError):
                session.close()

    def _known(self, work: Work, board: str) -> Outcome | None:
        with self._lock:
            run = self._done.get(work.key(self._registry[board]))
        return Outcome(work.cell, run) if run and run >= work.since else None

    def _at_board(self, board: Board, turn: Turn, works: list[Work]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        began = time.monotonic()
        try:
            try:
                self._work(board, turn, works, outcomes, evict=False)
            except Busy:  # with what somebody began who has lost the board since; what is ours has been fetched
                if outcomes:
                    raise
                self._work(board, turn, works, outcomes, evict=True)
        except (LeaseHeld, Stopped):
            pass
        except StoreError:
            raise
        except DeployError as error:
            if not self._is_over(turn):
                untried, took_s = works[len(outcomes)], time.monotonic() - began
                outcomes.append(Outcome(untried.cell, None, str(error), error.hint, True, took_s))
                if self._care and isinstance(error, _HANGS):
                    with suppress(DeployError):  # then it is in quarantine, or somebody else's
                        recover(self._registry, board, self._leases, str(error), wait=LEAVE_S)
        return outcomes

    def _work(self, board: Board, turn: Turn, works: list[Work], outcomes: list[Outcome], evict: bool) -> None:
        with self._hold(
            self._registry, board, leases=self._leases, purpose=f"plan {works[0].plan}", priority=turn.priority,
            wait=turn.wait_s, evict=evict, strict=self._strict,
        ) as session:  # fmt: skip
            with self._lock:
                self._sessions.add(session)
            try:
                for work in works:
                    self._check(turn)
                    # An earlier turn, of a plan that lost its way to us, may have measured it while we waited.
                    outcomes.append(self._known(work, board.name) or self._one(session, turn, work))
            finally:
                with self._lock:
                    self._sessions.discard(session)

    def _one(self, session: Session, turn: Turn, work: Work) -> Outcome:
        """One cell; an error that is the board's is raised, as nothing else will go well there now."""
        pulse = Pulse()
        with self._lock:
            self._pulses[session.board.name] = (work.cell, pulse)

        def watch(seen: Seen) -> None:
            pulse.update(seen)
            self._check(turn)

        began = time.monotonic()
        try:
            labelled = self._labelled_of(work.data) if work.data else None
            run = measure_cell(session, self._bundle_of(work.digest), work, self._store, watch, pulse, labelled)
        except (Stopped, StoreError):
            raise
        except DeployError as error:
            if self._is_over(turn):
                raise Stopped("stopped") from None
            if is_board_fault(error):
                raise
            return Outcome(work.cell, None, str(error), error.hint, False, time.monotonic() - began)
        with self._lock:
            self._done[work.key(session.board)] = run
        return Outcome(work.cell, run, took_s=time.monotonic() - began)

    def _probe(self) -> None:
        while not self._stopping.wait(PROBE_S):
            with suppress(DeployError):
                for _ in probe_due(self._registry, self._leases):
                    pass

    def _is_over(self, turn: Turn) -> bool:
        return self._stopping.is_set() or turn.id in self._called_off

    def _check(self, turn: Turn) -> None:
        if self._is_over(turn):
            raise Stopped("stopped; the plan goes on where it was when it is run again")
