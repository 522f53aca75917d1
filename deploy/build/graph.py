"""
The graph between Keras and the file: what a network computes, in the operators that an integer graph has.

`deploy.build.from_keras` makes it; post-training quantization and training read and change it.  Numbers are float32 and
kernels lie as Keras keeps them; nothing here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

WEIGHTED = ("conv", "depthwise", "dense")
SAME_GRID = ("concat", "max_pool", "avg_pool", "reshape", "pad")
"""Operators whose output lies on the grid of their inputs: TFLite's integer kernels copy the stored integers."""


@dataclass
class Norm:
    """
    A batch normalization: ``gamma * (x - mean) / sqrt(variance + epsilon) + beta``.

    Attributes:
        gamma, beta, mean, variance: [C].
    """

    gamma: Floats
    beta: Floats
    mean: Floats
    variance: Floats
    epsilon: float

    def factor(self) -> Floats:
        """[C], what the normalization multiplies each channel with."""
        return np.asarray(self.gamma / np.sqrt(self.variance + np.float32(self.epsilon)), np.float32)


@dataclass
class Node:
    """
    One operator, with what was fused into it: ``activation(norm(op(inputs) + bias))``.

    Attributes:
        name: of the Keras layer that gave the operator.
        op: input, conv, depthwise, dense, add, concat, max_pool, avg_pool, mean, reshape, softmax, relu, pad, opaque.
        inputs: names of the nodes it reads.
        shape: of its output, without the batch.
        kernel: conv [H, W, in_c / groups, out_c], depthwise [H, W, in_c, multiplier], dense [in, out]; else None.
        bias: [out_c]; None is zero.
        norm: a batch normalization behind it that has not been folded.
        activation: none, relu or relu6.
        attrs: conv, depthwise: strides (2), dilation (2), padding ("same" or "valid"), groups; pools: size (2), strides
            (2), padding; concat: axis (of the output with its batch, positive); pad: paddings ((top, bottom), (left,
            right)); mean: keepdims; opaque: reason.  ``fixed``: True where the kernel is arithmetic (a Rescaling, or
            the ones in front of a normalization that stands alone) and nothing to train.
        layers: names of the Keras layers that became this node, the last of which computes what the node does.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: Floats | None = None
    bias: Floats | None = None
    norm: Norm | None = None
    activation: str = "none"
    attrs: dict[str, Any] = field(default_factory=dict)
    layers: tuple[str, ...] = ()

    @property
    def weighted(self) -> bool:
        return self.op in WEIGHTED

    @property
    def channels(self) -> int:
        """Output channels.  ``kernel.reshape(-1, channels)`` has one column for each, whatever the operator is."""
        return int(self.shape[-1])


@dataclass
class Graph:
    """
    Attributes:
        nodes: name -> node, each after those that it reads.
        inputs, outputs: names.
        model: the Keras model it was made of; what opaque nodes compute stands only there.
    """

    nodes: dict[str, Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    model: Any = None

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def consumers(self, name: str) -> list[Node]:
        return [node for node in self if name in node.inputs]

    def weighted(self) -> list[Node]:
        """Convolutions and dense layers in the order of execution."""
        return [node for node in self if node.weighted]

    def opaque(self) -> dict[str, str]:
        """Layers that stay as they are: name -> why."""
        return {node.name: str(node.attrs["reason"]) for node in self if node.op == "opaque"}


def folded(node: Node) -> tuple[Floats, Floats]:
    """Kernel and bias of a weighted node with its normalization folded in."""
    assert node.kernel is not None
    bias = np.zeros(node.channels, np.float32) if node.bias is None else node.bias
    if node.norm is None:
        return node.kernel, bias
    factor = node.norm.factor()
    kernel = (node.kernel.reshape(-1, node.channels) * factor).reshape(node.kernel.shape)
    return kernel, np.asarray((bias - node.norm.mean) * factor + node.norm.beta, np.float32)


def fold(graph: Graph) -> Graph:
    """The same function with every normalization folded into kernel and bias; `graph` stays as it is."""
    nodes = {}
    for node in graph:
        copy = replace(node, attrs=dict(node.attrs))
        if node.weighted:
            copy.kernel, copy.bias = (array.copy() for array in folded(node))
            copy.norm = None
        nodes[node.name] = copy
    return replace(graph, nodes=nodes)


def tied(graph: Graph) -> dict[str, str]:
    """
    Which outputs must lie on one grid: node -> the first node of its group.

    A softmax has a grid of its own, which reaches through copies as far as a concatenation: that has another, and a
    QUANTIZE stands between.
    """
    group = {node.name: node.name for node in graph}
    given = set()  # softmaxes, and copies of them

    def first(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    order = {name: position for position, name in enumerate(graph.nodes)}
    for node in graph:
        if node.op == "softmax":
            given.add(node.name)
        if node.op not in SAME_GRID:
            continue
        if node.op != "concat" and given.issuperset(node.inputs):
            given.add(node.name)
        for name in node.inputs:
            if name not in given or node.name in given:
                a, b = sorted((first(name), first(node.name)), key=order.__getitem__)
                group[b] = a
    return {name: first(name) for name in group}


def macs(node: Node) -> int:
    """Multiply-accumulates of one invocation; 0 for what has no weights."""
    return 0 if node.kernel is None else int(node.kernel.size * np.prod(node.shape[:-1], dtype=np.int64))
