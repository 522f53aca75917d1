"""
Users of two boards who are killed, stopped and resumed at random, with wall clocks that jump; and what the boards saw.

The boards are this machine's, with real agents that keep a journal.  Using one means some requests, and a run: a runner
process that looks for a runtime for a moment and finds none.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.boards import LOCAL, Board, Registry
from deploy.errors import BoardError, FarmError, RuntimeMissing, TransportError
from deploy.farm.clock import Clock
from deploy.farm.hold import hold
from deploy.farm.leases import Leases

PERIOD_S = 1.0
BOARDS = ("one", "two")
JOURNAL = "../journal"  # as seen from the folder that the agent was unpacked to and runs in
SLOW_NUMPY = "import time; time.sleep(0.1); raise ImportError('a board without a runtime')\n"


class JumpingClock(Clock):
    """The wall clock is days off, and differently every time."""

    def wall_s(self) -> float:
        return time.time() + random.uniform(-1e6, 1e6)


def boards(folder: Path) -> dict[str, Board]:
    return {name: LOCAL.model_copy(update={"name": name, "root": str(folder / name)}) for name in BOARDS}


def set_up(folder: Path) -> None:
    for name in BOARDS:
        runtimes = folder / name / "runtime"
        numpy = runtimes / ("0" * 64) / "numpy"
        numpy.mkdir(parents=True)
        (numpy / "__init__.py").write_text(SLOW_NUMPY)
        (runtimes / "current").symlink_to("0" * 64)


def use_for_ever(folder: Path, owner: str, seed: str) -> None:
    chance = random.Random(seed)
    registry = Registry(boards(folder), None)
    leases = Leases(folder / "farm.sqlite", JumpingClock())
    log = (folder / f"{owner}.log").open("a", buffering=1)
    while True:
        wanted = chance.sample(list(registry), chance.randint(1, len(BOARDS)))
        try:
            with hold(
                registry, wanted, leases=leases, owner=owner, for_s=PERIOD_S, evict=True, wait=10.0,
                agent_options=["--journal", JOURNAL],
            ) as session:  # fmt: skip
                if chance.random() < 0.5:
                    session._lease = None  # as one that was stopped after it had looked whether it still has the board
                for _ in range(chance.randint(1, 4)):
                    session.request("meters.stop")
                    time.sleep(chance.uniform(0, 0.05))
                with contextlib.suppress(RuntimeMissing):
                    session.request("runtime.probe")
                session.request("meters.stop")
            log.write("used\n")
        except (FarmError, BoardError, TransportError) as error:
            log.write(f"{type(error).__name__}: {error}\n")


@dataclass(frozen=True)
class Seen:
    """What the board's agents wrote down, in the order of its clock."""

    at_ns: int
    token: int
    pid: int
    what: str
    op: str


def journal(folder: Path, board: str) -> list[Seen]:
    path = folder / board / "agent" / "journal"
    lines = path.read_text().splitlines() if path.exists() else []
    seen = [
        Seen(int(at), int(token), int(pid), what, op) for at, token, pid, what, op in (line.split() for line in lines)
    ]
    return sorted(seen, key=lambda entry: entry.at_ns)


def overlaps(seen: list[Seen]) -> list[str]:
    """
    Where two holders were on the board at once: something done with a lower token than was seen before, or a run that
    began while another one had not ended.
    """
    found = []
    highest = 0
    running: dict[int, Seen] = {}
    for entry in seen:
        if entry.what in ("does", "begins") and entry.token < highest:
            found.append(f"{entry} after token {highest}")
        highest = max(highest, entry.token)
        if entry.what == "begins":
            found += [f"{entry} while {other}" for other in running.values()]
            running[entry.pid] = entry
        elif entry.what == "ends":
            running.pop(entry.pid, None)
    return found


class Users:
    """Processes of `use_for_ever`, and what happens to them."""

    def __init__(self, folder: Path, owners: tuple[str, ...], seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])  # a new user must not spend its life importing
        self._processes = {owner: self._start(owner) for owner in owners}
        self._stopped: dict[str, float] = {}
        self._size = 0
        self.kills = self.stops = 0

    def _start(self, owner: str) -> Any:
        seed = f"{owner} {self._chance.random()}"
        process = self._context.Process(target=use_for_ever, args=(self._folder, owner, seed))
        process.start()
        return process

    def round(self) -> None:
        """Something happens to somebody, some time after something happened on a board."""
        end = time.monotonic() + 5
        while (size := self._written()) == self._size and time.monotonic() < end:
            time.sleep(0.01)
        self._size = size
        time.sleep(self._chance.uniform(0, 0.2))
        now = time.monotonic()
        for owner in [owner for owner, until in self._stopped.items() if now > until]:
            del self._stopped[owner]
            os.kill(self._processes[owner].pid, signal.SIGCONT)
        running = [owner for owner in self._processes if owner not in self._stopped]
        if len(running) < 2:  # somebody must be left to overlap with
            owner = next(iter(self._stopped))
            del self._stopped[owner]
            os.kill(self._processes[owner].pid, signal.SIGCONT)
            return
        owner = self._chance.choice(running)
        if self._chance.random() < 0.4:
            self._processes[owner].kill()
            self._processes[owner].join()
            self._processes[owner] = self._start(owner)
            self.kills += 1
        else:
            os.kill(self._processes[owner].pid, signal.SIGSTOP)
            self._stopped[owner] = now + self._chance.uniform(0.1, 2.5 * PERIOD_S)
            self.stops += 1

    def _written(self) -> int:
        return sum(path.stat().st_size for path in self._folder.glob("*/agent/journal"))

    def end(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()


@contextlib.contextmanager
def users(folder: Path, owners: tuple[str, ...], seed: int) -> Iterator[Users]:
    set_up(folder)
    made = Users(folder, owners, seed)
    try:
        yield made
    finally:
        made.end()
