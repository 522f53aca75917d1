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
BLOCKS = 60  # over all restarts
BINS = 2048
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


def _bins(values: Latencies) -> NDArray[np.int64]:
    """Values between which the median can lie, at most `BINS` of them; all of them where there are few."""
    low, high = np.percentile(values, [10, 90])
    inner = np.unique(values[(values >= low) & (values <= high)])
    chosen: NDArray[np.int64] = inner[np.linspace(0, len(inner) - 1, min(BINS, len(inner))).astype(int)]
    return chosen


def median_interval(restarts: Sequence[Latencies], seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """
    95 % interval of the median over all restarts, by a bootstrap in two stages.

    First restarts are drawn with replacement, then blocks within each: what varies from one process to the next is
    often more than what varies within one (Kalibera and Jones, 2013).  Blocks, as latencies that follow each other
    resemble each other (Kuensch, 1989): for autocorrelation 0.8, resampling single values covers 49 % instead of 95.

    Returns:
        (None, None) for fewer than 10 values.
    """
    total = sum(map(len, restarts))
    if total < 10:
        return None, None
    edges = _bins(np.concatenate(restarts))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(restarts), (RESAMPLES, len(restarts)))
    below = np.zeros((RESAMPLES, len(edges)))
    size = np.zeros(RESAMPLES)
    for number, restart in enumerate(restarts):
        blocks = np.array_split(restart, max(1, min(len(restart), BLOCKS // len(restarts))))
        # How many values of each block are at most each edge: a resample's median follows from their sums.
        counts = np.array([np.searchsorted(np.sort(block), edges, side="right") for block in blocks], dtype=np.float64)
        lengths = np.array([len(block) for block in blocks], dtype=np.float64)
        draws = (drawn == number).sum(axis=1) * len(blocks)
        weights = rng.multinomial(draws, np.full(len(blocks), 1 / len(blocks)))
        below += weights @ counts
        size += weights @ lengths
    medians = edges[np.minimum((below < size[:, np.newaxis] / 2).sum(axis=1), len(edges) - 1)]
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(low), float(high)
