"""
A gateway: the host that boards hang on, as a worker of Dask.

Turns are taken by a `Station`, in threads of its own.  When the line to the scheduler breaks, they go on; what they
measure is kept in the gateway's store until a plan has it in its own, and a plan that asks again for the same cell gets
it from there.  The leases of this host say who may use a board, whatever a scheduler believes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy import bundle as bundles
from deploy.boards import Registry
from deploy.bundle import Bundle
from deploy.errors import BundleError, DeployError, FarmError, StoreError
from deploy.farm import cells, keys
from deploy.farm.cells import Work
from deploy.farm.clock import Clock
from deploy.farm.hold import hold
from deploy.farm.labelled import Labelled
from deploy.farm.leases import Leases
from deploy.farm.outbox import Outbox
from deploy.farm.seen import Sightings
from deploy.farm.serve import check_versions, configure
from deploy.farm.station import LEAVE_S, Hold, Outcome, Station, Turn
from deploy.farm.status import statuses as statuses_of
from deploy.paths import farm_file, whole
from deploy.results.store import Store

AGAIN_S = 2.0  # between two attempts to reach the scheduler
START_S = 60.0  # for the scheduler to know us
BEAT_S = 1.0  # between two looks at which boards are well, and what they do

PLANS = 32  # that may wait for answers at a time

_gateway: Gateway | None = None  # of this process; what Dask runs here finds it
_collecting = ThreadPoolExecutor(PLANS, "collect")


class Gateway:
    """
    The boards of one registry, for plans that run elsewhere.

    Args:
        name: what plans call this gateway.
        folder: where results wait.
        strict, hold, care: see `deploy.farm.station.Station`.
        clock: what leases end by.
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        folder: Path,
        strict: bool = False,
        hold: Hold = hold,
        care: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._registry = registry
        self.boards = {board.name: board for board in registry}
        self._folder = folder
        self._store = Store(folder, indexed=False)  # runs are there for a moment, and known by the station
        self._leases = Leases(farm_file(registry.state_dir), clock)
        self._station = Station(registry, self._store, self._leases, self._bundle, self._labelled, strict, hold, care)
        self._kept: dict[str, Bundle] = {}
        self._outbox: Outbox[list[Outcome] | DeployError] = Outbox(self._take, max(4, len(self.boards)))
        self._id = secrets.token_hex(8)
        self._versions = cells.versions()
        self._sick: tuple[float, list[str]] = (0.0, [])

    def about(self) -> dict[str, Any]:
        """Of this gateway; does not change as long as its process lives, which `id` tells from others."""
        return {"gateway": self.name, "id": self._id, "versions": self._versions, "boards": list(self.boards)}

    def describe(self) -> dict[str, Any]:
        """The boards, as boards.yaml has them, and what is known of them."""
        seen = Sightings(self._leases.file, self._leases.clock).all()
        return {
            "boards": {name: board.model_dump(mode="json") for name, board in self.boards.items()},
            "seen": {name: asdict(known) for name, known in seen.items() if name in self.boards},
        }

    def beat(self) -> dict[str, Any]:
        """What changes: boards that are in quarantine, and what runs."""
        now = time.monotonic()
        if now >= self._sick[0]:
            with contextlib.suppress(FarmError):
                seen = Sightings(self._leases.file, self._leases.clock).all()
                self._sick = (now + BEAT_S, [name for name, known in seen.items() if known.reason is not None])
        return {"sick": self._sick[1], "pulses": self._station.pulses()}

    def statuses(self) -> list[dict[str, Any]]:
        """How the boards are, see `deploy.farm.status.Status.shown`."""
        return [status.shown() for status in statuses_of(self._registry, leases=self._leases)]

    def begin(self, told: dict[str, Any]) -> dict[str, Any]:
        """
        Begin turns of a plan on another machine; those that have begun already go on.

        Args:
            told: plan; turns: each with id, board, works, wait_s, priority; bundles: those, and samples, that were not
                brought before, by digest.

        Returns:
            missing: digests of what is not here, whose turns were not begun; or error and hint: nothing can be kept
            here.
        """
        try:
            for digest, data in told["bundles"].items():
                self._keep(digest, data)
        except StoreError as error:
            return self._failed(error)
        turns = [Turn(**{**turn, "works": tuple(Work(**work) for work in turn["works"])}) for turn in told["turns"]]
        needed = {turn.id: {digest for work in turn.works for digest in work.needs} for turn in turns}
        missing = {digest for some in needed.values() for digest in some if not self._has(digest)}
        self._outbox.begin(told["plan"], [turn for turn in turns if missing.isdisjoint(needed[turn.id])])
        return {"missing": sorted(missing)}

    def collect(self, told: dict[str, Any]) -> dict[str, Any]:
        """
        What came of turns that were begun; waits for the first that ends.

        Args:
            told: plan; turns: those that it waits for; done: those whose answers it has; have: runs that it has;
                wait_s.

        Returns:
            ended: turn -> outcomes, and runs: id -> the packed run; or error and hint.  unknown: turns of which nothing
            is known here.
        """
        unknown = self._outbox.unknown(told["turns"])
        self._station.forget(told["have"])
        ended = self._outbox.collect(told["plan"], told["done"], 0.0 if unknown else told["wait_s"])
        return {"ended": {turn: self._packed(answer) for turn, answer in ended.items()}, "unknown": unknown}

    def _take(self, turn: Turn) -> list[Outcome] | DeployError:
        try:
            return self._station.take(turn)
        except DeployError as error:
            return error
        except Exception as error:  # a bug must not leave its cells waiting for ever
            return DeployError(f"internal: {type(error).__name__}: {error}")

    def _packed(self, answer: list[Outcome] | DeployError) -> dict[str, Any]:
        if isinstance(answer, DeployError):
            return self._failed(answer)
        try:
            runs = {outcome.run: self._store.pack(outcome.run) for outcome in answer if outcome.run}
        except StoreError as error:
            return self._failed(error)
        return {"outcomes": [vars(outcome) for outcome in answer], "runs": runs}

    def _failed(self, error: DeployError) -> dict[str, Any]:
        return {"error": f"gateway {self.name!r}: {error}", "hint": error.hint}

    def leave(self, plan: str, runs: list[str]) -> None:
        """A plan is over: it has these runs, and wants no more of its turns."""
        self._station.forget(runs)
        self._station.call_off(self._outbox.leave(plan))

    def close(self) -> None:
        """End what runs."""
        self._station.stop()
        self._outbox.close()
        time.sleep(LEAVE_S if self._station.pulses() else 0)
        self._station.hang_up()
        self._leases.close()

    def _path(self, digest: str) -> Path:
        return self._folder / "bundles" / f"{digest}.bundle"

    def _keep(self, digest: str, data: bytes) -> None:
        path = self._path(digest)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as staging:
                staging.write_bytes(data)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def _has(self, digest: str) -> bool:
        return digest in self._kept or self._path(digest).is_file()

    def _bundle(self, digest: str) -> Bundle:
        if digest not in self._kept:
            found = bundles.read(self._path(digest))
            if found.digest != digest:
                self._path(digest).unlink(missing_ok=True)
                raise BundleError(f"{self._path(digest)} is {found.digest[:12]}")
            self._kept[digest] = found
        return self._kept[digest]

    def _labelled(self, digest: str) -> Labelled:
        found = Labelled(self._path(digest).read_bytes())
        if found.digest != digest:
            self._path(digest).unlink(missing_ok=True)
            raise BundleError(f"{self._path(digest)} is {found.digest[:12]}")
        return found


async def begin(told: dict[str, Any]) -> dict[str, Any]:
    """`Gateway.begin`, of the gateway in whose process Dask runs this."""
    assert _gateway
    return await asyncio.to_thread(_gateway.begin, told)


async def collect(told: dict[str, Any]) -> dict[str, Any]:
    assert _gateway
    return await asyncio.get_running_loop().run_in_executor(_collecting, _gateway.collect, told)


async def describe() -> dict[str, Any]:
    assert _gateway
    return _gateway.describe()


async def statuses() -> list[dict[str, Any]]:
    assert _gateway
    return await asyncio.to_thread(_gateway.statuses)


async def leave(plan: str, runs: list[str]) -> None:
    assert _gateway
    await asyncio.to_thread(_gateway.leave, plan, runs)


def default_name() -> str:
    return socket.gethostname()


def run(gateway: Gateway, where: str, folder: Path, note: Callable[[str], None] | None = None) -> None:
    """
    Serve plans until interrupted; a scheduler that is gone is waited for.

    Args:
        where: address of the scheduler.
        folder: of the keys.
        note: told when the scheduler is found and when it is lost.

    Raises:
        FarmError: at the first attempt: there is none, it does not fit, or it does not want us.
    """
    global _gateway
    configure()
    _gateway = gateway
    try:
        asyncio.run(_run(gateway, where, folder, note or (lambda text: None)))
    finally:
        _gateway = None
        gateway.close()


async def _run(gateway: Gateway, where: str, folder: Path, note: Callable[[str], None]) -> None:
    from distributed import Worker, rpc

    said: str | None = None
    first = True
    while True:
        try:
            security = keys.security(folder, "gateway")
            await asyncio.to_thread(keys.reach, where, folder, "gateway")
            async with rpc(where, connection_args=security.get_connection_args("worker")) as scheduler:
                await check_versions(scheduler, where)
                if first:
                    await _refuse_doubles(scheduler, gateway)
            with tempfile.TemporaryDirectory(prefix="deploy-gateway-") as scratch:
                worker = Worker(
                    where,
                    name=f"{gateway.name} {os.getpid()} {time.monotonic_ns()}",
                    nthreads=1,
                    security=security,
                    memory_limit=0,
                    dashboard=False,
                    local_directory=scratch,
                    startup_information={"deploy": lambda worker: gateway.about()},
                    metrics={"deploy": lambda worker: gateway.beat()},
                    heartbeat_interval=f"{BEAT_S:g}s",
                )
                await asyncio.wait_for(worker, START_S)
                first, said = False, None
                note(f"gateway {gateway.name} has {len(gateway.boards)} boards for {where}")
                await worker.finished()
            note(f"lost {where}; what runs goes on")
        except Exception as error:  # Dask has many words for a link that breaks somewhere on its way
            if first:
                raise error if isinstance(error, FarmError) else FarmError(f"{where}: {error}") from None
            if str(error) != said:
                said = str(error)
                note(f"waiting for {where}: {said}")
        await asyncio.sleep(AGAIN_S)


async def _refuse_doubles(scheduler: Any, gateway: Gateway) -> None:
    """A board that two hosts claim has two lease files, and two truths."""
    workers = (await scheduler.identity())["workers"].values()
    for other in (worker["deploy"] for worker in workers if "deploy" in worker):
        both = sorted(set(other["boards"]) & set(gateway.boards))
        if both and other["gateway"] != gateway.name:
            raise FarmError(
                f"board {both[0]!r} is on gateway {other['gateway']!r} already",
                "give it another name in boards.yaml, or take it out there",
            )
