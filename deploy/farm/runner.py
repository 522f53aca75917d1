"""
The run of a plan: gives boards their cells until every cell is done or has failed.

What has been measured is asked of the store, and nothing else is remembered: a plan that was stopped, by whatever, is
resumed by running it again.
"""

from __future__ import annotations

import datetime
import queue
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deploy.boards import Board
from deploy.bundle import Bundle
from deploy.errors import DeployError
from deploy.farm import cells
from deploy.farm.builder import Builder
from deploy.farm.cells import Cell, Work
from deploy.farm.labelled import Labelled, read
from deploy.farm.plan import Plan
from deploy.farm.seen import Seen
from deploy.farm.station import Outcome, Turn
from deploy.results.matrix import remember
from deploy.results.store import Store

TICK_S = 0.2
LOOK_S = 1.0  # between two looks at boards that are away
STRIKES = 3  # turns in a row that a board fails before it gets no more
ELSEWHERE_S = 15.0  # without a board, its cells go to others of its kind
PATIENCE_S = 600.0  # and fail where there are none
MOST_CELLS = 32  # of a turn
BUSY_REST_S = 1.0  # before a board that somebody else has is tried again
OPEN_STATES = ("building", "waiting", "running")


@dataclass(frozen=True)
class Ended:
    """
    A turn that is over; what is missing in `outcomes` was not tried.

    Attributes:
        lost: nobody knows what became of it; it may still run, and its results may still come.
    """

    turn: Turn
    outcomes: tuple[Outcome, ...] = ()
    lost: bool = False


class Endings:
    """What an engine's threads hand to the plan's: turns that ended, and errors that end the plan."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Ended | BaseException] = queue.SimpleQueue()

    def put(self, ended: Ended | BaseException) -> None:
        self._queue.put(ended)

    def next(self, timeout_s: float) -> Ended | None:
        """The next one, waited for so long; an error is raised."""
        try:
            ended = self._queue.get(timeout=timeout_s) if timeout_s else self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(ended, BaseException):
            raise ended
        return ended


Needed = Bundle | Labelled  # what is brought to whoever has the board


class Engine(Protocol):
    """
    Whoever has the boards.

    Attributes:
        turn_s: what a turn should take at least, if there are cells for it; 0 gives one cell a turn.
    """

    turn_s: float

    def boards(self) -> Mapping[str, Board]:
        """Every board that there is, or was a moment ago."""
        ...

    def seen(self) -> Mapping[str, Seen]:
        """What is known of them."""
        ...

    def ready(self) -> Collection[str]:
        """Those that answer, as far as is known, and are not in quarantine."""
        ...

    def start(self, turn: Turn, needed: Mapping[str, Needed]) -> None:
        """Begin a turn on a board that has none; `needed` are bundles and samples of its cells, by digest."""
        ...

    def next(self, timeout_s: float) -> Ended | None:
        """
        A turn that is over; the runs of its outcomes are in the plan's store.

        Raises:
            StoreError: the plan's store takes nothing more.
        """
        ...

    def pulses(self) -> Mapping[str, Mapping[str, Any]]:
        """Board -> the cell that it runs, and how that looks."""
        ...

    def close(self) -> None:
        """End what runs, and let go of everything."""
        ...


@dataclass
class State:
    """
    Where a cell stands.

    Attributes:
        state: building, waiting, running; done, known (it was done before), failed.
        candidates: boards that may have it next.
    """

    cell: Cell
    number: int
    state: str = "waiting"
    candidates: tuple[str, ...] = ()
    board: str | None = None
    run: str | None = None
    error: str | None = None
    hint: str | None = None
    attempts: int = 0
    failed_on: list[str] = field(default_factory=list)
    began: float | None = None

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES


class Runner:
    """
    One run of a plan.

    Args:
        known: cells that were measured, see `Store.cells`.
        again: measure those as well.
        watch: told now and then that something has changed.

    Raises:
        DataError: what is to be evaluated has no samples with labels.
    """

    def __init__(
        self,
        plan: Plan,
        matrix: Sequence[Cell],
        engine: Engine,
        builder: Builder,
        store: Store,
        again: bool = False,
        watch: Callable[[Runner], None] | None = None,
    ) -> None:
        self.plan = plan
        self.states = {cell.id: State(cell, number) for number, cell in enumerate(matrix)}
        self._engine = engine
        self._builder = builder
        self._store = store
        self._known = store.cells()
        self._since = f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}" if again else ""
        self._watch = watch or (lambda runner: None)
        self._versions = cells.versions()
        self._bundles: dict[str, Bundle] = {}  # by name
        self._labelled = {  # by setting
            name: read(plan.beside(setting.evaluate), setting.samples)
            for name, setting in plan.settings.items()
            if setting.evaluate
        }
        self._waiting: dict[tuple[str, ...], deque[State]] = {}
        self._places: dict[str, list[tuple[str, ...]]] = {}  # board -> keys of `_waiting` that it is in
        self._busy: set[str] = set()
        self._rests: dict[str, float] = {}
        self._strikes: dict[str, tuple[int, Outcome]] = {}
        self._gone: dict[str, float] = {}
        self._next_look = 0.0
        self._took: dict[str, float] = {}  # setting -> seconds that a cell takes, smoothed

    def run(self) -> None:
        """
        Until every cell is done or has failed.

        Raises:
            StoreError: results cannot be kept; what runs is stopped.
            KeyboardInterrupt: goes on, after what runs was stopped.
        """
        for state in self.states.values():
            state.state = "building"
        self._builder.start()
        try:
            while any(state.is_open for state in self.states.values()):
                self._take_bundles()
                self._give_turns()
                ended = self._engine.next(TICK_S)
                while ended is not None:
                    self._take_outcomes(ended)
                    ended = self._engine.next(0)
                self._give_up()
                self._watch(self)
        finally:
            self._builder.stop()
            self._engine.close()
            self._watch(self)
            remember(self._store, self.plan.name, self.told())

    def told(self) -> list[dict[str, Any]]:
        """Every cell and where it stands, as JSON can carry it."""
        return [
            {"cell": s.cell.id, "bundle": s.cell.bundle, "place": s.cell.place, "setting": s.cell.setting}
            | {"state": s.state, "board": s.board, "run": s.run, "error": s.error, "hint": s.hint}
            for s in self.states.values()
        ]

    @property
    def pulses(self) -> Mapping[str, Mapping[str, Any]]:
        return self._engine.pulses()

    # Below: bundles

    def _take_bundles(self) -> None:
        for name, built in self._builder.ready():
            mine = [state for state in self.states.values() if state.cell.bundle == name]
            for state in mine:
                if isinstance(built, DeployError):
                    state.state, state.error, state.hint = "failed", str(built), built.hint
                else:
                    self._bundles[name] = built
                    self._enter(state)

    def _enter(self, state: State) -> None:
        """A cell whose bundle is there: known already, or to be measured."""
        boards = self._engine.boards()
        work = self._work(state.cell)
        for name in (*state.cell.boards, *state.cell.spares) if self._known else ():
            run = self._known.get(work.key(boards[name])) if name in boards else None
            if run and run >= self._since and (name in state.cell.boards or not self._is_own_cell(state.cell, name)):
                state.state, state.board, state.run = "known", name, run
                return
        state.state = "waiting"
        state.candidates = state.cell.boards
        self._queue(state)

    def _work(self, cell: Cell) -> Work:
        data = self._labelled[cell.setting].digest if cell.setting in self._labelled else None
        return cells.work(self.plan, cell, self._bundles[cell.bundle].digest, self._versions, self._since, data)

    def _is_own_cell(self, cell: Cell, board: str) -> bool:
        """Whether the plan has the same cell on that board anyway: moving there would tell nothing."""
        return f"{cell.bundle}/{board}/{cell.setting}" in self.states

    # Below: turns

    def _queue(self, state: State, first: bool = False) -> None:
        key = state.candidates
        if key not in self._waiting:
            self._waiting[key] = deque()
            for board in key:
                self._places.setdefault(board, []).append(key)
        (self._waiting[key].appendleft if first else self._waiting[key].append)(state)

    def _give_turns(self) -> None:
        now = time.monotonic()
        for board in self._engine.ready():
            if board in self._busy or self._rests.get(board, 0) > now or self._is_out(board):
                continue
            mine = self._pick(board)
            if not mine:
                continue
            for state in mine:
                state.state, state.board, state.began = "running", board, now
            brought: list[Needed] = [self._bundles[state.cell.bundle] for state in mine]
            brought += [self._labelled[s.cell.setting] for s in mine if s.cell.setting in self._labelled]
            needed = {each.digest: each for each in brought}
            works = tuple(self._work(state.cell) for state in mine)
            # Who can go nowhere else stays in the board's queue, and keeps its place there.
            wait_s = 5.0 if len(mine[0].candidates) > 1 else 300.0
            self._busy.add(board)
            self._engine.start(Turn(board, works, wait_s, self.plan.priority), needed)

    def _pick(self, board: str) -> list[State]:
        """The oldest cell that `board` may have, and others to fill its turn with."""
        queues = [self._waiting[key] for key in self._places.get(board, ()) if self._waiting[key]]
        if not queues:
            return []
        chosen = min(queues, key=lambda q: q[0].number)
        sharing = sum(1 for b in chosen[0].candidates if not self._is_out(b))
        fair = -(-len(chosen) // max(1, sharing))
        setting = chosen[0].cell.setting
        each_s = self._took.get(setting) or self.plan.settings[setting].duration
        wanted = round(self._engine.turn_s / max(each_s, 1e-3))
        return [chosen.popleft() for _ in range(max(1, min(wanted, fair, MOST_CELLS, len(chosen))))]

    def _take_outcomes(self, ended: Ended) -> None:
        board = ended.turn.board
        self._busy.discard(board)
        told = {outcome.cell: outcome for outcome in ended.outcomes}
        for work in reversed(ended.turn.works):
            state, outcome = self.states[work.cell], told.get(work.cell)
            if state.state != "running" or state.board != board:
                continue
            if outcome is None:
                state.state, state.board = "waiting", None
                if ended.lost:  # it may be done there: it is asked for there, unless the board stays away
                    state.candidates = (board,)
                self._queue(state, first=True)
            elif outcome.run:
                state.state, state.run, state.error, state.hint = "done", outcome.run, None, None
                if outcome.took_s:
                    before = self._took.get(state.cell.setting, outcome.took_s)
                    self._took[state.cell.setting] = 0.8 * before + 0.2 * outcome.took_s
            else:
                self._failed(state, board, outcome)
        if any(outcome.run for outcome in ended.outcomes):
            self._strikes.pop(board, None)
        elif not ended.outcomes and not ended.lost:
            self._rests[board] = time.monotonic() + BUSY_REST_S

    def _failed(self, state: State, board: str, outcome: Outcome) -> None:
        state.error, state.hint = outcome.error, outcome.hint
        state.attempts += 1
        if not outcome.board_fault:
            state.state = "failed"
            return
        strikes = self._strikes.get(board, (0, outcome))[0] + 1
        self._strikes[board] = (strikes, outcome)
        self._rests[board] = time.monotonic() + min(60.0, 0.5 * 4**strikes)
        state.failed_on.append(board)
        left = [name for name in state.cell.boards if name not in state.failed_on]
        left = left or [
            name
            for name in state.cell.spares
            if name not in state.failed_on and not self._is_own_cell(state.cell, name)
        ]
        if not left and state.attempts <= self.plan.retries:  # nobody else is there: the same again
            left = [name for name in state.cell.boards if not self._is_out(name)]
        if not left or state.attempts > self.plan.retries:
            state.state = "failed"
            return
        state.state, state.board, state.candidates = "waiting", None, tuple(left)
        self._queue(state, first=True)

    # Below: boards that are no use

    def _is_out(self, board: str) -> bool:
        return self._strikes.get(board, (0, None))[0] >= STRIKES

    def _give_up(self) -> None:
        """Fail, or send elsewhere, what waits for boards that are out or have been away for too long."""
        now, ready = time.monotonic(), self._engine.ready()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        for board in self._engine.boards():
            if board in ready:
                self._gone.pop(board, None)
            else:
                self._gone.setdefault(board, now)
        for key, waiting in list(self._waiting.items()):
            if not waiting or not all(self._is_away(board, ELSEWHERE_S) for board in key):
                continue
            for state in list(waiting):
                spares = [b for b in state.cell.spares if not self._is_own_cell(state.cell, b)]
                others = [b for b in (*state.cell.boards, *spares) if b not in (*key, *state.failed_on)]
                others = [b for b in others if not self._is_away(b, ELSEWHERE_S)]
                if others:
                    waiting.remove(state)
                    state.candidates = tuple(others)
                    self._queue(state)
                elif all(self._is_away(board, PATIENCE_S) for board in key):
                    waiting.remove(state)
                    why = self._strikes.get(key[0])
                    state.state, state.board = "failed", key[0]
                    state.error = why[1].error if why else f"board {key[0]!r} is in quarantine, or its gateway is gone"
                    state.hint = why[1].hint if why else "`deploy boards status` and `deploy farm status` show more"

    def _is_away(self, board: str, seconds: float) -> bool:
        """Whether nothing is to be hoped of a board that has been away for so long."""
        return self._is_out(board) or time.monotonic() - self._gone.get(board, time.monotonic()) > seconds
