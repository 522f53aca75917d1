"""
Statistics of latencies: robust, honest about sample size, aware of serial correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.protocol.student import half_width

Latencies = NDArray[np.int64]

# Smallest n for which an order statistic bounds the percentile from above with 95 %: n >= ln(0.05) / ln(p).
_NEEDED = {90.0: 29, 95.0: 59, 99.0: 299, 99.9: 2995}
BATCHES = 10  # Schmeiser (1982): more than 10 to 30 batches buy little, and cost independence
CONFIDENT = 4.0  # of a slope, in standard errors: by chance once in 5,000 runs (Student's t, 26 degrees of freedom)
AGREEING = 1.5  # standard errors: what the restarts' own slopes must say for a slope through all of them
GAP = 0.3  # the middle tenth of all latencies, as a share of the middle eight tenths; 0.1 for a normal distribution


@dataclass(frozen=True)
class LatencySummary:
    """
    Attributes:
        n: invocations; warm-up is not among them.
        median_ns, low_ns, high_ns: median and its 95 % interval; the interval is None below 10 invocations.
        p90_ns, p95_ns, p99_ns, p999_ns: None where there are too few invocations to support them.
        p90_bound_ns, ...: what the percentile does not exceed, with 95 % confidence; see `upper_bound`.
        restart_medians_ns: the median of each process restart.
        drift: relative change of latency from the beginning of a restart to its end, where it is not chance; else 0.
            None where there are too few invocations to tell.
        two_modes: the median lies in a gap between a fast and a slow half.
    """

    n: int
    median_ns: float
    low_ns: float | None
    high_ns: float | None
    min_ns: int
    max_ns: int
    mean_ns: float
    p90_ns: float | None
    p95_ns: float | None
    p99_ns: float | None
    restart_medians_ns: tuple[float, ...]
    p999_ns: float | None = None
    p90_bound_ns: float | None = None
    p95_bound_ns: float | None = None
    p99_bound_ns: float | None = None
    p999_bound_ns: float | None = None
    drift: float | None = None
    two_modes: bool = False

    @property
    def precision(self) -> float | None:
        """Half of the 95 % interval of the median, as a share of the median."""
        if self.low_ns is None or self.high_ns is None or not self.median_ns:
            return None
        return (self.high_ns - self.low_ns) / 2 / self.median_ns


def summarize(restarts: Sequence[Latencies]) -> LatencySummary:
    """
    Summarize the latencies of one run.

    Args:
        restarts: of each process restart, in the order in which they were taken; at least one not empty.
    """
    filled = [r for r in restarts if len(r)]
    values = np.concatenate(filled)
    low, high = median_interval(filled)
    bounds = {p: upper_bound(filled, p) for p in _NEEDED}
    return LatencySummary(
        n=len(values),
        median_ns=float(np.median(values)),
        low_ns=low,
        high_ns=high,
        min_ns=int(values.min()),
        max_ns=int(values.max()),
        mean_ns=float(values.mean()),
        p90_ns=percentile(values, 90),
        p95_ns=percentile(values, 95),
        p99_ns=percentile(values, 99),
        restart_medians_ns=tuple(float(np.median(r)) for r in filled),
        p999_ns=percentile(values, 99.9),
        p90_bound_ns=bounds[90],
        p95_bound_ns=bounds[95],
        p99_bound_ns=bounds[99],
        p999_bound_ns=bounds[99.9],
        drift=drift(filled),
        two_modes=_two_modes(values),
    )


def percentile(values: Latencies, p: float) -> float | None:
    """The percentile, or None where `values` has too few to bound it (p95 needs 59, p99 299, p99.9 2995)."""
    return float(np.percentile(values, p)) if len(values) >= _NEEDED[p] else None


def upper_bound(restarts: Sequence[Latencies], p: float) -> float | None:
    """
    What the percentile `p` does not exceed, with 95 % confidence; None where there are too few latencies to say.

    An order statistic: with k latencies above it, the bound holds unless at most k of n exceeded the true percentile,
    which is a binomial tail.  Slow invocations come in bunches, so n is divided by how much more the number of
    exceedances varies between stretches of time than independent ones would.
    """
    values = np.concatenate(restarts)
    n = len(values)
    if n < _NEEDED[p]:
        return None
    share = 1 - p / 100
    effective = int(n / _clustering(restarts, float(np.percentile(values, p)), share))
    # log of the binomial probabilities of 0, 1, ... exceedances; those far beyond the mean are not needed.
    i = np.arange(min(effective, int(effective * share) + 1))
    steps = np.log((effective - i) / (i + 1)) + np.log(share / (1 - share))
    log_terms = effective * np.log1p(-share) + np.concatenate(([0.0], np.cumsum(steps)))
    allowed = int(np.searchsorted(np.cumsum(np.exp(log_terms)), 0.05, side="right")) - 1
    if allowed < 0:
        return None
    above = int(allowed * n / effective)
    return float(np.partition(values, n - 1 - above)[n - 1 - above])


def _clustering(restarts: Sequence[Latencies], threshold: float, share: float) -> float:
    """Variance of the number of values above `threshold`, between stretches, in units of a binomial one; >= 1."""
    parts = _stretches(restarts, 3 * BATCHES)
    counts = np.array([np.count_nonzero(part > threshold) for part in parts], float)
    sizes = np.array([len(part) for part in parts], float)
    if len(parts) < BATCHES or sizes.mean() * share < 1:
        return 1.0  # too few in each to tell
    expected = sizes * (counts.sum() / sizes.sum())
    if not expected.all():
        return 1.0
    return max(1.0, float(((counts - expected) ** 2 / (expected * (1 - share))).sum() / (len(parts) - 1)))


def drift(restarts: Sequence[Latencies]) -> float | None:
    """
    How much latency changes as time goes on, as a share of the median.

    From the medians of `BATCHES` stretches of each restart.  Either all restarts go the same way, each from a level of
    its own: then it is the change from the beginning of a restart to its end.  Or one line goes through the whole run,
    and the restarts do not speak against it: then it is the change from the beginning of the run to its end.  A line
    through the levels of three restarts alone would be no evidence.

    Returns:
        0.0 where the change is within `CONFIDENT` standard errors of none; None with fewer than 4 values in a stretch.
    """
    long = [np.array_split(restart, BATCHES) for restart in restarts if len(restart) >= 4 * BATCHES]
    if not long:
        return None
    medians = np.array([[np.median(part) for part in parts] for parts in long])
    middle = float(np.median(medians))
    time = np.arange(medians.size).reshape(medians.shape)
    in_each, sure_in_each = _slope(time, medians)
    through_all, sure_through_all = _slope(time.reshape(1, -1), medians.reshape(1, -1))
    if abs(sure_in_each) > CONFIDENT:
        return in_each * (BATCHES - 1) / middle
    if abs(sure_through_all) > CONFIDENT and sure_in_each * np.sign(through_all) > AGREEING:
        return through_all * (medians.size - 1) / middle
    return 0.0


def _slope(time: NDArray[Any], values: NDArray[Any]) -> tuple[float, float]:
    """Slope of the parallel lines through each row, by least squares; and the same in standard errors."""
    t = time - time.mean(axis=1, keepdims=True)
    centred = values - values.mean(axis=1, keepdims=True)
    weight = float((t**2).sum())
    slope = float((t * centred).sum()) / weight
    rest = float(((centred - slope * t) ** 2).sum())
    error = (rest / (values.size - len(values) - 1) / weight) ** 0.5
    return slope, slope / error if error else float(np.sign(slope) * np.inf if slope else 0.0)


def _two_modes(values: Latencies) -> bool:
    """Whether the middle tenth is so wide that it must be a gap; steps of a coarse clock are none."""
    if len(values) < 10 * BATCHES:
        return False
    p10, p45, p50, p55, p90 = np.percentile(values, [10, 45, 50, 55, 90])
    return bool(p55 - p45 > GAP * (p90 - p10) and p55 - p45 > 0.01 * p50)


def _stretches(restarts: Sequence[Latencies], count: int) -> list[Latencies]:
    """About `count` stretches of time in all, none of which reaches over a restart."""
    return [part for restart in restarts for part in np.array_split(restart, max(1, count // len(restarts)))]


def _median(values: Latencies) -> float:
    """As `np.median`, whose care for axes and NaN takes longer than the few values of a short run."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    parted = np.partition(values, (low, high))
    return (float(parted[low]) + float(parted[high])) / 2


def median_interval(restarts: Sequence[Latencies]) -> tuple[float, float] | tuple[None, None]:
    """
    95 % interval of the median, from how much the medians of independent groups differ (Student's t).

    The groups are the restarts, as processes differ more than moments do (Kalibera and Jones, 2013).  Fewer than three
    restarts are cut into `BATCHES` stretches of time in all, long enough to forget one another: the method of batch
    means (Conway, 1963), with medians.  Single latencies are never treated as independent: those that follow each
    other resemble each other, and for an autocorrelation of 0.8 an interval made so holds the truth 49 times in 100.

    The interval is centred on the median of all values and holds it; it may reach beyond the slowest value.

    Returns:
        (None, None) for fewer than 10 values.
    """
    total = sum(map(len, restarts))
    if total < 10:
        return None, None
    groups = list(restarts)
    if len(groups) < 3:
        groups = _stretches(restarts, BATCHES)
    medians = np.array([_median(group) for group in groups if len(group)])
    half = half_width(medians.tolist())
    middle = float(np.median(np.concatenate(restarts)))
    # Groups of different sizes: the median of all need not be the mean of their medians.
    centre = float(medians.mean())
    return min(middle, centre) - half, max(middle, centre) + half
