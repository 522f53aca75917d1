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

from deploy import accelerate
from deploy.data import Array, to_wire
from deploy.errors import BoardSilent, ConfigError, from_agent
from deploy.meters.attached import Attached
from deploy.results import energy as energies
from deploy.results import modelled, stats, verdicts
from deploy.results.store import RunWriter, Store
from deploy.results.windows import meter_effect, objections, pause_s, sample_rate_hz
from deploy.session import Session
from deploy.units import duration
from devices.protocol.conversation import SAMPLE_FIELDS
from devices.protocol.framing import Decoder, Kind
from devices.protocol.meter import Rail
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
        idle_s: between two windows, seen by the slowest meter; the board rests longer by what that needs to forget.
        windows: spans from which energy is taken, where there is a meter; 0 for none.
        window_s: of each.
        modelled: where nothing measures, say what the model of boards.yaml says.
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
    windows: int = 5
    window_s: float = 10.0
    modelled: bool = False
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
        phase: ``loading``, ``warm-up``, ``measure``; for energy ``idle``, ``window 1``, ..., ``meter effect``.
        restart: counted from 1; None between them.
        latency_ns: of timed invocations.
        samples: of meters: fields t_ns, rail, value; `rails` says what they are.
    """

    phase: str
    restart: int | None
    latency_ns: Array = field(default_factory=lambda: _NO_LATENCIES)
    samples: Array = field(default_factory=lambda: _NO_SAMPLES)
    rails: Sequence[dict[str, Any]] = ()

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
        accelerator: what the board told of it, see `deploy.accelerate.summary`; None without one.
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
    accelerator: dict[str, Any] | None = None


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
        host_meters: meters on this machine were to be read, too.
    """

    def __init__(
        self,
        session: Session,
        listed: dict[str, Any],
        writer: RunWriter,
        plan: Plan,
        watch: Watch | None = None,
        host_meters: bool = False,
    ) -> None:
        wanted = {rail.name: rail for rail in session.board.rails}
        self._board = session.board.name
        self._points = [(point.threads, point.power_mw) for point in session.board.power_points]
        if plan.modelled and not {0} < {threads for threads, _ in self._points}:
            raise ConfigError(
                f"board {session.board.name!r} has no power model: power_points needs one with 0 threads and another",
                "`power_points: [{threads: 0, power_mw: 2700}, {threads: 1, power_mw: 3600}]` in boards.yaml",
            )
        self._emulated = bool(session.hello["identity"].get("emulated") or session.board.virtual)
        self._emulated |= session.board.kind == accelerate.SIMULATED_KIND
        self._plan = plan
        self._listed = listed
        self.rails = [dict(rail) for rail in listed["rails"]]
        for rail in self.rails:
            stated = wanted.get(rail["name"])
            if stated:
                rail.update(stated.known())
        self._writer = writer
        self._watch = watch
        self._asked_host_meters = host_meters
        self._replies: list[dict[str, Any]] = []
        self._before = 0  # restarts of the parts before this one
        self._windows_before = 0
        self._meter_failed: str | None = None
        writer.set(rails=self.rails)

    def __call__(self, header: dict[str, Any], payload: bytes) -> None:
        """One event."""
        number = header.get("restart")
        seen = Seen(header.get("phase", ""), None if number is None else number + self._before)
        if "samples" in header:
            seen = replace(seen, samples=self._take_samples(header, payload), rails=self.rails)
        elif payload and "window" in header:
            latencies = np.frombuffer(payload, "<i8")
            latencies = latencies[: len(latencies) - header.get("service", 0)]
            number = header["window"] + self._windows_before
            self._writer.append(f"window_ns.{number}", latencies, "ns")
            seen = Seen(f"window {number}", None)
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
        self._windows_before += len(reply.get("windows", ()))

    def finish(self, attached: Attached | None = None) -> Measured:
        """
        The outcome, after the last part; the record is complete with it.

        Args:
            attached: the meters that hung on this machine; None where nobody read them to the end.
        """
        replies = self._replies
        hosted = attached.store(self._writer) if attached else []
        if attached is None and self._asked_host_meters:
            self._meter_failed = f"the meters on this machine were not read on after the line to {self._board} broke"
        elif attached:
            self._meter_failed = self._meter_failed or attached.failed
        restarts = [restart for reply in replies for restart in reply["restarts"]]
        before, after = replies[0]["state_before"], replies[-1]["state_after"]
        latency = stats.summarize(self._writer.restarts("latency_ns"))
        service = self._writer.restarts("service_ns")
        windows = self._windows()
        idle = [energies.Window(start, end, 0) for reply in replies for start, end in reply["idle_ns"]]
        energy = energies.evaluate([*self._rail_samples(), *hosted], windows, idle) if windows else ()
        if self._plan.modelled and not energy:
            energy = (modelled.reading(latency, self._plan.threads, self._board, self._points),)
        told = [restart.get("accelerator") for restart in restarts]
        effect = meter_effect([tuple(turn) for reply in replies for turn in reply.get("meter_effect", ())])
        circumstances = verdicts.Circumstances(
            restarts,
            before,
            after,
            cap=self._plan.max_invocations,
            until=self._plan.until,
            lost=any(reply["events"]["lost"] for reply in replies),
            emulated=self._emulated,
            meter_failed=self._meter_failed is not None,
            simulated=all(map(accelerate.is_simulated, told)),
            accelerator_failed=any(entry and entry["failed"] for entry in told),
        )
        affinity = restarts[0].get("affinity")
        late = [restart["late_starts"] for restart in restarts if "late_starts" in restart]
        measured = Measured(
            latency=latency,
            verdict=verdicts.with_meters(verdicts.judge(latency, circumstances), effect, energy),
            energy=energy,
            unmetered=None if energy else _why_unmetered(self._board, self._listed, self._meter_failed),
            load_ns=restarts[0]["load_ns"],
            first_ns=restarts[0]["first_ns"],
            clock_overhead_ns=restarts[0]["clock_overhead_ns"],
            runtime=replies[0]["runtime"],
            service=stats.summarize(service) if service else None,
            late_starts=sum(late) if late else None,
            affinity=None if affinity is None else tuple(affinity),
            accelerator=told[-1],
        )
        self._writer.set(
            state_before=before,
            state_after=after,
            restarts=restarts,
            windows=[asdict(window) for window in windows],
            idle_windows=[asdict(window) for window in idle],
            latency=vars(latency),
            service=vars(measured.service) if measured.service else None,
            events=[reply["events"] for reply in replies],
            energy=[asdict(entry) for entry in energy],
            sampling=[reply.get("sampling") for reply in replies],
            meter_effect=asdict(effect) if effect else None,
            unmetered=measured.unmetered,
            runtime=measured.runtime,
            delegate=replies[0].get("kernels"),
            accelerator=measured.accelerator,
            verdict=list(measured.verdict),
            headline=duration(latency.median_ns),
        )
        return measured

    def _windows(self) -> list[energies.Window]:
        replies = [window for reply in self._replies for window in reply.get("windows", ())]
        found = []
        for n, reply in enumerate(replies, start=1):
            start, end = reply["window_ns"]
            codes = objections(reply, len(self._writer.array(f"window_ns.{n}")))
            found.append(energies.Window(start, end, reply["invocations"], codes))
        return found

    def _rail_samples(self) -> list[energies.RailSamples]:
        t_ns, number, value = (self._writer.array(f"sample_{name}") for name in ("t_ns", "rail", "value"))
        sampling = [reply["sampling"] for reply in self._replies if reply.get("sampling")]
        turns = sum(entry["turns"] for entry in sampling)
        missing = [sum(counts) for counts in zip(*(entry["missing"] for entry in sampling), strict=False)]
        found = []
        for i, described in enumerate(self.rails):
            mine = number == i
            if mine.any():
                share = missing[i] / turns if i < len(missing) and turns else 0.0
                found.append(energies.RailSamples(Rail.of(described), t_ns[mine], value[mine], missing=share))
        return found


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
    listed = list_meters(session)
    with Attached(session) as attached:
        plan = _with_pauses(plan, listed, attached)
        collector = Collector(session, listed, writer, plan, watch)
        writer.set(plan=vars(plan), host_meters=[meter.name for meter in session.board.host_meters])
        _run(session, bundle, inputs, plan, writer, collector, subject)
    return collector.finish(attached)


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
    listed = list_meters(session)
    with Attached(session) as attached:
        collectors = _in_turns(session, turns, _with_pauses(plan, listed, attached), listed, watch)
    return [collector.finish(attached) for collector in collectors]


def _in_turns(
    session: Session, turns: Sequence[Turn], plan: Plan, listed: dict[str, Any], watch: Watch | None
) -> list[Collector]:
    collectors = [Collector(session, listed, turn.writer, plan, watch) for turn in turns]
    pairing = secrets.token_hex(4)
    for position, turn in enumerate(turns):
        turn.writer.set(plan=vars(plan), pairing={"id": pairing, "position": position, "of": len(turns)})
    once = replace(
        plan, restarts=1, duration_s=plan.duration_s / plan.restarts, until=None, windows=min(plan.windows, 1)
    )
    for number in range(plan.restarts):
        both = list(zip(turns, collectors, strict=True))
        for turn, collector in reversed(both) if number % 2 else both:
            _run(session, turn.bundle, turn.inputs, once, turn.writer, collector, turn.subject)
    return collectors


def list_meters(session: Session) -> dict[str, Any]:
    """What the board says of its meters, with the chips that only boards.yaml knows of."""
    wired = [chip.model_dump() for chip in session.board.wired]
    return session.request("meters.wire", wired=wired).header if wired else session.request("meters.list").header


def _with_pauses(plan: Plan, listed: dict[str, Any], attached: Attached) -> Plan:
    """The plan as the board gets it: it rests until the slowest meter has forgotten the window before."""
    rails = [Rail.of(rail) for rail in listed["rails"]]
    return replace(plan, idle_s=pause_s([*rails, *attached.rails], plan.idle_s, attached.clock_bound_s))


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
        "plan": vars(plan),
        "tensors": described,
        "threads": plan.threads,
        "signature": plan.signature,
        "pin": list(plan.pin) if plan.pin else None,
        **session.kernels.asked,
        "host_meters": bool(session.board.host_meters),
        "rate_hz": sample_rate_hz(collector.rails, session.board.rails),
        "run": writer.known(),
    }
    if plan.limit_s is not None:
        header["limit_s"] = plan.limit_s
    if session.board.memory_limit_mib:
        header["memory_bytes"] = session.board.memory_limit_mib * 2**20
    each_s = plan.warmup_max_s + (plan.limit_s or 120.0) + 120.0
    within_s = plan.duration_s + max(plan.restarts, 10 if plan.until else 0) * each_s + plan.idle_s
    within_s += plan.windows * (plan.window_s + plan.idle_s)
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
    listed = list_meters(session)
    known = dict(spool["request"]["run"])
    known["attached"] = {"spool": spool["id"], "run": known.pop("id", None)}
    with store.writer("measure", known) as writer:
        plan = spool["request"]["plan"]
        asked = Plan(**{key: plan[key] for key in Plan.__dataclass_fields__ if key in plan})
        with_host_meters = bool(known.get("host_meters"))
        collector = Collector(session, listed, writer, asked, watch, with_host_meters)
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
