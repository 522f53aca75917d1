"""
Statistics of latencies: robust, honest about sample size, aware of serial correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Latencies = NDArray[np.int64]

# Smallest n for which an order statistic bounds the percentile from above with 95 %: n >= ln(0.05) / ln(p).
_NEEDED = {90: 29, 95: 59, 99: 299}
BATCHES = 10  # Schmeiser (1982): more than 10 to 30 batches buy little, and cost independence
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
          2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
          1.96)  # fmt: skip


@dataclass(frozen=True)
class LatencySummary:
    """
    Attributes:
        n: invocations; warm-up is not among them.
        median_ns, low_ns, high_ns: median and its 95 % interval; the interval is None below 10 invocations.
        p90_ns, p95_ns, p99_ns: None where there are too few invocations to support them.
        restart_medians_ns: the median of each process restart.
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


def summarize(restarts: Sequence[Latencies]) -> LatencySummary:
    """
    Summarize the latencies of one run.

    Args:
        restarts: of each process restart, in the order in which they were taken; at least one not empty.
    """
    filled = [r for r in restarts if len(r)]
    values = np.concatenate(filled)
    low, high = median_interval(filled)
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
    )


def percentile(values: Latencies, p: int) -> float | None:
    """The percentile, or None where `values` has too few to bound it (p95 needs 59, p99 needs 299)."""
    return float(np.percentile(values, p)) if len(values) >= _NEEDED[p] else None


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
        groups = [part for restart in restarts for part in np.array_split(restart, max(1, BATCHES // len(restarts)))]
    medians = np.array([np.median(group) for group in groups if len(group)])
    half = _T_975[min(len(medians) - 1, len(_T_975)) - 1] * float(medians.std(ddof=1)) / len(medians) ** 0.5
    middle = float(np.median(np.concatenate(restarts)))
    # Groups of different sizes: the median of all need not be the mean of their medians.
    centre = float(medians.mean())
    return min(middle, centre) - half, max(middle, centre) + half
