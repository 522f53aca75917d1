"""
Compare: how much slower one run is than another, with an interval, or why the two must not be compared.

Runs that took turns (`deploy measure A B --interleave`) are compared pair by pair: whatever the board went through hit
both, and cancels.  Others are compared by the medians of their restarts (Welch's t), which knows only what happened
within each run: a board that was slower that day looks like a slower bundle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.accelerate import is_simulated
from deploy.errors import StoreError
from deploy.results.store import Run
from devices.protocol.student import half_width, t_975

# What two runs must have in common, and what `--mix-<name>` allows.
ALIKE = {
    "boards": "measured on another board",
    "clocks": "measured at other CPU frequencies or under another governor",
    "threads": "measured with other threads or CPUs",
    "runtimes": "run by another runtime, or with other kernels",
    "times": "timed another way",
    "schedules": "measured from another schedule (--rate)",
    "scopes": "energy of another scope",
}


@dataclass(frozen=True)
class Effect:
    """
    The second run relative to the first.

    Attributes:
        quantity: ``latency`` or ``energy <rail>``.
        ratio: second / first; 1.03 is 3 % more.
        low, high: its 95 % interval; None where there are too few restarts.
        paired: pair by pair.
        n: pairs, or the smaller number of restarts.
        first, second: the values themselves, ns or uJ.
    """

    quantity: str
    ratio: float
    low: float | None
    high: float | None
    paired: bool
    n: int
    first: float
    second: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out that nothing changed."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def latency_effect(first: Run, second: Run) -> Effect:
    """
    Latency of the second run relative to the first, from the medians of their restarts.

    Raises:
        StoreError: one has no latencies.
    """
    medians = [_restart_medians(run) for run in (first, second)]
    return effect("latency", medians[0], medians[1], paired=are_paired(first, second))


def energy_effects(first: Run, second: Run) -> list[Effect]:
    """
    Gross energy per invocation of the rails that both runs measured: what the board draws meanwhile, idle included.

    Only what was measured counts: modelled energy is no evidence.  The interval comes from both stated uncertainties,
    which is careful where one meter measured both, as its errors then cancel in part.
    """
    found = []
    theirs = {entry["rail"]: entry for entry in second.record.get("energy", ())}
    for entry in first.record.get("energy", ()):
        other = theirs.get(entry["rail"])
        if other is None or not (_is_measured(entry) and _is_measured(other)):
            continue
        low = high = None
        ratio = other["gross_uj"] / entry["gross_uj"] if entry["gross_uj"] > 0 else math.nan
        if entry.get("gross_u_uj") is not None and other.get("gross_u_uj") is not None and ratio > 0:
            # Both uncertainties are expanded (k = 2); relative ones add in squares.
            spread = math.hypot(entry["gross_u_uj"] / entry["gross_uj"], other["gross_u_uj"] / other["gross_uj"])
            low, high = ratio * math.exp(-spread), ratio * math.exp(spread)
        n = min(entry["windows"], other["windows"])
        found.append(
            Effect(f"energy {entry['rail']}", ratio, low, high, False, n, entry["gross_uj"], other["gross_uj"])
        )
    return found


def effect(quantity: str, first: NDArray[Any], second: NDArray[Any], paired: bool) -> Effect:
    """
    The ratio of two sets of positive values, geometric, with its interval (Student's t of their logarithms).

    Args:
        first, second: one value for each restart; of the same length where `paired`.
    """
    a, b = np.log(first), np.log(second)
    if paired:
        difference = b - a
        centre, n = float(difference.mean()), len(difference)
        half = half_width(difference.tolist()) if n > 1 else None
    else:
        centre, n = float(b.mean() - a.mean()), min(len(a), len(b))
        half = _welch(a, b) if n > 1 else None
    low, high = (None, None) if half is None else (math.exp(centre - half), math.exp(centre + half))
    return Effect(
        quantity, math.exp(centre), low, high, paired, n, math.exp(float(a.mean())), math.exp(float(b.mean()))
    )


def _welch(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Half of the interval of a difference of means; degrees of freedom by Welch and Satterthwaite, rounded down."""
    u, v = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if u + v == 0:
        return 0.0
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    return float(t_975(max(1, int(freedom))) * (u + v) ** 0.5)


def are_paired(first: Run, second: Run) -> bool:
    """Whether they took turns."""
    mine, theirs = ((run.record.get("pairing") or {}).get("id") for run in (first, second))
    return mine is not None and mine == theirs and first.id != second.id


def unlike(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, str]:
    """
    Why the runs of these records must not be compared: names of `ALIKE`, each with what differs.
    """
    found = {}
    for name, facts in (
        ("boards", _board),
        ("clocks", _clocks),
        ("threads", _threads),
        ("runtimes", _runtime),
        ("times", _timing),
        ("schedules", lambda record: (record.get("plan") or {}).get("rate")),
    ):
        mine, theirs = facts(first), facts(second)
        if mine != theirs:
            found[name] = f"{_text(mine)} and {_text(theirs)}"
    scopes = [{e["rail"]: e["scope"] for e in r.get("energy") or () if _is_measured(e)} for r in (first, second)]
    for rail in sorted(set(scopes[0]) & set(scopes[1])):
        if scopes[0][rail] != scopes[1][rail]:
            found["scopes"] = f"{rail}: {scopes[0][rail]} and {scopes[1][rail]}"
    return found


def _is_measured(entry: Mapping[str, Any]) -> bool:
    measured = str(entry.get("source", "")).startswith(("measured:", "measured+corrected:"))
    return measured and entry.get("gross_uj") is not None


def _board(record: Mapping[str, Any]) -> tuple[Any, ...]:
    identity = record["board"].get("identity", {})
    return tuple(identity.get(key) for key in ("hostname", "machine", "model", "cpu", "serial", "cpus"))


def _clocks(record: Mapping[str, Any]) -> tuple[Any, ...]:
    state = record.get("state_before") or {}
    return tuple(tuple(state.get(key) or ()) for key in ("governors", "cpu_min_khz", "cpu_max_khz"))


def _threads(record: Mapping[str, Any]) -> tuple[Any, ...]:
    plan = record.get("plan") or {}
    return plan.get("threads"), tuple(plan.get("pin") or ()) or None


def _runtime(record: Mapping[str, Any]) -> tuple[Any, ...]:
    kernels = record.get("kernels") or {}
    return record.get("runtime"), kernels.get("mode", "off"), kernels.get("library")


def _timing(record: Mapping[str, Any]) -> str:
    accelerator = record.get("accelerator")
    if accelerator is None or not is_simulated(accelerator):
        return "measured"
    simulated = accelerator["simulated"]
    return f"{simulated['source']} at {simulated['clock_hz'] / 1e6:g} MHz"


def _text(facts: Any) -> str:
    if isinstance(facts, tuple):
        return "(" + ", ".join(_text(fact) for fact in facts if fact not in (None, ())) + ")"
    return "none" if facts is None else str(facts)


def _restart_medians(run: Run) -> NDArray[Any]:
    medians = (run.record.get("latency") or {}).get("restart_medians_ns")
    if not medians:
        restarts = [restart for restart in run.restarts("latency_ns") if len(restart)]
        medians = [float(np.median(restart)) for restart in restarts]
    if not medians:
        raise StoreError(f"run {run.id} has no latencies", "`deploy runs list` shows measurements")
    return np.array(medians, float)
