"""
The boards of many hosts as an engine for plans: a client of Dask, in a thread of its own.

Dask carries a turn to the gateway that has the board and its results back; a resource ``board:NAME`` of one lets one
turn at a time go there.  Everything else is decided elsewhere: which board gets which cell by the plan's runner, who
may use a board by the leases of its gateway, what has been measured by the stores.

Every turn is waited for by itself, and whatever takes too long is given up by itself: a gateway that hangs holds up its
own boards and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.boards import Board
from deploy.bundle import Bundle
from deploy.errors import FarmError, StoreError
from deploy.farm import cells, gateway, keys
from deploy.farm.runner import Ended, Endings
from deploy.farm.seen import Seen
from deploy.farm.serve import check_versions, configure
from deploy.farm.station import Outcome, Turn
from deploy.results.store import Store

LOOK_S = 1.0  # between two looks at what the scheduler knows
SILENT_S = 10.0  # a gateway that was not heard of for so long gets no more work
OPEN_S = 60.0  # for the first gateway to say what it has
SHORT_S = 10.0  # for whatever should take no time
TURN_S = 10.0  # a turn should take so long, if there are cells for it: carrying it costs both sides some milliseconds


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
        self._workers: dict[str, dict[str, Any]] = {}  # address -> what the scheduler knows of it
        self._homes: dict[str, str] = {}  # board -> address
        self._boards: dict[str, Board] = {}
        self._seen: dict[str, Seen] = {}
        self._described: set[str] = set()
        self._asked: dict[str, asyncio.Task[None]] = {}  # gateways that are being asked what they have
        self._has: set[tuple[str, str]] = set()  # address, digest
        self._forget: dict[str, list[str]] = {}  # address -> runs that we have
        self._ready: dict[str, None] = {}  # in the order of the gateways
        self._closing = False
        self._client: Any = None
        self._versions = cells.versions()
        self._refused: dict[str, str] = {}
        self._turns: dict[str, tuple[Turn, asyncio.Task[None]]] = {}  # by board
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

    def start(self, turn: Turn, bundles: Mapping[str, Bundle]) -> None:
        packed = {digest: bundle.packed() for digest, bundle in bundles.items()}
        self._loop.call_soon_threadsafe(self._start, turn, packed)

    def next(self, timeout_s: float) -> Ended | None:
        return self._ended.next(timeout_s)

    def pulses(self) -> Mapping[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for worker in list(self._workers.values()):
            found |= worker["metrics"].get("deploy", {}).get("pulses", {})
        return found

    def gateways(self) -> list[dict[str, Any]]:
        """What is known of each: gateway, boards, last_seen_s ago, refused (why it gets no work, or None)."""
        now = time.time()
        return [
            {
                "gateway": worker["deploy"]["gateway"],
                "boards": worker["deploy"]["boards"],
                "last_seen_s": max(0.0, now - worker["last_seen"]),
                "refused": self._refused.get(address),
            }
            for address, worker in self._workers.items()
        ]

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
        async with rpc(self._where, connection_args=security.get_connection_args("client")) as scheduler:
            await check_versions(scheduler, self._where)
        await self._connect()
        await self._look()
        end = time.monotonic() + OPEN_S
        while self._asked and time.monotonic() < end:  # one that hangs is given up for now, and asked again later
            await asyncio.wait(self._asked.values(), timeout=SHORT_S)
            if self._boards:
                break
            await self._look()
        self._place()
        if not self._boards:
            why = "; ".join(self._refused.values())
            raise FarmError(
                f"the scheduler at {self._where} has no gateway that can be used" + (f": {why}" if why else ""),
                "`deploy farm gateway` offers the boards of a host",
            )

    async def _connect(self) -> None:
        from distributed import Client

        if self._client is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._client.close(timeout=1), SHORT_S)
        security = keys.security(self._folder, "client")
        self._client = await Client(self._where, security=security, asynchronous=True, set_as_default=False, timeout=10)

    async def _look_on(self) -> None:
        while not self._closing:
            await asyncio.sleep(LOOK_S)
            try:
                if self._client is None or self._client.status != "running":
                    self._ready = {}
                    await self._connect()
                await self._look()
            except (OSError, ValueError, FarmError, TimeoutError):
                self._ready, self._workers = {}, {}  # no scheduler; it may come back

    async def _look(self) -> None:
        identity = await asyncio.wait_for(self._client.scheduler.identity(), SHORT_S)
        workers = {address: w for address, w in identity["workers"].items() if "deploy" in w}
        for gone in set(self._workers) - set(workers):
            self._described.discard(gone)
            self._forget.pop(gone, None)
            for board, (_, task) in list(self._turns.items()):
                if self._homes.get(board) == gone:
                    task.cancel()
        self._workers = workers
        for address in workers:
            if address not in self._described and address not in self._asked:
                self._asked[address] = self._loop.create_task(self._describe(address))
        self._place()

    async def _describe(self, address: str) -> None:
        try:
            await self._ask(address)
        finally:
            self._asked.pop(address, None)

    async def _ask(self, address: str) -> None:
        about = self._workers[address]["deploy"]
        differ = sorted(key for key, value in self._versions.items() if about["versions"].get(key) != value)
        if differ:
            self._refused[address] = (
                f"gateway {about['gateway']!r} has another version of deploy than this machine ({', '.join(differ)})"
            )
            return
        try:
            future = self._client.submit(gateway.describe, workers=[address], pure=False, allow_other_workers=False)
            told = await asyncio.wait_for(future.result(), SHORT_S)
        except Exception:  # Dask's own errors are many; it is asked again
            return
        for name, entry in told["boards"].items():
            self._boards[name] = Board.model_validate({**entry, "name": name})
        self._seen |= {name: Seen(**known) for name, known in told["seen"].items()}
        self._refused.pop(address, None)
        self._described.add(address)

    def _place(self) -> None:
        """Which board is where, and which can be given work."""
        now = time.time()
        homes: dict[str, str] = {}
        latest = sorted(self._described & set(self._workers), key=lambda a: float(self._workers[a]["last_seen"]))
        for address in latest:  # of a gateway that was started again the old one falls silent
            for board in self._workers[address]["deploy"]["boards"]:
                homes[board] = address
        self._homes = homes
        ready: dict[str, None] = {}
        for board, address in homes.items():
            worker = self._workers[address]
            sick = worker["metrics"].get("deploy", {}).get("sick", ())
            if now - worker["last_seen"] < SILENT_S and board not in sick:
                ready[board] = None
        self._ready = ready

    def _start(self, turn: Turn, bundles: dict[str, bytes]) -> None:
        task = self._loop.create_task(self._turn(turn, bundles))
        self._turns[turn.board] = (turn, task)
        task.add_done_callback(lambda task: self._turns.pop(turn.board, None))

    async def _turn(self, turn: Turn, bundles: dict[str, bytes]) -> None:
        try:
            self._ended.put(await self._carry(turn, bundles))
        except StoreError as error:
            self._ended.put(error)
        except asyncio.CancelledError:
            self._ended.put(Ended(turn, lost=True))
        except Exception:  # the scheduler or the gateway is gone; Dask has many words for it
            self._ended.put(Ended(turn, lost=True))

    async def _carry(self, turn: Turn, bundles: dict[str, bytes]) -> Ended:
        address = self._homes.get(turn.board)
        if address is None:
            return Ended(turn, lost=True)
        while True:
            told: dict[str, Any] = {
                "turn": turn.id,
                "board": turn.board,
                "works": [asdict(work) for work in turn.works],
                "wait_s": turn.wait_s,
                "priority": turn.priority,
                "bundles": {d: data for d, data in bundles.items() if (address, d) not in self._has},
                "forget": self._forget.pop(address, []),
            }
            future = self._client.submit(
                gateway.take, told, resources={f"board:{turn.board}": 1}, workers=[address],
                allow_other_workers=False, pure=False, retries=0,
            )  # fmt: skip
            try:
                answer = await future.result()
            finally:
                future.release()
            self._has |= {(address, digest) for digest in told["bundles"]}
            if "missing" not in answer:
                break
            self._has -= {(address, digest) for digest in answer["missing"]}
        if "error" in answer:  # a gateway whose disk is full must not end the plan
            return Ended(turn, (Outcome(turn.works[0].cell, None, answer["error"], answer["hint"], board_fault=True),))
        await asyncio.to_thread(self._adopt, answer["runs"])
        self._forget.setdefault(address, []).extend(answer["runs"])
        return Ended(turn, tuple(Outcome(**outcome) for outcome in answer["outcomes"]))

    def _adopt(self, runs: dict[str, bytes]) -> None:
        for data in runs.values():
            self._store.adopt(data)

    async def _shut(self) -> None:
        running = {turn.id: self._homes.get(board) for board, (turn, _) in self._turns.items()}
        for _, task in list(self._turns.values()):
            task.cancel()
        told: list[Any] = []
        for address in self._workers:
            runs = self._forget.pop(address, [])
            mine = [turn for turn, home in running.items() if home == address]
            if runs or mine:
                told.append(
                    self._client.submit(
                        gateway.leave, runs, mine, workers=[address], allow_other_workers=False, pure=False
                    )
                )
        with contextlib.suppress(Exception):  # one that hangs finds out by itself
            await asyncio.wait_for(asyncio.gather(*(f.result() for f in told), return_exceptions=True), SHORT_S / 2)
        await self._client.close(timeout=2)
