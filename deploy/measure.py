"""
Measure: how long an invocation takes on a board, and for how much energy.

The agent times `invoke` alone, in several fresh processes, each warmed up until it is steady; every nanosecond
comes back and is stored as it arrives.  Where the board has meters, they are read all the while, with idle time before
and after.  Two bundles that take turns, process by process, can be compared pair by pair.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from deploy.boards import Board
from deploy.data import Array, to_wire
from deploy.errors import BoardSilent, from_agent
from deploy.results import energy as energies
from deploy.results import stats, verdicts
from deploy.results.store import RunWriter, Store
from deploy.session import Session
from deploy.units import duration
from devices.protocol.conversation import SAMPLE_FIELDS
from devices.protocol.framing import Decoder, Kind
from devices.protocol.tensors import pack

_SAMPLE = np.dtype(list(SAMPLE_FIELDS))

POLL_S = 0.3  # between two looks at a spool that still grows
_NO_LATENCIES: Array = np.empty(0, np.int64)
_NO_SAMPLES: Array = np.empty(0, _SAMPLE)


@dataclass(frozen=True)
class Plan:
    """
    What to do.

    Attributes:
        duration_s: of timed invocations, over all restarts; with `until`, at most.
        restarts: fresh processes; with `until`, at least.
        min_invocations: in each restart, however long they take.
        max_invocations: in each restart, as every latency is kept (8 bytes); the verdict says so when it cuts one
            short.
        warmup_max_s: give up waiting for a steady state after this, in each restart.
        idle_s: before and after, where there is a meter.
        until: stop when half of the median's 95 % interval is within this share of the median; the board decides.
        rate: invocations per second, started by a schedule that does not wait for the model; None is back to back.
        pin: the CPUs that the process may run on; None leaves it to the board.
    """

    duration_s: float = 10.0
    restarts: int = 3
    min_invocations: int = 10
    max_invocations: int = 5_000_000
    warmup_max_s: float = 10.0
    idle_s: float = 3.0
    threads: int = 1
    signature: str | None = None
    limit_s: float | None = None
    until: float | None = None
    rate: float | None = None
    pin: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Seen:
    """
    What just arrived from a measurement.

    Attributes:
        phase: ``loading``, ``warm-up``, ``measure``, ``idle before``, ``idle after``.
        restart: counted from 1; None between them.
        latency_ns: of timed invocations.
        samples: of meters: fields t_ns, rail, value.
    """

    phase: str
    restart: int | None
    latency_ns: Array = field(default_factory=lambda: _NO_LATENCIES)
    samples: Array = field(default_factory=lambda: _NO_SAMPLES)

    @property
    def what(self) -> str:
        return self.phase if self.restart is None else f"restart {self.restart}: {self.phase}"


Watch = Callable[[Seen], None]


@dataclass(frozen=True)
class Measured:
    """
    The outcome; `energy` has one entry for each rail.

    Attributes:
        service: time on the board alone, where `latency` counts from a schedule; else None.
        late_starts: of a schedule; None without one.
        affinity: the CPUs that the process could run on; None where the board cannot say.
    """

    latency: stats.LatencySummary
    verdict: tuple[str, ...]
    energy: tuple[energies.EnergyReading | energies.NoEnergy, ...]
    unmetered: str | None  # why there is no energy at all
    load_ns: int
    first_ns: int
    clock_overhead_ns: int
    runtime: str
    service: stats.LatencySummary | None = None
    late_starts: int | None = None
    affinity: tuple[int, ...] | None = None


class Collector:
    """
    Takes the events of a measurement as they come, keeps every raw value in the store and none in memory, and makes
    sense of them at the end.  It does not matter whether they come from the running agent or from a spool.

    Args:
        session: with the board, whose rails boards.yaml may describe better than the meter can.
        listed: the agent's answer to ``meters.list``.
        writer: takes every raw value as it arrives, and the record.
        plan: what the board was asked to do.
        watch: called with whatever arrives.
    """

    def __init__(
        self,
        session: Session,
        listed: dict[str, Any],
        writer: RunWriter,
        plan: Plan,
        watch: Watch | None = None,
    ) -> None:
        wanted = {rail.name: rail for rail in session.board.rails}
        self._board = session.board.name
        self._emulated = bool(session.hello["identity"].get("emulated"))
        self._plan = plan
        self._listed = listed
        self._rails = [dict(rail) for rail in listed["rails"]]
        for rail in self._rails:
            stated = wanted.get(rail["name"])
            if stated and stated.scope:
                rail["scope"] = stated.scope
        self._writer = writer
        self._watch = watch
        self._replies: list[dict[str, Any]] = []
        self._before = 0  # restarts of the parts before this one
        self._meter_failed: str | None = None
        writer.set(rails=self._rails)

    def __call__(self, header: dict[str, Any], payload: bytes) -> None:
        """One event."""
        number = header.get("restart")
        seen = Seen(header.get("phase", ""), None if number is None else number + self._before)
        if "samples" in header:
            seen = replace(seen, samples=self._take_samples(header, payload))
        elif payload and seen.restart is not None:
            seen = self._take_latencies(seen, np.frombuffer(payload, "<i8"), header.get("service", 0))
        if self._watch:
            self._watch(seen)

    def _take_latencies(self, seen: Seen, values: Array, service: int) -> Seen:
        latencies = values[: len(values) - service]
        kind = "warmup" if seen.phase == "warm-up" else "latency"
        self._writer.append(f"{kind}_ns.{seen.restart}", latencies, "ns")
        if service:
            self._writer.append(f"service_ns.{seen.restart}", values[len(values) - service :], "ns")
        return replace(seen, latency_ns=latencies) if kind == "latency" else seen

    def _take_samples(self, header: dict[str, Any], payload: bytes) -> Array:
        self._meter_failed = self._meter_failed or header.get("failed")
        samples = np.frombuffer(payload, _SAMPLE)
        if len(samples):
            self._writer.append("sample_t_ns", samples["t_ns"], "ns")
            self._writer.append("sample_rail", samples["rail"], "index in rails")
            self._writer.append("sample_value", samples["value"], "mW or uJ, see rails")
        return samples

    def part(self, reply: dict[str, Any]) -> None:
        """
        The agent has said that it is done with this part, and another one may follow.

        Args:
            reply: header of the agent's reply to ``measure.run``.
        """
        self._replies.append(reply)
        self._before += len(reply["restarts"])

    def finish(self) -> Measured:
        """The outcome, after the last part; the record is complete with it."""
        replies = self._replies
        restarts = [restart for reply in replies for restart in reply["restarts"]]
        before, after = replies[0]["state_before"], replies[-1]["state_after"]
        latency = stats.summarize(self._writer.restarts("latency_ns"))
        service = self._writer.restarts("service_ns")
        windows = [energies.Window(r["window_ns"][0], r["window_ns"][1], r["invocations"]) for r in restarts]
        idle = [energies.Window(start, end, 0) for reply in replies for start, end in reply["idle_ns"]]
        energy = tuple(energies.per_invocation(rail, windows, idle) for rail in self._rail_samples())
        circumstances = verdicts.Circumstances(
            restarts,
            before,
            after,
            cap=self._plan.max_invocations,
            until=self._plan.until,
            lost=any(reply["events"]["lost"] for reply in replies),
            emulated=self._emulated,
            meter_failed=self._meter_failed is not None,
        )
        affinity = restarts[0].get("affinity")
        late = [restart["late_starts"] for restart in restarts if "late_starts" in restart]
        measured = Measured(
            latency=latency,
            verdict=verdicts.judge(latency, circumstances),
            energy=energy,
            unmetered=None if energy else _why_unmetered(self._board, self._listed, self._meter_failed),
            load_ns=restarts[0]["load_ns"],
            first_ns=restarts[0]["first_ns"],
            clock_overhead_ns=restarts[0]["clock_overhead_ns"],
            runtime=replies[0]["runtime"],
            service=stats.summarize(service) if service else None,
            late_starts=sum(late) if late else None,
            affinity=None if affinity is None else tuple(affinity),
        )
        self._writer.set(
            state_before=before,
            state_after=after,
            restarts=restarts,
            windows=[asdict(window) for window in windows],
            idle_windows=[asdict(window) for window in idle],
            latency=asdict(latency),
            service=asdict(measured.service) if measured.service else None,
            events=[reply["events"] for reply in replies],
            energy=[asdict(entry) for entry in energy],
            unmetered=measured.unmetered,
            runtime=measured.runtime,
            delegate=replies[0].get("kernels"),
            verdict=list(measured.verdict),
            headline=duration(latency.median_ns),
        )
        return measured

    def _rail_samples(self) -> list[energies.RailSamples]:
        t_ns, number, value = (self._writer.array(f"sample_{name}") for name in ("t_ns", "rail", "value"))
        return [
            energies.RailSamples(
                rail["name"], rail["chip"], rail["scope"], rail["quantity"], t_ns[number == i], value[number == i]
            )
            for i, rail in enumerate(self._rails)
            if (number == i).any()
        ]  # fmt: skip


def measure(
    session: Session,
    bundle: str,
    inputs: Sequence[Array],
    plan: Plan,
    writer: RunWriter,
    subject: str = "",
    watch: Watch | None = None,
) -> Measured:
    """
    Measure a bundle that is on the board.

    The agent runs the whole plan and spools what it says: when the line breaks it goes on, and `attach` fetches the
    rest.  It does not wait for a slow host either: what that does not take in time is fetched at the end.

    Args:
        bundle: its digest.
        inputs: one array for every input, in the model's order; the same for every invocation.
        writer: takes every raw value as it arrives, and the record.
        watch: called with whatever arrives.

    Raises:
        BoardError: as any run.  What had arrived is in the store.
    """
    listed = session.request("meters.list").header
    collector = Collector(session, listed, writer, plan, watch)
    writer.set(plan=asdict(plan))
    _run(session, bundle, inputs, plan, writer, collector, subject)
    return collector.finish()


@dataclass(frozen=True)
class Turn:
    """A bundle that takes turns with others: its digest, inputs as for `measure`, where it is stored, its name."""

    bundle: str
    inputs: Sequence[Array]
    writer: RunWriter
    subject: str = ""


def interleave(session: Session, turns: Sequence[Turn], plan: Plan, watch: Watch | None = None) -> list[Measured]:
    """
    Measure several bundles in turns, one process each, so that whatever the board goes through hits all of them alike.

    Who begins changes from round to round.  Each bundle becomes a run of its own, with ``plan.restarts`` restarts;
    restarts of the same number belong together, and ``pairing`` in the record says so.  The host leads: a round that
    it does not ask for is not measured.

    Raises:
        BoardError: as `measure`.
    """
    listed = session.request("meters.list").header
    collectors = [Collector(session, listed, turn.writer, plan, watch) for turn in turns]
    pairing = secrets.token_hex(4)
    for position, turn in enumerate(turns):
        turn.writer.set(plan=asdict(plan), pairing={"id": pairing, "position": position, "of": len(turns)})
    once = replace(plan, restarts=1, duration_s=plan.duration_s / plan.restarts, until=None)
    for number in range(plan.restarts):
        both = list(zip(turns, collectors, strict=True))
        for turn, collector in reversed(both) if number % 2 else both:
            _run(session, turn.bundle, turn.inputs, once, turn.writer, collector, turn.subject)
    return [collector.finish() for collector in collectors]


def _run(
    session: Session,
    bundle: str,
    inputs: Sequence[Array],
    plan: Plan,
    writer: RunWriter,
    collector: Collector,
    subject: str,
) -> None:
    """One ``measure.run``, all of whose events the collector has when this returns."""
    described, payload = pack([to_wire(f"input {i}", array) for i, array in enumerate(inputs)])
    header: dict[str, Any] = {
        "bundle": bundle,
        "plan": asdict(plan),
        "tensors": described,
        "threads": plan.threads,
        "signature": plan.signature,
        "pin": list(plan.pin) if plan.pin else None,
        "kernels": session.kernels.mode,
        "rate_hz": max((rail.sample_rate_hz for rail in session.board.rails), default=100.0),
        "run": writer.known(),
    }
    if plan.limit_s is not None:
        header["limit_s"] = plan.limit_s
    if session.board.memory_limit_mib:
        header["memory_bytes"] = session.board.memory_limit_mib * 2**20
    each_s = plan.warmup_max_s + (plan.limit_s or 120.0) + 120.0
    within_s = plan.duration_s + max(plan.restarts, 10 if plan.until else 0) * each_s + 2 * plan.idle_s
    reply = session.request(
        "measure.run", payload, on_event=collector, subject=subject, within_s=within_s, **header
    ).header
    events = reply["events"]
    if events["live"] < events["all"]:
        _catch_up(session, reply["spool"], events["live"], collector)
    collector.part(reply)
    session.request("spool.drop", spool=reply["spool"])


def _catch_up(session: Session, spool: str, known: int, collector: Collector) -> None:
    """Fetch the events that did not come live, as we were too slow to take them."""
    decoder = Decoder()
    offset = taken = 0
    more = True
    while more:
        reply = session.request("spool.read", spool=spool, offset=offset)
        offset += len(reply.payload)
        more = reply.header["more"]
        for message in decoder.feed(reply.payload):
            if message.kind is Kind.EVENT:
                taken += 1
                if taken > known:
                    collector(message.header, message.payload)


def spools(session: Session) -> list[dict[str, Any]]:
    """Measurements on the board whose host vanished: id, bytes, grows, request; oldest first."""
    found: list[dict[str, Any]] = session.request("spool.list").header["spools"]
    return found


def attach(
    session: Session,
    spool: dict[str, Any],
    store: Store,
    watch: Watch | None = None,
) -> tuple[str, Measured]:
    """
    Fetch a spooled measurement, waiting for its end if it still runs, and store it as the run that it was.

    Args:
        spool: an entry of `spools`.

    Returns:
        The new run's id, and the outcome.

    Raises:
        BoardError: the measurement failed on the board, or its agent died; what it had said is stored.
    """
    listed = session.request("meters.list").header
    known = dict(spool["request"]["run"])
    known["attached"] = {"spool": spool["id"], "run": known.pop("id", None)}
    with store.writer("measure", known) as writer:
        plan = spool["request"]["plan"]
        asked = Plan(**{key: plan[key] for key in Plan.__dataclass_fields__ if key in plan})
        collector = Collector(session, listed, writer, asked, watch)
        decoder = Decoder()
        offset = 0
        while True:
            reply = session.request("spool.read", spool=spool["id"], offset=offset)
            offset += len(reply.payload)
            for message in decoder.feed(reply.payload):
                if message.kind is Kind.EVENT:
                    collector(message.header, message.payload)
                elif message.kind is Kind.ERROR:
                    session.request("spool.drop", spool=spool["id"])
                    raise from_agent(session.board.name, message.header)
                else:
                    collector.part(message.header)
                    measured = collector.finish()
                    session.request("spool.drop", spool=spool["id"])
                    return writer.id, measured
            if not reply.header["more"]:
                session.request("spool.drop", spool=spool["id"])
                raise BoardSilent(
                    f"the agent on {session.board.name!r} ended before the measurement did",
                    f"what it had said is stored as {writer.id}",
                    board=session.board.name,
                )
            if not reply.payload:
                session.wait(POLL_S)


def _why_unmetered(board: str, listed: dict[str, Any], failed: str | None) -> str:
    if failed:
        return failed
    if listed["unreadable"]:
        first = listed["unreadable"][0]
        return f"{first['chip']} on {board} cannot be read: {first['path']}: {first['reason']}"
    return f"no meter on {board}" if not listed["rails"] else f"the meters on {board} gave no sample"
