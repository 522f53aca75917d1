"""
The ranges of activations, observed while samples go through the float graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from deploy.build.execute import CHUNK, compute, forward
from deploy.build.graph import Floats, Graph, Node, tied
from deploy.build.grid import SOFTMAX, SOFTMAX_16, Grid, activation_grid
from deploy.errors import BuildError

OBSERVERS = ("minmax", "percentile", "mse")
PERCENTILE = 99.99
"""Share in percent of all values that the percentile observer keeps between its limits."""
_BINS = 2048
_CANDIDATES = 80

Ranges = dict[str, tuple[float, float]]


def calibrate(
    graph: Graph,
    feeds: Mapping[str, Floats],
    observer: str = "minmax",
    progress: Callable[[int, int], None] | None = None,
) -> Ranges:
    """
    The range of each node's output.

    Args:
        feeds: input -> [N, ...], real values as the model gets them.
        observer: minmax: everything that occurs; percentile: `PERCENTILE` of the values, the rest saturates; mse: what
            the square error of 8 bits is smallest with, by histogram.
        progress: called with passes over a chunk of samples done, and in all.

    Raises:
        BuildError: no such observer, no samples, or values that are not finite.
    """
    if observer not in OBSERVERS:
        raise BuildError(f"no observer {observer!r}; there is {', '.join(OBSERVERS)}")
    chunks = list(_chunks(feeds))
    if not chunks:
        raise BuildError("no samples to calibrate with")
    total = len(chunks) * (1 if observer == "minmax" else 2)
    whole: Ranges = {}

    def extremes(node: Node, values: Floats) -> None:
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BuildError(f"node {node.name!r} gives NaN or infinite values for the calibration samples")
        if node.name in whole:
            low, high = min(low, whole[node.name][0]), max(high, whole[node.name][1])
        whole[node.name] = (low, high)

    _observe(graph, chunks, extremes, progress, 0, total)
    if observer == "minmax":
        return whole
    counts = {name: np.zeros(_BINS, np.int64) for name in graph.nodes}

    def count(node: Node, values: Floats) -> None:
        counts[node.name] += np.histogram(values, _BINS, _wide(whole[node.name]))[0]

    _observe(graph, chunks, count, progress, len(chunks), total)
    narrow = _percentile if observer == "percentile" else _least_error
    return {name: narrow(counts[name], *_wide(whole[name])) for name in graph.nodes}


def grids(graph: Graph, ranges: Ranges, bits: int = 8) -> dict[str, Grid]:
    """
    The grid of each node's output, one for all that are tied; none for an opaque node that only opaque ones read.

    Args:
        bits: 8 or 16.
    """
    group = tied(graph)
    made: dict[str, Grid] = {}
    for name, node in graph.nodes.items():
        if node.op == "softmax":
            made[group[name]] = SOFTMAX_16 if bits == 16 else SOFTMAX
    for first in dict.fromkeys(group.values()):
        if first not in made:
            members = [ranges[name] for name in group if group[name] == first]
            made[first] = activation_grid(min(low for low, _ in members), max(high for _, high in members), bits)
    return {name: made[group[name]] for name, node in graph.nodes.items() if not _stays_float(graph, node)}


def _stays_float(graph: Graph, node: Node) -> bool:
    return node.op == "opaque" and all(reader.op == "opaque" for reader in graph.consumers(node.name))


def _chunks(feeds: Mapping[str, Floats]) -> Iterator[dict[str, Floats]]:
    count = min((len(samples) for samples in feeds.values()), default=0)
    for start in range(0, count, CHUNK):
        yield {name: samples[start : min(count, start + CHUNK)] for name, samples in feeds.items()}


def _observe(
    graph: Graph,
    chunks: list[dict[str, Floats]],
    look: Callable[[Node, Floats], None],
    progress: Callable[[int, int], None] | None,
    done: int,
    total: int,
) -> None:
    def step(node: Node, inputs: list[Floats]) -> Floats:
        values = compute(node, inputs)
        look(node, values)
        return values

    for index, chunk in enumerate(chunks):
        forward(graph, chunk, step)
        if progress:
            progress(done + index + 1, total)


def _wide(limits: tuple[float, float]) -> tuple[float, float]:
    """A histogram needs an extent."""
    low, high = limits
    return (low, high) if high > low else (low, low + max(abs(low), 1.0) * 1e-6)


def _percentile(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    edges = np.linspace(low, high, _BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    outside = (1 - PERCENTILE / 100) / 2
    first = int(np.searchsorted(share, outside, side="right"))
    last = int(np.searchsorted(share, 1 - outside, side="left"))
    # ReLU leaves a pile at exactly 0, which must not count as a tail that was cut off.
    return float(edges[first]), float(edges[min(last, _BINS - 1) + 1])


def _least_error(counts: NDArray[np.int64], low: float, high: float) -> tuple[float, float]:
    """First the upper limit is moved, then the lower; the error is that of 256 steps, values in the middle of bins."""
    edges = np.linspace(low, high, _BINS + 1)
    values, weights = (edges[:-1] + edges[1:]) / 2, counts / counts.sum()
    low, high = min(low, 0.0), max(high, 0.0)  # 0 is on the grid anyhow

    def error(bottom: float, top: float) -> float:
        grid = activation_grid(bottom, top)
        return float((weights * (values - grid.fake(values.astype(np.float32))) ** 2).sum())

    shares = np.linspace(1, 1 / _CANDIDATES, _CANDIDATES).tolist()
    top = high * min(shares, key=lambda share: error(low, high * share))
    return low * min(shares, key=lambda share: error(low * share, top)), top
