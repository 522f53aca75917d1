"""
Another structure for a graph: narrower, separable, or without the channels that matter least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from deploy.build.graph import Floats, Graph, Node, Norm
from deploy.build.recipe import Recipe
from deploy.build.repair import SAMPLES, Progress, repaired
from deploy.build.train import samples as sample_sets
from deploy.build.train.channels import MULTIPLE, Channels, superfluous, worth
from deploy.data import Dataset
from deploy.errors import BuildError

WORTH_BATCHES, WORTH_BATCH = 20, 128


def restructured(
    graph: Graph,
    recipe: Recipe,
    data: Dataset | None,
    preprocess: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> Graph:
    """
    What ``width``, ``separable`` and ``channel`` of a recipe make of a graph, in this order.

    Args:
        graph: it is not changed.
        data: with labels; ``channel`` needs them.
        progress: called with what is being done, how much of it is done, and how much there is.

    Returns:
        A graph: weights of ``width`` begin anew, those of ``separable`` are the nearest to what they replace, and those
        of ``channel`` are what is left.

    Raises:
        BuildError: the graph cannot be changed so, and why.
        DataError: the data does not fit.
    """
    if (width := recipe.structured("width")) is not None:
        graph = narrowed(graph, width.factor, recipe.seed)
    if recipe.structured("separable") is not None:
        graph = separated(graph)
    if (prune := recipe.pruning(channel=True)) is not None:
        if data is None:
            raise BuildError(f"{prune.text} needs labelled data to tell which channels matter", "`--data FILE.npz`")
        graph = slimmed(graph, prune.sparsity, sample_sets.fit(graph, data, preprocess), recipe.seed, progress)
    return graph


def narrowed(graph: Graph, factor: float, seed: int) -> Graph:
    """
    The graph with `factor` times the channels in every layer but the last, and fresh weights (He et al. 2015).

    Raises:
        BuildError: no layer can be narrower.
    """
    channels = Channels(graph)
    gone: set[int] = set()
    for node in graph.weighted():
        if node.op == "depthwise":
            continue
        wanted = node.channels * factor
        count = max(1, round(wanted / MULTIPLE) * MULTIPLE if node.channels > MULTIPLE else round(wanted))
        gone.update(set(channels.of[node.name][count:].tolist()) - channels.locked)
    if not gone:
        raise BuildError(f"width:{factor:g}: no layer of the model can be narrower")
    made = without(graph, channels, gone)
    rng = np.random.default_rng(seed)
    for node in made.weighted():
        assert node.kernel is not None
        if not node.attrs.get("fixed"):
            inputs = int(np.prod(node.kernel.shape[:-1] if node.op != "depthwise" else node.kernel.shape[:2]))
            node.kernel = (rng.standard_normal(node.kernel.shape) * np.sqrt(2 / inputs)).astype(np.float32)
            node.bias = None if node.bias is None else np.zeros_like(node.bias)
        if node.norm is not None:
            one, zero = np.ones(node.channels, np.float32), np.zeros(node.channels, np.float32)
            node.norm = Norm(one, zero, zero, one, node.norm.epsilon)
    return made


def separated(graph: Graph) -> Graph:
    """
    The graph with depthwise and pointwise convolutions in the place of spatial ones.

    The first convolution stays: it has a few input channels only.  The two kernels begin as the best approximation of
    the one they replace: for each input channel its [positions, out_c] matrix of rank one (first singular vectors).

    Raises:
        BuildError: there is nothing to separate.
    """
    weighted = [node.name for node in graph.weighted() if not node.attrs.get("fixed")]
    nodes: dict[str, Node] = {}
    for node in graph:
        kernel = node.kernel
        if (
            kernel is None
            or node.op != "conv"
            or node.name == weighted[0]
            or kernel.shape[:2] == (1, 1)
            or node.attrs["groups"] != 1
        ):
            nodes[node.name] = node
            continue
        depthwise, pointwise = _rank_one(kernel)
        name, channels = f"{node.name}/depthwise", kernel.shape[2]
        window = {**node.attrs, "groups": channels}
        shape = (*node.shape[:-1], channels)
        nodes[name] = Node(name, "depthwise", node.inputs, shape, depthwise, attrs=window)
        one = {"strides": (1, 1), "dilation": (1, 1), "padding": "valid", "groups": 1}
        nodes[node.name] = replace(node, inputs=(name,), kernel=pointwise, attrs=one)
    if len(nodes) == len(graph.nodes):
        raise BuildError("separable: the model has no spatial convolution besides its first layer")
    return replace(graph, nodes=nodes)


def slimmed(
    graph: Graph, share: float, samples: sample_sets.Samples, seed: int, progress: Progress | None = None
) -> Graph:
    """
    The graph without the channels that matter least, `share` of its multiply-accumulates less, and repaired.

    Raises:
        BuildError: so much cannot go.
    """
    channels = Channels(graph)
    batches = zip(range(WORTH_BATCHES), samples.shuffled(WORTH_BATCH, seed, 0), strict=False)
    worths = worth(graph, channels, (batch for _, batch in batches))
    gone = superfluous(channels, worths, share, progress)
    feeds = samples.some(graph.inputs[0], SAMPLES, seed)
    return repaired(without(graph, channels, gone), graph, feeds, channels.without(gone), progress)


def without(graph: Graph, channels: Channels, gone: set[int]) -> Graph:
    """The graph without the channels `gone`: weights of what makes them and of what reads them are cut."""
    kept = channels.without(gone)
    nodes = {}
    for node in graph:
        mine = kept[node.name]
        copy = replace(node, shape=(*node.shape[:-1], int(mine.sum())), attrs=dict(node.attrs))
        if node.kernel is not None:
            _cut(copy, node.kernel, kept[node.inputs[0]], mine)
        nodes[node.name] = copy
    return replace(graph, nodes=nodes)


def _cut(node: Node, kernel: Floats, inputs: NDArray[np.bool_], outputs: NDArray[np.bool_]) -> None:
    if node.op == "depthwise":
        node.kernel = kernel[:, :, inputs]
        node.attrs["groups"] = int(inputs.sum())
    elif node.attrs.get("groups", 1) == 1:
        node.kernel = kernel[..., inputs, :][..., outputs]
    if node.bias is not None:
        node.bias = node.bias[outputs]
    if (norm := node.norm) is not None:
        gamma, beta, mean, variance = (array[outputs] for array in (norm.gamma, norm.beta, norm.mean, norm.variance))
        node.norm = Norm(gamma, beta, mean, variance, norm.epsilon)


def _rank_one(kernel: Floats) -> tuple[Floats, Floats]:
    """Depthwise [H, W, in_c, 1] and pointwise [1, 1, in_c, out_c] kernels nearest to [H, W, in_c, out_c]."""
    height, width, inputs, outputs = kernel.shape
    matrices = kernel.reshape(-1, inputs, outputs).transpose(1, 0, 2)
    u, s, v = np.linalg.svd(matrices, full_matrices=False)
    root = np.sqrt(s[:, 0])
    # A singular vector's sign is arbitrary; the largest tap is made positive.
    taps = u[:, :, 0]
    largest = np.take_along_axis(taps, np.abs(taps).argmax(axis=1)[:, None], 1)[:, 0]
    factor = (root * np.where(largest < 0, -1, 1))[:, None]
    depthwise = (taps * factor).T.reshape(height, width, inputs, 1)
    pointwise = (v[:, 0] * factor).reshape(1, 1, inputs, outputs)
    return depthwise.astype(np.float32), pointwise.astype(np.float32)
