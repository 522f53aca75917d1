"""
Pruning: which weights are zero, in patterns that kernels can use.

A pattern divides a layer's weights into groups that are kept or zeroed whole.  Every group has a worth for each of its
weights, and what is worth least goes, over all layers together.  There are two measures, both relative to the layer,
which compares layers of different scale and empties none before others are nearly empty:

`prices`, before training: the error that a group's loss makes in the layer's output once the weights that are left have
made up for it (the optimal brain surgeon's, Hassibi and Stork 1993), over the variance of that output.

`magnitudes`, in the course of training: a group's squared magnitude over the sum of those in its layer that are worth
no less (LAMP, Lee et al. 2021).  The share of zeros grows as ``S (1 - (1 - t)^3)`` then (Zhu and Gupta 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.build.graph import Floats, Graph, Node
from deploy.build.recipe import Prune
from deploy.build.rounding import Matrix, damped
from deploy.errors import BuildError

Worth = NDArray[np.float64]

TILE_INPUTS, TILE_OUTPUTS = 4, 32
"""Of the kernels' tile family: windows of 4 input channels, panels of 32 output channels (kernels/README.md)."""

ROUNDS = 16
"""In how many steps a layer's groups go; one step for all cannot tell groups apart that stand in for each other."""


@dataclass(frozen=True)
class Groups:
    """
    Attributes:
        index: int [K, C], each weight's group; K runs over positions and input channels, C over output channels.
        sizes: weights in each group.
    """

    index: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def mask(self, kept: NDArray[np.bool_]) -> NDArray[np.float32]:
        """[K, C] of 1 and 0 from one bool a group."""
        return kept[self.index].astype(np.float32)


def groups(node: Node, prune: Prune) -> Groups:
    """The groups of a conv or dense node; those at an edge may be smaller."""
    shape = _shape(node)
    place, inputs, outputs = np.indices(shape)
    if prune.pattern == "tile":
        key = place, inputs // TILE_INPUTS, outputs // TILE_OUTPUTS
    elif prune.pattern == "block":
        key = place, inputs // prune.of, outputs
    else:
        key = place, inputs, outputs
    extents = [int(part.max()) + 1 for part in key]
    index = np.ravel_multi_index(key, extents).reshape(-1, shape[2])
    return Groups(index, np.bincount(index.reshape(-1)))


def prunable(graph: Graph) -> list[Node]:
    """Convolutions without groups and dense layers, but the first and the last: these are small and matter most."""
    learned = [node for node in graph.weighted() if not node.attrs.get("fixed")]
    return [node for node in learned[1:-1] if node.op in ("conv", "dense") and node.attrs.get("groups", 1) == 1]


def masks(graph: Graph, prune: Prune, sparsity: float, worths: Mapping[str, Worth]) -> dict[str, Floats]:
    """
    What to keep.

    Args:
        prune: any pattern but ``channel``.
        sparsity: share of zeros over all of these layers together; ``nm`` scales its own pattern to it.
        worths: prunable node -> of each of its `groups`, for each weight in it.

    Returns:
        node -> 1 and 0 in the kernel's layout.
    """
    parts = {name: groups(graph[name], prune) for name in worths}
    if prune.pattern == "nm":
        least = max(round(prune.of - prune.of * sparsity), prune.kept)
        kept = {name: _of_each(graph[name], worth, least, prune.of) for name, worth in worths.items()}
    else:
        every = np.concatenate(list(worths.values()))
        sizes = np.concatenate([part.sizes for part in parts.values()])
        order = np.argsort(every, kind="stable")
        gone = int(np.searchsorted(np.cumsum(sizes[order]), sparsity * sizes.sum(), side="right"))
        stays = np.ones(every.size, bool)
        stays[order[:gone]] = False
        ends = np.cumsum([part.sizes.size for part in parts.values()])
        kept = dict(zip(parts, np.split(stays, ends[:-1]), strict=True))
    return {name: part.mask(kept[name]).reshape(_kernel(graph[name]).shape) for name, part in parts.items()}


def magnitudes(node: Node, kernel: Floats, prune: Prune) -> Worth:
    """The worth of each group by the size of its weights; `kernel` has the scale with which it counts."""
    part = groups(node, prune)
    squares = (kernel.astype(np.float64) ** 2).reshape(-1)
    total = np.bincount(part.index.reshape(-1), squares, part.sizes.size)
    energy = total / part.sizes
    order = np.argsort(energy, kind="stable")
    rest = np.cumsum(total[order][::-1])[::-1]
    worth = np.empty_like(energy)
    worth[order] = energy[order] / np.maximum(rest, np.finfo(np.float64).tiny)
    return worth


def prices(node: Node, kernel: Floats, covariance: Matrix, prune: Prune) -> Worth:
    """
    The worth of each group by the error that its loss leaves, ``w' (G^-1) w`` with G its part of the inverse of H.

    The cheapest go first, a sixteenth of all at a time, and what is left is refitted before the next are looked at.

    Args:
        kernel: with the scale with which it counts.
        covariance: H, [K, K], of what the layer is multiplied with.
    """
    part = groups(node, prune)
    matrix = kernel.reshape(part.index.shape).astype(np.float64)
    inverse: Matrix = np.asarray(np.linalg.inv(damped(covariance)), np.float64)
    worth = np.zeros(part.sizes.size)
    panels, columns = np.unique(part.index, axis=1, return_inverse=True)
    for place, panel in enumerate(panels.T):
        names, local = np.unique(panel, return_inverse=True)
        worth[names] = _prices(matrix[:, columns.reshape(-1) == place], inverse, local)
    whole = float((matrix * (covariance @ matrix)).sum())
    return worth / whole if whole > 0 else worth  # nothing but constants arrives


def _prices(matrix: Matrix, inverse: Matrix, group: NDArray[np.intp]) -> Worth:
    """Of columns that share their groups, for each weight; `group` is each row's."""
    order = np.argsort(group, kind="stable")
    matrix, inverse, group = matrix[order], inverse[np.ix_(order, order)], group[order]
    count, width = int(group[-1]) + 1, matrix.shape[1]
    prices, least = np.zeros(count), 0.0
    while group.size:
        names, starts, sizes = np.unique(group, return_index=True, return_counts=True)
        errors = np.empty(names.size)
        for size in np.unique(sizes):
            same = sizes == size
            rows = starts[same, np.newaxis] + np.arange(size)
            lost, own = matrix[rows], inverse[rows[:, :, np.newaxis], rows[:, np.newaxis]]
            errors[same] = (lost * np.linalg.solve(own, lost)).sum(axis=(1, 2)) / (size * width)
        cheapest = np.argsort(errors, kind="stable")[: -(-count // ROUNDS)]
        prices[names[cheapest]] = np.maximum(errors[cheapest], least)  # what goes later is worth no less
        least = max(least, float(errors[cheapest[-1]]))
        gone = np.isin(group, names[cheapest])
        bridge = inverse[np.ix_(~gone, gone)]
        moved = np.linalg.solve(inverse[np.ix_(gone, gone)], np.hstack([matrix[gone], bridge.T]))
        matrix = matrix[~gone] - bridge @ moved[:, :width]
        inverse = inverse[np.ix_(~gone, ~gone)] - bridge @ moved[:, width:]
        group = group[~gone]
    return prices


def cubic(sparsity: float, done: float) -> float:
    """The share of zeros after `done` of the schedule, in [0, 1]."""
    return sparsity * (1 - (1 - min(max(done, 0.0), 1.0)) ** 3)


def check(graph: Graph, prune: Prune) -> None:
    """
    Raises:
        BuildError: the graph has no layer that the pattern could be made in.
    """
    if not prunable(graph):
        raise BuildError(
            f"{prune.text}: the model has no convolution or dense layer to prune besides the first and the last"
        )


def _kernel(node: Node) -> Floats:
    assert node.kernel is not None
    return node.kernel


def _shape(node: Node) -> tuple[int, int, int]:
    shape = _kernel(node).shape
    return int(np.prod(shape[:-2], dtype=np.int64)), shape[-2], shape[-1]


def _of_each(node: Node, worth: Worth, kept: int, of: int) -> NDArray[np.bool_]:
    """The `kept` best of each `of` consecutive input channels; of a shorter rest the same share, rounded up."""
    place, inputs, outputs = _shape(node)
    worth = worth.reshape(place, inputs, outputs)
    stays = np.zeros(worth.shape, bool)
    for start in range(0, inputs, of):
        run = worth[:, start : start + of]
        count = -(-kept * run.shape[1] // of)
        best = np.argsort(-run, axis=1, kind="stable")[:, :count]
        np.put_along_axis(stays[:, start : start + of], best, True, axis=1)
    return stays.reshape(-1)
