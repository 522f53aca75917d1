"""
The boards of many hosts as an engine for plans: it speaks to Dask's scheduler, in a thread of its own.

Dask knows which gateways there are, and its scheduler carries messages to them and their answers back; there are no
tasks, as one for each turn costs every process some milliseconds.  Everything else is decided elsewhere: which board
gets which cell by the plan's runner, who may use a board by the leases of its gateway, what has been measured by the
stores.

Every gateway has a `Carrier` of its own: one that hangs holds up its own boards and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from pathlib import Path
from typing import Any

from deploy.boards import Board
from deploy.errors import FarmError
from deploy.farm import cells, gateway, keys
from deploy.farm.carrier import POLL_S, Carrier
from deploy.farm.runner import Ended, Endings, Needed
from deploy.farm.seen import Seen
from deploy.farm.serve import check_versions, configure
from deploy.farm.station import Turn
from deploy.results.store import Store

LOOK_S = 1.0  # between two looks at what the scheduler knows
SILENT_S = 10.0  # a gateway that was not heard of for so long gets no more work
OPEN_S = 60.0  # for the first gateway to say what it has
SHORT_S = 10.0  # for whatever should take no time
ANSWER_S = 2.0  # for what somebody looks at
TURN_S = 30.0  # a turn should take so long, if there are cells for it: a board stands still between two of them


class Cluster:
    """
    See the module, and `deploy.farm.runner.Engine`.

    Args:
        where: address of the scheduler.
        folder: of the keys.
        store: of the plan.

    Raises:
        FarmError: no scheduler, one that does not fit, or gateways of another version.
    """

    turn_s = TURN_S

    def __init__(self, where: str, folder: Path, store: Store) -> None:
        configure()
        self._where = where
        self._folder = folder
        self._store = store
        self._ended = Endings()
        # Gateways go by the ids of their processes: when the scheduler was away, they come back with other addresses.
        self._workers: dict[str, dict[str, Any]] = {}  # gateway -> what the scheduler knows of it, and its address
        self._missed: dict[str, float] = {}  # gateway with turns -> since when the scheduler does not know it
        self._homes: dict[str, str] = {}  # board -> gateway
        self._boards: dict[str, Board] = {}
        self._seen: dict[str, Seen] = {}
        self._described: set[str] = set()
        self._asked: dict[str, asyncio.Task[None]] = {}  # gateways that are being asked what they have
        self._carriers: dict[str, Carrier] = {}
        self._packed: dict[str, bytes] = {}  # bundles and samples, by digest
        self._id = secrets.token_hex(8)
        self._now_s = 0.0  # by the scheduler's clock, as is when it last heard of a gateway
        self._ready: dict[str, None] = {}  # in the order of the gateways
        self._closing = False
        self._scheduler: Any = None  # Dask's rpc of it, which connects anew by itself
        self._versions = cells.versions()
        self._refused: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._thread.start()
        try:
            self._wait(self._open(), keys.CONNECT_S * 3 + OPEN_S)
        except BaseException:
            self._end_loop()
            raise
        self._looking = asyncio.run_coroutine_threadsafe(self._look_on(), self._loop)

    def boards(self) -> Mapping[str, Board]:
        return self._boards

    def seen(self) -> Mapping[str, Seen]:
        return self._seen

    def ready(self) -> Collection[str]:
        return self._ready

    def start(self, turn: Turn, needed: Mapping[str, Needed]) -> None:
        for digest, each in needed.items():
            if digest not in self._packed:
                self._packed[digest] = each.packed()
        self._loop.call_soon_threadsafe(self._start, turn, {digest: self._packed[digest] for digest in needed})

    def next(self, timeout_s: float) -> Ended | None:
        return self._ended.next(timeout_s)

    def pulses(self) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for worker in list(self._workers.values()):
            found |= worker["metrics"].get("deploy", {}).get("pulses", {})
        return found

    def gateways(self) -> list[dict[str, Any]]:
        """What is known of each: gateway, boards, last_seen_s ago, refused (why it gets no work, or None)."""
        return [
            {
                "gateway": worker["deploy"]["gateway"],
                "boards": worker["deploy"]["boards"],
                "last_seen_s": max(0.0, self._now_s - worker["last_seen"]),
                "refused": self._refused.get(known),
            }
            for known, worker in self._workers.items()
        ]

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Board -> how it is, see `deploy.farm.status.Status.shown`; of gateways that answer."""
        found: list[list[dict[str, Any]]] = self._wait(self._statuses(), SHORT_S)
        return {told["board"]: told for some in found for told in some}

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._looking.cancel()
        with contextlib.suppress(Exception):
            self._wait(self._shut(), SHORT_S)
        self._end_loop()

    # Below: on the loop

    def _wait(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SHORT_S)

    async def _open(self) -> None:
        from distributed import rpc

        security = keys.security(self._folder, "client")
        await asyncio.to_thread(keys.reach, self._where, self._folder, "client")
        connection = security.get_connection_args("client")
        self._scheduler = rpc(self._where, connection_args=connection, timeout=keys.CONNECT_S)
        await check_versions(self._scheduler, self._where)
        await self._look()
        end = time.monotonic() + OPEN_S
        while self._asked and time.monotonic() < end:  # one that hangs is given up for now, and asked again later
            await asyncio.wait(self._asked.values(), timeout=SHORT_S)
            if self._boards:  # the others follow
                break
            await self._look()
        self._place()
        if not self._boards:
            why = "; ".join(self._refused.values())
            raise FarmError(
                f"the scheduler at {self._where} has no gateway that can be used" + (f": {why}" if why else ""),
                "`deploy farm gateway` offers the boards of a host",
            )

    async def _look_on(self) -> None:
        while not self._closing:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except Exception:  # no scheduler; it may come back
                self._ready, self._workers = {}, {}

    async def _look(self) -> None:
        identity = await _within(SHORT_S, self._scheduler.identity())
        told = await _within(SHORT_S, self._scheduler.run_function(**_packed(time.time)))
        self._now_s = told["result"]
        latest: dict[str, dict[str, Any]] = {}
        for address, worker in identity["workers"].items():
            if "deploy" in worker:
                known = worker["deploy"].get("id", address)  # a gateway of an older version has none
                if worker["last_seen"] >= latest.get(known, worker)["last_seen"]:
                    latest[known] = {**worker, "address": address}
        self._workers = latest
        for known in latest:
            if known not in self._described and known not in self._asked:
                self._asked[known] = self._loop.create_task(self._describe(known))
        self._place()
        self._give_up()

    async def _describe(self, known: str) -> None:
        try:
            await self._ask(known)
        finally:
            self._asked.pop(known, None)

    async def _ask(self, known: str) -> None:
        about = self._workers[known]["deploy"]
        differ = sorted(key for key, value in self._versions.items() if about["versions"].get(key) != value)
        if differ:
            self._refused[known] = (
                f"gateway {about['gateway']!r} has another version of deploy than this machine ({', '.join(differ)})"
            )
            return
        try:
            told = await self._call(known, gateway.describe)
        except Exception:  # Dask's own errors are many; it is asked again
            return
        for name, entry in told["boards"].items():
            self._boards[name] = Board.model_validate({**entry, "name": name})
        self._seen |= {name: Seen(**seen) for name, seen in told["seen"].items()}
        self._refused.pop(known, None)
        self._described.add(known)

    async def _call(self, known: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of `deploy.farm.gateway` in the process of a gateway; raises whatever is amiss."""
        address = self._workers[known]["address"]
        message = {"op": "run", **_packed(function, *arguments)}
        told = await _within(POLL_S + SHORT_S, self._scheduler.broadcast(msg=message, workers=[address]))
        if told[address]["status"] != "OK":
            raise FarmError(f"gateway {known}: {told[address]}")
        return told[address]["result"]

    async def _statuses(self) -> list[Any]:
        there = {self._homes[board] for board in self._ready}
        calls = [_within(ANSWER_S, self._call(known, gateway.statuses)) for known in there]
        told = await asyncio.gather(*calls, return_exceptions=True)
        return [some for some in told if not isinstance(some, BaseException)]

    def _place(self) -> None:
        """Which board is where, and which can be given work."""
        homes: dict[str, str] = {}
        latest = sorted(
            self._described & set(self._workers), key=lambda known: float(self._workers[known]["last_seen"])
        )
        for known in latest:  # of a gateway that was started again the old one falls silent
            for board in self._workers[known]["deploy"]["boards"]:
                homes[board] = known
        self._homes = homes
        ready: dict[str, None] = {}
        for board, known in homes.items():
            worker = self._workers[known]
            sick = worker["metrics"].get("deploy", {}).get("sick", ())
            if self._now_s - worker["last_seen"] < SILENT_S and board not in sick:
                ready[board] = None
        self._ready = ready

    def _give_up(self) -> None:
        """A gateway that was started again has lost what it did; of one that is away for long nobody knows."""
        now = time.monotonic()
        for known, carrier in list(self._carriers.items()):
            if known in self._workers:
                self._missed.pop(known, None)
                continue
            since = self._missed.setdefault(known, now)
            replaced = any(self._homes.get(turn.board, known) != known for turn in carrier.turns.values())
            if replaced or now - since > SILENT_S:
                del self._carriers[known], self._missed[known]
                carrier.close()

    def _start(self, turn: Turn, needed: dict[str, bytes]) -> None:
        known = self._homes.get(turn.board)
        if known is None:
            self._ended.put(Ended(turn, lost=True))
            return
        if known not in self._carriers:
            call = functools.partial(self._call, known)
            self._carriers[known] = Carrier(self._id, call, self._store.adopt, self._ended)
        self._carriers[known].start(turn, needed)

    async def _shut(self) -> None:
        calls = []
        for known, carrier in self._carriers.items():
            runs = carrier.close()
            if known in self._workers:
                calls.append(self._call(known, gateway.leave, self._id, runs))
        with contextlib.suppress(Exception):  # one that hangs finds out by itself
            await _within(SHORT_S / 2, asyncio.gather(*calls, return_exceptions=True))
        await self._scheduler.close_rpc()


async def _within(seconds: float, awaitable: Awaitable[Any]) -> Any:
    """As `asyncio.wait_for`, which also waits until what it has given up has ended; that may hang, too."""
    task = asyncio.ensure_future(awaitable)
    task.add_done_callback(lambda over: over.cancelled() or over.exception())  # what was given up tells nobody
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
    if not done:
        raise TimeoutError
    return task.result()


def _packed(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """A call, as Dask's scheduler and workers take it."""
    from distributed.protocol.pickle import dumps

    return {"function": dumps(function), "args": dumps(arguments), "kwargs": dumps({}), "wait": True}
