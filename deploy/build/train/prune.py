"""
Pruning: which weights are zero, in patterns that kernels can use.

A pattern divides a layer's weights into groups that are kept or zeroed whole.  A group's worth is its squared magnitude
over the sum of those in its layer that are worth no less (LAMP, Lee et al. 2021): that compares layers of different
scale, and never empties one.  The share of zeros grows as ``S (1 - (1 - t)^3)`` (Zhu and Gupta 2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.build.graph import Floats, Graph, Node
from deploy.build.recipe import Prune
from deploy.errors import BuildError

TILE_INPUTS, TILE_OUTPUTS = 4, 32
"""Of the kernels' tile family: windows of 4 input channels, panels of 32 output channels (kernels/README.md)."""


@dataclass(frozen=True)
class Groups:
    """
    Attributes:
        index: int [K, C], each weight's group; K runs over positions and input channels, C over output channels.
        sizes: weights in each group.
    """

    index: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def energy(self, matrix: Floats) -> NDArray[np.float64]:
        """Mean square of each group."""
        squares = np.bincount(self.index.reshape(-1), (matrix.astype(np.float64) ** 2).reshape(-1), self.sizes.size)
        return np.asarray(squares / self.sizes)

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
    """Convolutions and dense layers but the first and the last with weights, which are small and matter most."""
    learned = [node for node in graph.weighted() if not node.attrs.get("fixed")]
    return [node for node in learned[1:-1] if node.op in ("conv", "dense")]


def masks(kernels: Mapping[str, Floats], graph: Graph, prune: Prune, sparsity: float) -> dict[str, Floats]:
    """
    What to keep.

    Args:
        kernels: prunable node -> kernel.
        prune: any pattern but ``channel``.
        sparsity: share of zeros over all of these layers together; ``nm`` scales its own pattern to it.

    Returns:
        node -> 1 and 0 in the kernel's layout.
    """
    nodes = [graph[name] for name in kernels]
    matrices = {name: kernel.reshape(-1, graph[name].channels) for name, kernel in kernels.items()}
    if prune.pattern == "nm":
        kept = round(prune.of - prune.of * sparsity)
        made = {node.name: _nm(node, matrices[node.name], max(kept, prune.kept), prune.of) for node in nodes}
        return {name: mask.reshape(kernels[name].shape) for name, mask in made.items()}
    parts = {node.name: groups(node, prune) for node in nodes}
    worth = {name: _lamp(part.energy(matrices[name]), part.sizes) for name, part in parts.items()}
    every = np.concatenate(list(worth.values()))
    sizes = np.concatenate([part.sizes for part in parts.values()])
    order = np.argsort(every, kind="stable")
    gone = int(np.searchsorted(np.cumsum(sizes[order]), sparsity * sizes.sum(), side="right"))
    kept_groups = np.ones(every.size, bool)
    kept_groups[order[:gone]] = False
    result: dict[str, Floats] = {}
    start = 0
    for node in nodes:
        part = parts[node.name]
        mask = part.mask(kept_groups[start : start + part.sizes.size])
        start += part.sizes.size
        result[node.name] = mask.reshape(kernels[node.name].shape)
    return result


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


def _shape(node: Node) -> tuple[int, int, int]:
    assert node.kernel is not None
    shape = node.kernel.shape
    return int(np.prod(shape[:-2], dtype=np.int64)), shape[-2], shape[-1]


def _lamp(energy: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    order = np.argsort(energy, kind="stable")
    total = energy * sizes
    rest = np.cumsum(total[order][::-1])[::-1]
    score = np.empty_like(energy)
    score[order] = energy[order] / np.maximum(rest, np.finfo(np.float64).tiny)
    return score


def _nm(node: Node, matrix: Floats, kept: int, of: int) -> Floats:
    """Keep the `kept` largest of each `of` consecutive input channels; of a shorter rest the same share, rounded up."""
    place, inputs, outputs = _shape(node)
    magnitudes = np.abs(matrix).reshape(place, inputs, outputs)
    mask = np.zeros_like(magnitudes)
    for start in range(0, inputs, of):
        run = magnitudes[:, start : start + of]
        count = -(-kept * run.shape[1] // of)
        best = np.argsort(-run, axis=1, kind="stable")[:, :count]
        np.put_along_axis(mask[:, start : start + of], best, 1, axis=1)
    return mask.reshape(matrix.shape).astype(np.float32)
