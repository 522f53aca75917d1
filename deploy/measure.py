"""
Measure: how long an invocation takes on a board, and for how much energy.

The agent times `invoke` alone, in several fresh processes, each warmed up until it is steady; every nanosecond
comes back and is stored as it arrives.  Where the board has meters, they are read all the while, with idle time before
and after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.boards import Board
from deploy.data import Array, to_wire
from deploy.errors import BoardSilent, from_agent
from deploy.results import energy as energies
from deploy.results import stats
from deploy.results.store import RunWriter, Store
from deploy.session import Session
from deploy.units import duration
from devices.protocol.conversation import SAMPLE_FIELDS
from devices.protocol.framing import Decoder, Kind
from devices.protocol.tensors import pack

_SAMPLE = np.dtype(list(SAMPLE_FIELDS))

# Restarts whose medians differ by more than this are told apart by something nobody asked about.
RESTARTS_DISAGREE = 0.05
FEW_SAMPLES = 30
POLL_S = 0.3  # between two looks at a spool that still grows
_NOTHING: Array = np.empty(0, np.int64)


@dataclass(frozen=True)
class Plan:
    """
    What to do.

    Attributes:
        duration_s: of timed invocations, over all restarts.
        restarts: fresh processes.
        min_invocations: in each restart, however long they take.
        max_invocations: in each restart, as every latency is kept (8 bytes); the verdict says so when it cuts one
            short.
        warmup_max_s: give up waiting for a steady state after this, in each restart.
        idle_s: before and after, where there is a meter.
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


@dataclass(frozen=True)
class Measured:
    """The outcome; `energy` has one entry for each rail."""

    latency: stats.LatencySummary
    verdict: tuple[str, ...]
    energy: tuple[energies.EnergyReading | energies.NoEnergy, ...]
    unmetered: str | None  # why there is no energy at all
    load_ns: int
    first_ns: int
    clock_overhead_ns: int
    runtime: str


class Collector:
    """
    Takes the events of a measurement as they come, keeps every raw value in the store, and makes sense of them at the
    end.  It does not matter whether they come from the running agent or from a spool.

    Args:
        board: whose rails boards.yaml may describe better than the meter can.
        listed: the agent's answer to ``meters.list``.
        writer: takes every raw value as it arrives, and the record.
        cap: the plan's `max_invocations`.
        progress: called with what is going on, and the latencies (ns) that just came.
    """

    def __init__(
        self,
        board: Board,
        listed: dict[str, Any],
        writer: RunWriter,
        cap: int,
        progress: Callable[[str, Array], None] | None = None,
    ) -> None:
        wanted = {rail.name: rail for rail in board.rails}
        self._board = board.name
        self._cap = cap
        self._listed = listed
        self._rails = [dict(rail) for rail in listed["rails"]]
        for rail in self._rails:
            stated = wanted.get(rail["name"])
            if stated and stated.scope:
                rail["scope"] = stated.scope
        self._writer = writer
        self._progress = progress
        self._restarts: dict[int, list[Array]] = {}
        self._samples: list[Array] = []
        self._meter_failed: str | None = None
        writer.set(rails=self._rails)

    def __call__(self, header: dict[str, Any], payload: bytes) -> None:
        """One event."""
        if "samples" in header:
            self._take_samples(header, payload)
            return
        number = header.get("restart")
        phase = header["phase"]
        latencies = np.frombuffer(payload, "<i8")
        if number is not None and len(latencies):
            kind = "warmup" if phase == "warm-up" else "latency"
            self._writer.append(f"{kind}_ns.{number}", latencies, "ns")
            if kind == "latency":
                self._restarts.setdefault(number, []).append(latencies)
        if self._progress:
            what = phase if number is None else f"restart {number}: {phase}"
            self._progress(what, latencies if phase == "measure" else _NOTHING)

    def _take_samples(self, header: dict[str, Any], payload: bytes) -> None:
        self._meter_failed = self._meter_failed or header.get("failed")
        samples = np.frombuffer(payload, _SAMPLE)
        if len(samples):
            self._writer.append("sample_t_ns", samples["t_ns"], "ns")
            self._writer.append("sample_rail", samples["rail"], "index in rails")
            self._writer.append("sample_value", samples["value"], "mW or uJ, see rails")
            self._samples.append(samples)

    def finish(self, reply: dict[str, Any]) -> Measured:
        """
        The outcome, once the agent has said that it is done; the record is complete with it.

        Args:
            reply: header of the agent's reply to ``measure.run``.
        """
        restarts = reply["restarts"]
        before, after = reply["state_before"], reply["state_after"]
        latency = stats.summarize([np.concatenate(parts) for _, parts in sorted(self._restarts.items())])
        windows = [energies.Window(r["window_ns"][0], r["window_ns"][1], r["invocations"]) for r in restarts]
        idle = [energies.Window(start, end, 0) for start, end in reply["idle_ns"]]
        energy = tuple(energies.per_invocation(rail, windows, idle) for rail in self._rail_samples())
        measured = Measured(
            latency=latency,
            verdict=_verdict(latency, restarts, before, after, self._meter_failed, self._cap),
            energy=energy,
            unmetered=None if energy else _why_unmetered(self._board, self._listed, self._meter_failed),
            load_ns=restarts[0]["load_ns"],
            first_ns=restarts[0]["first_ns"],
            clock_overhead_ns=restarts[0]["clock_overhead_ns"],
            runtime=reply["runtime"],
        )
        self._writer.set(
            state_before=before,
            state_after=after,
            restarts=restarts,
            windows=[asdict(window) for window in windows],
            idle_windows=[asdict(window) for window in idle],
            latency=asdict(latency),
            energy=[asdict(entry) for entry in energy],
            unmetered=measured.unmetered,
            runtime=measured.runtime,
            verdict=list(measured.verdict),
            headline=duration(latency.median_ns),
        )
        return measured

    def _rail_samples(self) -> list[energies.RailSamples]:
        if not self._samples:
            return []
        every = np.concatenate(self._samples)
        return [
            energies.RailSamples(
                rail["name"], rail["chip"], rail["scope"], rail["quantity"],
                every["t_ns"][every["rail"] == i], every["value"][every["rail"] == i],
            )
            for i, rail in enumerate(self._rails)
            if (every["rail"] == i).any()
        ]  # fmt: skip


def measure(
    session: Session,
    bundle: str,
    inputs: Sequence[Array],
    plan: Plan,
    writer: RunWriter,
    subject: str = "",
    progress: Callable[[str, Array], None] | None = None,
) -> Measured:
    """
    Measure a bundle that is on the board.

    The agent runs the whole plan and spools what it says: when the line breaks it goes on, and `attach` fetches the
    rest.

    Args:
        bundle: its digest.
        inputs: one array for every input, in the model's order; the same for every invocation.
        writer: takes every raw value as it arrives, and the record.
        progress: called with what is going on, and the latencies (ns) that just came.

    Raises:
        BoardError: as any run.  What had arrived is in the store.
    """
    listed = session.request("meters.list").header
    collector = Collector(session.board, listed, writer, plan.max_invocations, progress)
    described, payload = pack([to_wire(f"input {i}", array) for i, array in enumerate(inputs)])
    writer.set(plan=asdict(plan))
    header: dict[str, Any] = {
        "bundle": bundle,
        "plan": asdict(plan),
        "tensors": described,
        "threads": plan.threads,
        "signature": plan.signature,
        "rate_hz": max((rail.sample_rate_hz for rail in session.board.rails), default=100.0),
        "run": writer.known(),
    }
    if plan.limit_s is not None:
        header["limit_s"] = plan.limit_s
    if session.board.memory_limit_mib:
        header["memory_bytes"] = session.board.memory_limit_mib * 2**20
    each_s = plan.warmup_max_s + (plan.limit_s or 120.0) + 120.0
    within_s = plan.duration_s + plan.restarts * each_s + 2 * plan.idle_s
    reply = session.request(
        "measure.run", payload, on_event=collector, subject=subject, within_s=within_s, **header
    ).header
    measured = collector.finish(reply)
    session.request("spool.drop", spool=reply["spool"])
    return measured


def spools(session: Session) -> list[dict[str, Any]]:
    """Measurements on the board whose host vanished: id, bytes, grows, request; oldest first."""
    found: list[dict[str, Any]] = session.request("spool.list").header["spools"]
    return found


def attach(
    session: Session,
    spool: dict[str, Any],
    store: Store,
    progress: Callable[[str, Array], None] | None = None,
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
        cap = int(spool["request"]["plan"]["max_invocations"])
        collector = Collector(session.board, listed, writer, cap, progress)
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
                    measured = collector.finish(message.header)
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


def _verdict(
    latency: stats.LatencySummary,
    replies: list[dict[str, Any]],
    before: dict[str, Any],
    after: dict[str, Any],
    meter_failed: str | None,
    cap: int,
) -> tuple[str, ...]:
    """``ok``, or every code that speaks against the number."""
    medians = latency.restart_medians_ns
    codes = []
    if not all(reply["steady"] for reply in replies):
        codes.append("not-steady")
    if any(reply["invocations"] >= cap for reply in replies):
        codes.append("cut-short")
    if latency.n < FEW_SAMPLES:
        codes.append("too-few-samples")
    if len(medians) > 1 and max(medians) > min(medians) * (1 + RESTARTS_DISAGREE):
        codes.append("restarts-disagree")
    # Bits 0..3 are "now", 16..19 "since boot": a bit that was clear before and is set now happened during the run.
    if after.get("throttled", 0) & 0xF or after.get("throttled", 0) & ~before.get("throttled", 0) & 0xF0000:
        codes.append("throttled")
    if before.get("governors") != after.get("governors"):
        codes.append("governor-changed")
    if meter_failed:
        codes.append("meter-failed")
    return tuple(codes) or ("ok",)


def _why_unmetered(board: str, listed: dict[str, Any], failed: str | None) -> str:
    if failed:
        return failed
    if listed["unreadable"]:
        first = listed["unreadable"][0]
        return f"{first['chip']} on {board} cannot be read: {first['path']}: {first['reason']}"
    return f"no meter on {board}" if not listed["rails"] else f"the meters on {board} gave no sample"
