"""
What speaks against a window of energy, how long one must be, and what the meters do to what they watch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.boards import Rail as StatedRail
from deploy.results.energy import guard
from devices.protocol.meter import Rail
from devices.protocol.sampling import DEFAULT_HZ
from devices.protocol.student import half_width

WARMER_MC = 2_000  # thousandths of a degree Celsius, over one window
MOST_HZ = 300.0  # of sampling, unless boards.yaml asks for more
DISTURBS = 0.02  # of the latency, by reading the meters


def pause_s(rails: Sequence[Rail], idle_s: float, clock_bound_s: float = 0.0, sample_s: float = 0.01) -> float:
    """How long the board must rest between two windows, so that `idle_s` of it are seen by the slowest meter."""
    margins = [guard(rail, clock_bound_s, sample_s) for rail in rails]
    return idle_s + max((margin.before_s + margin.after_s for margin in margins), default=0.0)


def sample_rate_hz(rails: Sequence[Mapping[str, Any]], stated: Sequence[StatedRail]) -> float:
    """
    How often to read a board's meters: what boards.yaml says; else 100 Hz, and for a sensor that looks at points in
    time twice in each of its periods, but no more than 300 Hz: it has no memory of what it is not asked for.
    """
    asked = [rail.sample_rate_hz for rail in stated if rail.sample_rate_hz is not None]
    if asked:
        return max(asked)
    periods = [rail["update_period_s"] for rail in rails if rail.get("averaging") == "none"]
    return max([DEFAULT_HZ, *(min(MOST_HZ, 2 / float(period)) for period in periods if period)])


def objections(reply: Mapping[str, Any], counted: int) -> tuple[str, ...]:
    """
    Why a window must not count, as far as the board's state tells.

    Args:
        reply: of the board, about the window: ``invocations``, ``state_before``, ``state_after``.
        counted: latencies that arrived.
    """
    before, after = reply.get("state_before", {}), reply.get("state_after", {})
    codes = []
    if counted != reply["invocations"]:
        codes.append("window-count")
    # Bits 0..3 are "now", 16..19 "since boot"; a cooling device that is not in state 0 slows something down.
    flags = after.get("throttled", 0)
    if flags & 0xF or flags & ~before.get("throttled", 0) & 0xF0000 or after.get("cooling") != before.get("cooling"):
        codes.append("window-throttled")
    if any(after.get(key) != before.get(key) for key in ("governors", "cpu_max_khz")):
        codes.append("window-clocks")
    then, now = before.get("temperatures_mc", {}), after.get("temperatures_mc", {})
    if any(abs(now[zone] - then[zone]) > WARMER_MC for zone in now if zone in then):
        codes.append("window-warming")
    return tuple(codes)


@dataclass(frozen=True)
class MeterEffect:
    """
    How much slower invocations are while the meters are read, as a share; with its 95 % interval.

    Attributes:
        disturbs: it is more than chance, and more than `DISTURBS`.
    """

    share: float
    low: float
    high: float

    @property
    def disturbs(self) -> bool:
        return self.share > DISTURBS and self.low > 0


def meter_effect(turns: Sequence[tuple[bool, float]]) -> MeterEffect | None:
    """
    From short spans in turns.

    Args:
        turns: whether the meters rested, and the median latency in ns; on, off, off, on, ...

    Returns:
        None for fewer than three pairs.
    """
    pairs = [dict(turns[i : i + 2]) for i in range(0, len(turns) - 1, 2)]
    shares = [pair[False] / pair[True] - 1 for pair in pairs if len(pair) == 2 and pair[True]]
    if len(shares) < 3:
        return None
    mean, half = float(np.mean(shares)), half_width(shares)
    return MeterEffect(mean, mean - half, mean + half)
