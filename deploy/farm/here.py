"""The boards of this machine as an engine for plans: a thread for each turn, and nothing to set up."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from deploy.boards import Board, Registry
from deploy.farm.hold import hold
from deploy.farm.leases import Leases
from deploy.farm.runner import Ended, Endings, Needed
from deploy.farm.seen import Seen, Sightings
from deploy.farm.station import LEAVE_S, Hold, Station, Turn
from deploy.paths import farm_file
from deploy.results.store import Store

LOOK_S = 1.0  # between two looks at which boards are in quarantine


class Here:
    """See the module, and `deploy.farm.runner.Engine`."""

    turn_s = 0.0

    def __init__(
        self, registry: Registry, store: Store, strict: bool = False, hold: Hold = hold, care: bool = True
    ) -> None:
        self._boards = {board.name: board for board in registry}
        self._brought: dict[str, Any] = {}  # bundles and samples, by digest
        self._ended = Endings()
        self._threads: list[threading.Thread] = []
        self._leases = Leases(farm_file(registry.state_dir))
        known = self._brought.__getitem__
        self._station = Station(registry, store, self._leases, known, known, strict, hold, care)
        self._ready: tuple[float, dict[str, None]] = (0.0, {})  # in the order of the file

    def boards(self) -> Mapping[str, Board]:
        return self._boards

    def seen(self) -> Mapping[str, Seen]:
        return Sightings(self._leases.file, self._leases.clock).all()

    def ready(self) -> Collection[str]:
        now = time.monotonic()
        if now >= self._ready[0]:
            seen = self.seen()
            self._ready = (now + LOOK_S, {n: None for n in self._boards if n not in seen or seen[n].reason is None})
        return self._ready[1]

    def start(self, turn: Turn, needed: Mapping[str, Needed]) -> None:
        self._brought.update(needed)
        thread = threading.Thread(target=self._take, args=(turn,), name=f"turn on {turn.board}", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _take(self, turn: Turn) -> None:
        try:
            self._ended.put(Ended(turn, tuple(self._station.take(turn))))
        except BaseException as error:
            self._ended.put(error)

    def next(self, timeout_s: float) -> Ended | None:
        return self._ended.next(timeout_s)

    def pulses(self) -> Mapping[str, Mapping[str, Any]]:
        return self._station.pulses()

    def close(self) -> None:
        self._station.stop()
        end = time.monotonic() + LEAVE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self._station.hang_up()
        for thread in self._threads:
            thread.join(LEAVE_S)
        self._leases.close()
