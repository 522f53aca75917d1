"""
Repair: what is left of a network after a cut answers what the whole network did, as nearly as it can.

Both go side by side over samples, as in `deploy.build.posttraining`: every convolution without groups and every dense
layer of the cut one is fitted by least squares to the outputs of the whole one, for the inputs that it really gets,
layer after layer.  Other weighted layers keep their weights, and the means of their outputs.  (He, Zhang, Sun 2017 do
so for channels; Hubara et al. 2021 for single weights.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deploy.build import prune as pruning
from deploy.build.execute import CHUNK, activate, affordable, columns, compute, forward, weigh
from deploy.build.graph import Floats, Graph, Node, Norm, folded
from deploy.build.recipe import Prune
from deploy.build.rounding import Matrix, compensated

SAMPLES = 1024
"""What repair wants to see; with a quarter of it, ResNet-8 loses five points more at the same zeros."""
ROWS = 1 << 17
"""Its moments are taken from about so many of what a layer is multiplied with: neighbouring pixels tell little new."""
_TRUE = "\0"  # in front of the names of the whole network's nodes

Progress = Callable[[str, int, int], None]


@dataclass
class Moments:
    """
    Of what a layer is multiplied with, x, and of outputs, y.

    Attributes:
        x, y: means, [K] and [C].
        xx, xy: covariances, [K, K] and [K, C].
    """

    x: Matrix
    y: Matrix
    xx: Matrix
    xy: Matrix


def moments(node: Node, x: Floats, y: Floats) -> Moments:
    """
    Args:
        x: what a layer reads, [N, ...].
        y: [N, ..., C].
    """
    assert node.kernel is not None
    inputs, outputs = node.kernel.size // node.channels, node.channels
    sums = Moments(np.zeros(inputs), np.zeros(outputs), np.zeros((inputs, inputs)), np.zeros((inputs, outputs)))
    count, enough = 0, -(-ROWS * len(y) * outputs // y.size)
    for start in range(0, min(len(x), enough), CHUNK):
        a = columns(node, x[start : start + CHUNK])
        b = y[start : start + CHUNK].reshape(-1, outputs)
        count += len(a)
        sums.x += a.sum(axis=0, dtype=np.float64)
        sums.y += b.sum(axis=0, dtype=np.float64)
        sums.xx += a.T @ a
        sums.xy += a.T @ b
    mean_x, mean_y = sums.x / count, sums.y / count
    return Moments(
        mean_x, mean_y, sums.xx / count - np.outer(mean_x, mean_x), sums.xy / count - np.outer(mean_x, mean_y)
    )


def pruned(graph: Graph, prune: Prune, feeds: Mapping[str, Floats], progress: Progress | None = None) -> Graph:
    """
    The graph with `prune` of its weights zero, and the others repaired.

    Args:
        prune: any pattern but ``channel``.
        feeds: input -> [N, ...], real values as the model gets them; `SAMPLES` of them.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        BuildError: there is nothing to prune.
    """
    pruning.check(graph, prune)
    wanted = {node.name for node in pruning.prunable(graph)}
    worths: dict[str, pruning.Worth] = {}

    def look(node: Node, inputs: list[Floats]) -> Floats:
        values = compute(node, inputs)
        if node.name in wanted:
            worths[node.name] = pruning.prices(node, folded(node)[0], moments(node, inputs[0], values).xx, prune)
            if progress:
                progress("choosing what goes", len(worths), len(wanted))
        return values

    count = affordable(graph, min(map(len, feeds.values())))
    forward(graph, {name: x[:count] for name, x in feeds.items()}, look)
    nodes = dict(graph.nodes)
    for name, mask in pruning.masks(graph, prune, prune.sparsity, worths).items():
        kernel = graph[name].kernel
        assert kernel is not None
        nodes[name] = replace(graph[name], kernel=np.asarray(kernel * mask, np.float32))
    return repaired(replace(graph, nodes=nodes), graph, feeds, progress=progress)


def repaired(
    cut: Graph,
    whole: Graph,
    feeds: Mapping[str, Floats],
    kept: Mapping[str, NDArray[np.bool_]] | None = None,
    progress: Progress | None = None,
) -> Graph:
    """
    `cut` with kernels, biases and normalizations that bring it near `whole`; what is 0 in its kernels stays 0.

    Args:
        cut: nodes that are not in `whole` stay as they are.
        feeds: input -> [N, ...], real values.
        kept: node -> [C], which channels of the whole one the cut one still has; all where it says nothing.
        progress: as of `pruned`.
    """
    made = dict(cut.nodes)
    answers: dict[str, Floats] = {}  # of the whole network's layer that comes next
    layers = len(cut.weighted())
    done = 0

    def step(node: Node, inputs: list[Floats]) -> Floats:
        nonlocal done
        if node.name.startswith(_TRUE) and node.weighted:
            name = node.name.removeprefix(_TRUE)
            y = weigh(node, inputs[0], *folded(node))
            answers[name] = y[..., kept[name]] if kept and name in kept else y
            return activate(node, y)
        if node.weighted:
            done += 1
            if progress:
                progress("repairing", done, layers)
            if node.name in answers:
                node = made[node.name] = _fitted(node, inputs[0], answers.pop(node.name))
        return compute(node, inputs)

    beside = _beside(cut, whole)
    count = affordable(beside, min(map(len, feeds.values())))
    forward(beside, {name: x[:count] for name, x in feeds.items()}, step)
    return replace(cut, nodes=made)


def _beside(cut: Graph, whole: Graph) -> Graph:
    """Both in one graph that reads the inputs once, each node of the whole one right in front of its own in the cut."""
    nodes: dict[str, Node] = {}
    for node in cut:
        if node.name in whole.nodes and node.op != "input":
            true = whole[node.name]
            sources = tuple(name if whole[name].op == "input" else _TRUE + name for name in true.inputs)
            nodes[_TRUE + node.name] = replace(true, name=_TRUE + node.name, inputs=sources)
        nodes[node.name] = node
    return replace(cut, nodes=nodes)


def _fitted(node: Node, x: Floats, y: Floats) -> Node:
    """The node that answers `x` with `y`, before its activation."""
    kernel, _ = folded(node)
    matrix = kernel.reshape(-1, node.channels).astype(np.float64)
    if node.op != "depthwise" and node.attrs.get("groups", 1) == 1:
        met = moments(node, x, y)
        matrix = compensated(matrix, met.xx, met.xy)
        mean, variance = met.x @ matrix, (matrix * (met.xx @ matrix)).sum(axis=0)
        offset = met.y - mean
    else:
        sums = weigh(node, x, kernel, np.zeros(node.channels, np.float32)).reshape(-1, node.channels)
        mean, variance = sums.mean(axis=0, dtype=np.float64), sums.var(axis=0, dtype=np.float64)
        offset = y.reshape(sums.shape).mean(axis=0, dtype=np.float64) - mean
    made = replace(node, attrs=dict(node.attrs))
    if node.norm is None:
        made.kernel, made.bias = np.asarray(matrix.reshape(kernel.shape), np.float32), np.asarray(offset, np.float32)
        return made
    return _normalized(made, matrix, mean, variance, offset)


def _normalized(node: Node, matrix: Matrix, mean: Matrix, variance: Matrix, offset: Matrix) -> Node:
    """
    The node with the folded kernel `matrix` and bias `offset` behind a normalization of its own scale.

    Args:
        mean, variance: [C], of ``x' matrix``.
    """
    assert node.norm is not None and node.kernel is not None
    factor = node.norm.factor().astype(np.float64)
    factor = np.where(np.abs(factor) > np.finfo(np.float32).tiny, factor, 1.0)  # a channel that is off
    spread = np.maximum(variance, 0) / factor**2
    gamma = factor * np.sqrt(spread + node.norm.epsilon)
    bias = 0 if node.bias is None else node.bias
    node.norm = Norm(
        gamma.astype(np.float32),
        (offset + mean).astype(np.float32),
        (mean / factor + bias).astype(np.float32),
        spread.astype(np.float32),
        node.norm.epsilon,
    )
    node.kernel = np.asarray((matrix / factor).reshape(node.kernel.shape), np.float32)
    return node
