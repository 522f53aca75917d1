"""
What speaks against a number: every code that a run may carry, what it means, and what to do about it.

This table is the only one.  `deploy explain` shows it, `judge` gives the codes that latencies and the board's state
call for, and whoever adds a code adds it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.results.energy import EnergyReading, NoEnergy
from deploy.results.stats import LatencySummary
from deploy.results.windows import MeterEffect

OK = "ok"
FEW_SAMPLES = 30
RESTARTS_DISAGREE = 0.05  # restarts that differ by more are told apart by something nobody asked about
DRIFT = 0.01  # of the median, from the beginning of a restart to its end
LATE_STARTS = 0.01  # share of starts that came late
NEIGHBOUR_CPUS = 0.25  # CPUs that others kept busy, on average
WARMER_MC = 10_000  # thousandths of a degree Celsius


@dataclass(frozen=True)
class Code:
    """
    One code.

    Attributes:
        meaning: what was seen, in a sentence.
        remedy: what to do.
        void: the number says nothing about the board as it is meant to run: `deploy gate` does not decide on it.
        void_energy: the same of energy alone; latency stands.
    """

    code: str
    meaning: str
    remedy: str
    void: bool = False
    void_energy: bool = False


CODES: dict[str, Code] = {
    entry.code: entry
    for entry in (
        Code(OK, "Nothing speaks against the number.", "Nothing to do."),
        Code(
            "not-steady",
            "A restart was still getting faster or slower when its warm-up ended.",
            "`--warmup SECONDS` gives it more time; a model that never settles is measured by `--duration` as it is.",
        ),
        Code(
            "too-few-samples",
            f"Fewer than {FEW_SAMPLES} invocations were timed.",
            "`--duration SECONDS` measures longer.",
        ),
        Code(
            "restarts-disagree",
            f"The medians of the restarts differ by more than {RESTARTS_DISAGREE:.0%}: memory layout, or something "
            "else on the board, was different each time.",
            "`--restarts 10` averages over it, `--pin` keeps the model on its CPUs, "
            "and `deploy boards check` shows what else runs there.",
        ),
        Code(
            "drifting",
            f"Latency moved by more than {DRIFT:.0%} from the beginning of a restart to its end, and not by chance: "
            "heat, a clock that steps, or memory that fills.",
            "Cool the board, fix its clocks, or measure longer with `--warmup SECONDS`.",
        ),
        Code(
            "two-modes",
            "Invocations are either fast or slow, about half and half, and the median lies in the gap between: "
            "it may be on either side next time.",
            "`deploy report` shows both modes; `--pin CPUS` often leaves one.",
        ),
        Code(
            "imprecise",
            "The precision asked for by `--until` was not reached within `--duration`.",
            "`--duration SECONDS` allows more time; `--pin CPUS` and an idle board need less of it.",
        ),
        Code(
            "cut-short",
            "A restart reached the largest number of invocations that is kept before its time was over.",
            "`--duration SECONDS` shorter; what is there is sound.",
        ),
        Code(
            "throttled",
            "The board throttled: its firmware, a cooling device or the CPU itself said so during the run.",
            "Cool the board, or let it rest; a throttled number is the number of a hot board.",
            void=True,
        ),
        Code(
            "undervolted",
            "The supply voltage fell below what the board needs.",
            "Use a stronger supply and a shorter, thicker cable.",
            void=True,
        ),
        Code(
            "governor-changed",
            "The frequency governor was another one at the end than at the beginning.",
            "Keep power managers from switching it, and measure again.",
            void=True,
        ),
        Code(
            "clocks-changed",
            "The highest frequency that the CPUs may run at was another one at the end than at the beginning.",
            "Fix it (`nvpmodel`, `jetson_clocks`, `cpupower frequency-set`), and measure again.",
            void=True,
        ),
        Code(
            "warmed-up",
            f"The board's hottest sensor rose by more than {WARMER_MC // 1000} degrees during the run.",
            "Let the board come to its working temperature first, or cool it.",
        ),
        Code(
            "noisy-neighbour",
            f"Other processes kept more than {NEIGHBOUR_CPUS:g} CPUs busy, or the machine below took as much away.",
            "`deploy runs show` names them: stop them, or measure with `--pin CPUS` on CPUs they leave alone.",
        ),
        Code(
            "late-starts",
            f"More than {LATE_STARTS:.0%} of the starts that `--rate` scheduled came late, as the board was still busy "
            "with the one before.  Their latency counts from when they should have started.",
            "A lower `--rate`; or take it for what it is: the board cannot keep up.",
        ),
        Code(
            "samples-lost",
            "The board's disk was full: what was measured while no host listened is lost.",
            "`deploy boards clean` makes room.",
            void=True,
        ),
        Code(
            "emulated-time",
            "The board is emulated: its seconds are not those of any real board.",
            "Take answers and sizes from it, and times from a real board.",
            void=True,
        ),
        Code(
            "simulated",
            "The accelerator is simulated: its cycles are exact for the RTL on a modelled bus, and times are cycles at "
            "a clock that is assumed.  What the CPU runs is not in them.",
            "Take it for what it is, or measure on a board; `deploy compare` does not mix the two.",
        ),
        Code(
            "accelerator-failed",
            "The accelerator did not end a program, reported an error or is of another version, and the CPU answered.",
            "`deploy inspect --board` says why; the next run configures the programmable logic anew.",
            void=True,
        ),
        Code(
            "meter-failed",
            "A meter stopped answering during the run.  The latencies are not touched by it.",
            "`deploy boards check` tells which meters answer.",
            void_energy=True,
        ),
        Code(
            "meter-disturbs",
            "Invocations were slower by more than 2 % while the meters were read.  The latencies were taken without.",
            "`sample_rate_hz` of the rail in boards.yaml lower; or a meter that hangs on the host.",
        ),
        Code(
            "modelled",
            "The energy was not measured: it is what a model says, with the error that stands beside it.",
            "A meter: `host_meters` of the board in boards.yaml, or one on the board.",
        ),
        Code(
            "no-energy",
            "There is a meter, and not one window of energy is sound.",
            "`deploy runs show` says why.",
            void_energy=True,
        ),
        Code(
            "few-windows",
            "Fewer than five windows of energy are sound.",
            "`deploy runs show` says why the others are not; `--windows 7` takes more, and of bundles that take turns, "
            "which have one in each, `--restarts 7`.",
            void_energy=True,
        ),
        Code(
            "short-windows",
            "A window of energy is shorter than 10 s.",
            "`--window SECONDS` makes it longer; it ends early only where 5,000,000 latencies are kept.",
        ),
        Code(
            "idle-drifts",
            "The idle power before a window and after it differ by more than 3 %; what lies between is interpolated.",
            "Let the board warm up, or rest: `--idle SECONDS`.",
        ),
        Code(
            "windows-disagree",
            "The windows' net energies differ by more than 5 %, and their mean is no better known than its error says.",
            "`--window SECONDS` longer, and an idle board; of a sensor that looks at points in time, more averaging.",
        ),
        Code(
            "aliased",
            "The sensor looks at points in time, at a period that goes into that of an invocation: it meets the same "
            "phases of it again and again.",
            "More averaging in the sensor (`samples` of an ina3221), or another meter.",
            void_energy=True,
        ),
        Code(
            "meter-gaps",
            "A rail gave nothing in more than one reading of a thousand.",
            "`deploy boards check` reads it; a bus that is too long or too fast loses bytes.",
            void_energy=True,
        ),
        Code(
            "window-count",
            "Of a window, more or fewer latencies arrived than invocations were made.",
            "The board's disk was full: `deploy boards clean` makes room.",
        ),
        Code(
            "window-throttled",
            "The board throttled during this window of energy.",
            "Cool the board, or use a stronger supply.",
        ),
        Code(
            "window-clocks",
            "Governor or highest frequency changed during this window of energy.",
            "Fix the clocks, and measure again.",
        ),
        Code(
            "window-warming",
            "The board's temperature changed by more than 2 degrees during this window of energy.",
            "Let it come to its working temperature first; `--windows 7` leaves enough others.",
        ),
        Code(
            "window-gap",
            "The meter gave no sample for more than five of its periods within this window of energy.",
            "Something kept the board's CPUs: see `noisy-neighbour`.",
        ),
        Code(
            "window-few-samples",
            "The meter gave fewer than ten samples in this window of energy.",
            "`--window SECONDS` longer, or `sample_rate_hz` of the rail in boards.yaml higher.",
        ),
        Code(
            "window-uncovered",
            "The meter's samples begin after this window of energy, or end before it.",
            "The meter failed, or was read too late; `deploy boards check` reads it.",
        ),
        Code(
            "window-clock",
            "The clocks of host and board could not be told apart well enough for this meter.",
            "A quicker line to the board, or a meter that the board itself reads.",
        ),
    )
}


def with_meters(
    verdict: tuple[str, ...], effect: MeterEffect | None, energy: Sequence[EnergyReading | NoEnergy] = ()
) -> tuple[str, ...]:
    """
    The verdict, with what the meters did to the latencies, and with what speaks against the energy: of the primary
    reading, or of all where none is.  That energy is modelled was asked for, and stands beside it.
    """
    found = set(verdict) - {OK}
    if effect is not None and effect.disturbs:
        found.add("meter-disturbs")
    primary = [entry for entry in energy if isinstance(entry, EnergyReading) and entry.primary]
    for entry in primary or energy:
        found.update(entry.codes if isinstance(entry, EnergyReading) else ("no-energy",))
    found.discard("modelled")
    return tuple(code for code in CODES if code in found) or (OK,)


@dataclass(frozen=True)
class Circumstances:
    """
    What is known of a run beside its latencies.

    Attributes:
        restarts: the agent's replies, one for each restart.
        before, after: the board's state.
        cap: the largest number of invocations in a restart.
        until: the relative precision that was asked for.
        lost: the spool could not keep everything.
        emulated: the board's time is not real.
        meter_failed: a meter stopped answering.
        simulated: times are cycles of a simulation, which no clock and no neighbour of this machine touches.
        accelerator_failed: it was to run the model, and did not.
    """

    restarts: Sequence[Mapping[str, Any]]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    cap: int
    until: float | None = None
    lost: bool = False
    emulated: bool = False
    meter_failed: bool = False
    simulated: bool = False
    accelerator_failed: bool = False


_OF_SIMULATIONS = ("restarts-disagree", "two-modes", "cut-short", "samples-lost")


def judge(latency: LatencySummary, seen: Circumstances) -> tuple[str, ...]:
    """``("ok",)``, or every code that speaks against the number, in the order of the table."""
    medians = latency.restart_medians_ns
    before, after = seen.before, seen.after
    scheduled = sum(reply.get("late_starts") is not None and reply["invocations"] for reply in seen.restarts)
    late = sum(reply.get("late_starts") or 0 for reply in seen.restarts)
    precision = latency.precision
    found = {
        "not-steady": not all(reply["steady"] for reply in seen.restarts),
        "too-few-samples": latency.n < FEW_SAMPLES,
        "restarts-disagree": len(medians) > 1 and max(medians) > min(medians) * (1 + RESTARTS_DISAGREE),
        "drifting": latency.drift is not None and abs(latency.drift) > DRIFT,
        "two-modes": latency.two_modes,
        "imprecise": seen.until is not None and (precision is None or precision > seen.until),
        "cut-short": any(reply["invocations"] >= seen.cap for reply in seen.restarts),
        "throttled": _throttled(before, after),
        "undervolted": _flagged(before, after, 0x1) or bool(after.get("undervoltage_alarms")),
        "governor-changed": before.get("governors") != after.get("governors"),
        "clocks-changed": before.get("cpu_max_khz") != after.get("cpu_max_khz"),
        "warmed-up": _warmer_mc(before, after) > WARMER_MC,
        "noisy-neighbour": _neighbours(after) > NEIGHBOUR_CPUS,
        "late-starts": scheduled > 0 and late > LATE_STARTS * scheduled,
        "samples-lost": seen.lost,
        "emulated-time": seen.emulated,
        "meter-failed": seen.meter_failed,
    }
    if seen.simulated:
        found = {code: found[code] for code in _OF_SIMULATIONS}
    found |= {"simulated": seen.simulated, "accelerator-failed": seen.accelerator_failed}
    return tuple(code for code in CODES if found.get(code)) or (OK,)


def _flagged(before: Mapping[str, Any], after: Mapping[str, Any], bits: int) -> bool:
    """
    Whether the Raspberry Pi's firmware reports one of `bits`.

    Bits 0..3 are "now", 16..19 "since boot": a bit that was clear before and is set now happened during the run.
    """
    flags, known = after.get("throttled", 0), before.get("throttled", 0)
    return bool(flags & bits or flags & ~known & bits << 16)


def _throttled(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    if _flagged(before, after, 0xE):
        return True
    # Cooling devices that act, and counters of throttling that grew.
    for key in ("cooling", "throttle_counts"):
        known = before.get(key, {})
        grown = [name for name, value in after.get(key, {}).items() if value > known.get(name, 0)]
        if any("fan" not in name.lower() for name in grown):  # a fan that turns slows nothing down
            return True
    return False


def _warmer_mc(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    then, now = before.get("temperatures_mc"), after.get("temperatures_mc")
    return max(now.values()) - max(then.values()) if then and now else 0


def _neighbours(after: Mapping[str, Any]) -> float:
    """CPUs that were busy with something else during the run; 0 where the board cannot tell."""
    others = after.get("others") or {}
    return float(others.get("busy_cpus", 0.0)) + float(others.get("stolen_cpus", 0.0))
