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

from deploy import inference
from deploy.boards import Board
from deploy.data import Array, to_wire
from deploy.results import energy as energies
from deploy.results import stats
from deploy.results.store import RunWriter
from deploy.session import Session
from devices.protocol.tensors import pack

# As `devices.agent` packs them.
_SAMPLE = np.dtype([("t_ns", "<i8"), ("rail", "<i4"), ("value", "<f8")])

# Restarts whose medians differ by more than this are told apart by something nobody asked about.
RESTARTS_DISAGREE = 0.05
FEW_SAMPLES = 30
_NOTHING: Array = np.empty(0, np.int64)


@dataclass(frozen=True)
class Plan:
    """
    What to do.

    Attributes:
        duration_s: of timed invocations, over all restarts.
        restarts: fresh processes.
        min_invocations: in each restart, however long they take.
        max_invocations: in each restart; nothing is thrown away to get there, the restart ends earlier.
        warmup_max_s: give up waiting for a steady state after this, in each restart.
        idle_s: before and after, where there is a meter.
    """

    duration_s: float = 10.0
    restarts: int = 3
    min_invocations: int = 10
    max_invocations: int = 500_000
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


class _Rails:
    """Collects the meters' samples as they come, and passes them to the store."""

    def __init__(self, board: Board, listed: dict[str, Any], writer: RunWriter) -> None:
        wanted = {rail.name: rail for rail in board.rails}
        self.described = listed["rails"]
        for rail in self.described:
            stated = wanted.get(rail["name"])
            if stated and stated.scope:
                rail["scope"] = stated.scope
        self.failed: str | None = None
        self.rate_hz = max((rail.sample_rate_hz for rail in board.rails), default=100.0)
        self._writer = writer
        self._parts: list[Array] = []

    def __call__(self, header: dict[str, Any], payload: bytes) -> None:
        self.failed = self.failed or header.get("failed")
        samples = np.frombuffer(payload, _SAMPLE)
        if len(samples):
            self._writer.append("sample_t_ns", samples["t_ns"], "ns")
            self._writer.append("sample_rail", samples["rail"], "index in rails")
            self._writer.append("sample_value", samples["value"], "mW or uJ, see rails")
            self._parts.append(samples)

    def samples(self) -> list[energies.RailSamples]:
        if not self._parts:
            return []
        every = np.concatenate(self._parts)
        return [
            energies.RailSamples(
                rail["name"], rail["chip"], rail["scope"], rail["quantity"],
                every["t_ns"][every["rail"] == i], every["value"][every["rail"] == i],
            )
            for i, rail in enumerate(self.described)
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

    Args:
        bundle: its digest.
        inputs: one array for every input; the same for every invocation.
        writer: takes every raw value as it arrives, and the record.
        progress: called with what is going on, and the latencies (ns) that just came.

    Raises:
        BoardError: as any run.  What had arrived is in the store.
    """
    listed = session.request("meters.list").header
    rails = _Rails(session.board, listed, writer)
    before = session.request("state").header
    before.pop("id", None)
    writer.set(plan=asdict(plan), state_before=before, rails=rails.described)
    restarts: list[Array] = []
    replies: list[dict[str, Any]] = []
    idle: list[energies.Window] = []
    runtime = ""

    def tell(what: str, latencies: Array = _NOTHING) -> None:
        if progress:
            progress(what, latencies)

    def restart(number: int) -> None:
        nonlocal runtime
        tell(f"restart {number} of {plan.restarts}: loading")
        model = inference.load(
            session,
            bundle=bundle,
            threads=plan.threads,
            signature=plan.signature,
            limit_s=plan.limit_s,
            subject=subject,
        )
        runtime = model.runtime
        described, payload = pack([to_wire(i.name, a) for i, a in zip(model.inputs, inputs, strict=True)])
        collected: list[Array] = []

        def event(header: dict[str, Any], data: bytes) -> None:
            latencies = np.frombuffer(data, "<i8")
            warm_up = header["phase"] == "warm-up"
            writer.append(f"{'warmup' if warm_up else 'latency'}_ns.{number}", latencies, "ns")
            if not warm_up:
                collected.append(latencies)
            tell(f"restart {number} of {plan.restarts}: {header['phase']}", _NOTHING if warm_up else latencies)

        allowed = plan.warmup_max_s + plan.duration_s + 60
        reply = session.request(
            "model.measure",
            payload,
            on_event=event,
            subject=subject,
            tensors=described,
            duration_s=plan.duration_s / plan.restarts,
            min_invocations=plan.min_invocations,
            max_invocations=plan.max_invocations,
            warmup_max_s=plan.warmup_max_s,
            limit_s=max(plan.limit_s or 0.0, allowed),
        ).header
        reply.pop("id")
        replies.append(reply)
        restarts.append(np.concatenate(collected) if collected else np.empty(0, np.int64))
        inference.unload(session, subject)

    def idling(when: str) -> None:
        tell(f"idle {when}, for the energy baseline")
        start = session.request("ping").header["clock_ns"]
        session.wait(plan.idle_s)
        idle.append(energies.Window(start, session.request("ping").header["clock_ns"], 0))

    if listed["rails"]:
        with session.subscribe("meters.start", rails, rate_hz=rails.rate_hz):
            idling("before")
            for number in range(1, plan.restarts + 1):
                restart(number)
            idling("after")
            session.request("meters.stop")
    else:
        for number in range(1, plan.restarts + 1):
            restart(number)
    after = session.request("state").header
    after.pop("id", None)

    latency = stats.summarize(restarts)
    windows = [energies.Window(r["window_ns"][0], r["window_ns"][1], r["invocations"]) for r in replies]
    energy = tuple(energies.per_invocation(rail, windows, idle) for rail in rails.samples())
    measured = Measured(
        latency=latency,
        verdict=_verdict(latency, replies, before, after, rails.failed),
        energy=energy,
        unmetered=None if energy else _why_unmetered(session.board.name, listed, rails.failed),
        load_ns=replies[0]["load_ns"],
        first_ns=replies[0]["first_ns"],
        clock_overhead_ns=replies[0]["clock_overhead_ns"],
        runtime=runtime,
    )
    writer.set(
        state_after=after,
        restarts=replies,
        windows=[asdict(window) for window in windows],
        idle_windows=[asdict(window) for window in idle],
        latency=asdict(latency),
        energy=[asdict(entry) for entry in energy],
        unmetered=measured.unmetered,
        runtime=runtime,
        verdict=list(measured.verdict),
    )
    return measured


def _verdict(
    latency: stats.LatencySummary,
    replies: list[dict[str, Any]],
    before: dict[str, Any],
    after: dict[str, Any],
    meter_failed: str | None,
) -> tuple[str, ...]:
    """``ok``, or every code that speaks against the number."""
    medians = latency.restart_medians_ns
    codes = []
    if not all(reply["steady"] for reply in replies):
        codes.append("not-steady")
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
