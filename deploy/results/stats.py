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
BLOCKS = 60
RESAMPLES = 2000


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


def median_interval(restarts: Sequence[Latencies], seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """
    95 % interval of the median, by block bootstrap.

    Latencies that follow each other resemble each other, so single values must not be resampled: for
    autocorrelation 0.8 that covers 49 % instead of 95.  Each restart is cut into blocks, blocks are drawn with
    replacement (Kuensch, 1989), and the median of each draw is taken over the blocks' medians.

    Returns:
        (None, None) for fewer than 10 values.
    """
    total = sum(map(len, restarts))
    if total < 10:
        return None, None
    medians = np.array(
        [
            np.median(block)
            for restart in restarts
            for block in np.array_split(restart, max(1, min(len(restart), round(BLOCKS * len(restart) / total))))
        ]
    )
    rng = np.random.default_rng(seed)
    draws = np.median(medians[rng.integers(0, len(medians), (RESAMPLES, len(medians)))], axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
