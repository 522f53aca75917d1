"""
Cells: one bundle, one choice of boards, one setting; and how one is measured.

A cell that was measured is known by its key: the bundle's content, the board, the setting, and the versions of what
measured.  The key stands in the run's record, so the results store is all that has to be remembered of a plan: what is
in it is not measured again, whoever stopped what, and when.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy import __version__, bootstrap, fleet, inference, kernels, runtime
from deploy.boards import Board, LocalTransport
from deploy.bundle import Bundle
from deploy.errors import (
    BoardError,
    Busy,
    ConfigError,
    DeployError,
    DiskFull,
    FarmError,
    RuntimeMissing,
    StaleToken,
    TransportError,
    UsageError,
    nearest,
)
from deploy.evaluate import evaluate, keep
from deploy.farm.choose import missing
from deploy.farm.labelled import Labelled
from deploy.farm.plan import Plan, Setting
from deploy.farm.seen import Seen as Sighting
from deploy.measure import Plan as MeasuringPlan
from deploy.measure import Seen, Watch, attach, measure, spools
from deploy.prepare import input_values, run_record
from deploy.results.store import RunWriter, Store
from deploy.session import Session
from devices.protocol import errors as codes

# The board's fault, not the bundle's: another board may do better.
_BOARD_FAULTS = (TransportError, Busy, DiskFull, StaleToken, RuntimeMissing, FarmError)


@dataclass(frozen=True)
class Cell:
    """
    Attributes:
        id: ``bundle/place/setting``.
        place: the board's name, or what was asked for.
        boards: any of these will do.
        spares: boards of the same kind; for when all of those failed.
    """

    id: str
    bundle: str
    place: str
    setting: str
    boards: tuple[str, ...]
    spares: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """
    What whoever has the board is told of a cell; it goes through JSON.

    Attributes:
        digest: of the bundle.
        versions: of what measures, see `versions`.
        plan: the plan's name.
        since: runs whose ids are lower do not count as this cell.
        data: digest of the samples by which the bundle is to be evaluated as well.
    """

    cell: str
    digest: str
    subject: str
    place: str
    setting: dict[str, Any]
    versions: dict[str, str]
    plan: str
    since: str = ""
    data: str | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Digests of all that must be where the board is."""
        return (self.digest, self.data) if self.data else (self.digest,)

    def key(self, board: Board) -> str:
        """What tells this cell on `board` from every other; 32 hexadecimal digits."""
        told = [self.digest, board.name, self.setting, self.versions, _own_runtime(board)]
        told += [self.data] if self.data else []
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def versions() -> dict[str, str]:
    """Of all that this deploy brings to a board: two runs that differ in one of them are two measurements."""
    return {
        "deploy": __version__,
        "agent": bootstrap.agent_package().sha256[:32],
        "runtime": hashlib.sha256(runtime.LOCK.read_bytes()).hexdigest()[:32],
        "kernels": kernels.digest(kernels.sources()),
    }


def _own_runtime(board: Board) -> str | None:
    """This machine's runtime, where it is the board's; a board elsewhere gets what is in the lock."""
    if isinstance(board.transport, LocalTransport):
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version("ai-edge-litert")
    return None


def work(
    plan: Plan, cell: Cell, digest: str, made_by: dict[str, str], since: str = "", data: str | None = None
) -> Work:
    """A cell whose bundle is there, and the data by which it is evaluated."""
    setting = plan.settings[cell.setting].model_dump(mode="json", exclude={"like", "evaluate", "samples"})
    return Work(cell.id, digest, cell.bundle, cell.place, setting, made_by, plan.name, since, data)


def matrix(plan: Plan, boards: Mapping[str, Board], seen: Mapping[str, Sighting]) -> list[Cell]:
    """
    Every cell of the plan, bundle by bundle.

    Args:
        boards: those that there are, by name.
        seen: what is known of them, see `deploy.farm.seen`.

    Raises:
        ConfigError: a board, tag or kind that is not there, with its line and the nearest one; or nothing meets what is
            needed.
    """
    places: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    problems = []
    for line, entry in zip(plan.lines, plan.boards, strict=True):
        at = f"{plan.path}:{line}"
        objection = _unknown(entry.board, "board", sorted(boards), at)
        objection = objection or _unknown(entry.tag, "tag", sorted({t for b in boards.values() for t in b.tags}), at)
        objection = objection or _unknown(entry.kind, "kind", sorted({b.kind for b in boards.values()}), at)
        if objection:
            problems.append(objection)
            continue
        named = [
            board
            for board in boards.values()
            if entry.board in (None, board.name)
            and (entry.tag is None or entry.tag in board.tags)
            and entry.kind in (None, board.kind)
        ]
        try:
            lacks = {board.name: missing(board, entry.needs, seen.get(board.name)) for board in named}
        except UsageError as error:  # a need that there is not
            problems.append(f"{at}: {error}")
            continue
        found = [name for name, lack in lacks.items() if not lack]
        if not found:
            why = "; ".join(f"{name} {', '.join(lack)}" for name, lack in lacks.items())
            problems.append(f"{at}: no board will do" + (f": {why}" if why else ""))
        elif entry.board or entry.each:
            places += [(name, (name,), _alike(boards, name)) for name in found]
        else:
            places.append((entry.text, tuple(found), ()))
    if problems:
        raise ConfigError("\n".join(problems), "`deploy boards` lists names, kinds and tags", path=str(plan.path))
    return [
        Cell(f"{bundle}/{place}/{setting}", bundle, place, setting, some, spares)
        for bundle in plan.bundles
        for place, (some, spares) in {place: (some, spares) for place, some, spares in places}.items()
        for setting in plan.settings
    ]


def _unknown(name: str | None, what: str, known: list[str], at: str) -> str | None:
    return f"{at}: no {what} {name!r}{nearest(name, known)}" if name is not None and name not in known else None


def _alike(boards: Mapping[str, Board], name: str) -> tuple[str, ...]:
    """Boards that measure the same thing as far as boards.yaml knows: kind, processor, and being emulated or not."""
    wanted = boards[name]
    return tuple(
        other.name
        for other in boards.values()
        if other.name != name and (other.kind, other.cpu, other.virtual) == (wanted.kind, wanted.cpu, wanted.virtual)
    )


def is_board_fault(error: BaseException) -> bool:
    """Whether the same cell may succeed on another board."""
    inner = isinstance(error, BoardError) and error.code in (codes.INTERNAL, codes.IO_ERROR)
    return isinstance(error, _BOARD_FAULTS) or inner


def measure_cell(
    session: Session,
    bundle: Bundle,
    what: Work,
    store: Store,
    watch: Watch | None = None,
    watcher: fleet.Watcher | None = None,
    labelled: Labelled | None = None,
) -> str:
    """
    Measure one cell on the board of `session`, which is ours, and evaluate it there if it has data.

    What an earlier holder left running there, or has left its result there, is fetched rather than measured again; a
    cell with data is not, as its run would lack the accuracy.

    Returns:
        The run.

    Raises:
        DeployError: as `deploy.fleet.bring` and `deploy.measure.measure`; what had arrived is in the store.
    """
    key = what.key(session.board)
    for spool in spools(session) if labelled is None else ():
        if ((spool["request"].get("run") or {}).get("cell") or {}).get("key") == key:
            with suppress(DeployError):
                return attach(session, spool, store, watch)[0]
    setting = Setting.model_validate(what.setting)
    fleet.bring(session, bundle, watcher or _Silent(), setting.kernels)
    plan = setting.measuring()
    inputs = input_values(session, bundle, plan)
    about = {"key": key, **vars(what)}
    with store.writer("measure", run_record(session, bundle, vars(plan)) | {"cell": about}) as writer:
        measure(session, bundle.digest, inputs, plan, writer, bundle.name, watch)
        if labelled is not None:
            _evaluate(session, bundle, labelled, plan, writer, watcher or _Silent())
    return writer.id


def _evaluate(
    session: Session,
    bundle: Bundle,
    labelled: Labelled,
    plan: MeasuringPlan,
    writer: RunWriter,
    watcher: fleet.Watcher,
) -> None:
    """The accuracy on the board, into the same run."""
    dataset = labelled.dataset()
    model = inference.load(
        session, bundle=bundle.digest, threads=plan.threads, limit_s=plan.limit_s, subject=bundle.name
    )
    arrived: list[int] = []
    try:
        evaluate(
            session, model, dataset, bundle.manifest.preprocess, limit_s=plan.limit_s, subject=bundle.name,
            progress=lambda done: watcher.note(f"evaluating, {done} of {len(dataset.x)}"), arrived=arrived,
        )  # fmt: skip
        inference.unload(session, bundle.name)
    finally:
        if arrived:
            keep(writer, arrived, dataset)


class _Silent:
    def note(self, text: str) -> None:
        pass

    def bytes(self, done: int, total: int) -> None:
        pass


class Pulse:
    """What a cell looks like while it runs: a few numbers, whatever the board sends."""

    def __init__(self) -> None:
        self._seen: dict[str, Any] = {"phase": "reaching the board", "invocations": 0}
        self._energy: dict[str, tuple[int, float]] = {}
        self._watts: dict[str, float] = {}

    def note(self, text: str) -> None:
        self._seen["phase"] = text

    def bytes(self, done: int, total: int) -> None:
        self._seen["phase"] = f"sending, {done / max(1, total):.0%}"

    def update(self, seen: Seen) -> None:
        """Take what arrived."""
        self._seen["phase"] = seen.what or self._seen["phase"]
        if len(seen.latency_ns):
            self._seen["invocations"] += len(seen.latency_ns)
            self._seen["median_ns"] = float(np.median(seen.latency_ns))
        if len(seen.samples):
            for number in np.unique(seen.samples["rail"]):
                self._power(seen.rails[int(number)], seen.samples[seen.samples["rail"] == number])

    def _power(self, rail: Mapping[str, Any], samples: Any) -> None:
        name, t_ns, value = str(rail["name"]), int(samples["t_ns"][-1]), float(samples["value"][-1])
        if rail["quantity"] != "energy_uj":
            self._watts[name] = float(samples["value"].mean()) / 1000
            return
        then, counted = self._energy.get(name, (int(samples["t_ns"][0]), float(samples["value"][0])))
        if t_ns > then:
            self._watts[name] = (value - counted) / (t_ns - then) * 1000  # uJ per ns is kW
        self._energy[name] = (t_ns, value)

    def snapshot(self) -> dict[str, Any]:
        """phase, invocations; median_ns of the latest batch and watts by rail where there are any."""
        return {**self._seen, **({"watts": dict(self._watts)} if self._watts else {})}
