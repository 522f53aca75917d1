"""
Cross-layer equalization (Nagel et al. 2019): scale factors between neighbouring layers that change no answer.

``W2 relu(W1 x) = (W2 S) relu(S^-1 W1 x)`` for any positive diagonal S.  S is chosen so that a channel's weights reach
as far in the first layer as in the second.  Weights with one scale per output channel gain little by themselves; the
activations in between, which have one scale for all channels, and depthwise layers do.
"""

from __future__ import annotations

import numpy as np

from deploy.build.graph import Floats, Graph, Node

_ROUNDS = 20
_LIMIT = 64.0
"""No channel is scaled by more than this in all: channels that are next to dead would blow up their neighbours."""


def equalize(graph: Graph) -> None:
    """
    Change the kernels and biases of a folded graph in place.

    ``attrs["equalized"]`` of a node says what its output channels were divided by: real activations of the original
    are the equalized ones times it.  Between the two layers there may be pools and paddings; a ReLU6 is in the way,
    and so is whatever else reads the first layer.
    """
    for _ in range(_ROUNDS):
        moved = max((_pair(graph, node) for node in graph.weighted()), default=1.0)
        if moved < 1.01:
            break


def _pair(graph: Graph, first: Node) -> float:
    """Equalize a layer and its follower; the largest factor."""
    path = _follower(graph, first)
    if path is None:
        return 1.0
    between, second = path
    assert first.kernel is not None and first.bias is not None and second.kernel is not None
    out = np.abs(first.kernel.reshape(-1, first.channels)).max(axis=0)
    into = _by_input(second)
    alive = (out > 0) & (into > 0)
    before = first.attrs.get("equalized", np.ones(first.channels, np.float32))
    factor = np.where(alive, np.sqrt(out / np.where(alive, into, 1)), 1)
    factor = np.asarray(np.clip(before * factor, 1 / _LIMIT, _LIMIT) / before, np.float32)
    first.kernel = np.asarray(first.kernel.reshape(-1, first.channels) / factor, np.float32).reshape(first.kernel.shape)
    first.bias = np.asarray(first.bias / factor, np.float32)
    second.kernel = np.asarray(second.kernel * factor[:, np.newaxis], np.float32)
    for node in (first, *between):
        node.attrs["equalized"] = before * factor
    return float(np.maximum(factor, 1 / factor).max())


def _follower(graph: Graph, first: Node) -> tuple[list[Node], Node] | None:
    """The one layer that reads `first` channel by channel, and what stands between."""
    between: list[Node] = []
    node = first
    while True:
        readers = graph.consumers(node.name)
        if node.activation == "relu6" or node.name in graph.outputs or len(readers) != 1:
            return None
        reader = readers[0]
        if reader.weighted:
            fits = reader.kernel is not None and reader.kernel.shape[-2] == first.channels
            return (between, reader) if fits and reader.attrs.get("groups", 1) in (1, first.channels) else None
        if reader.op not in ("max_pool", "avg_pool", "mean", "pad") and not (
            reader.op in ("relu", "reshape") and reader.channels == first.channels and reader.activation != "relu6"
        ):
            return None
        between.append(reader)
        node = reader


def _by_input(node: Node) -> Floats:
    """The largest weight of each input channel."""
    assert node.kernel is not None
    axes = tuple(axis for axis in range(node.kernel.ndim) if axis != node.kernel.ndim - 2)
    return np.asarray(np.abs(node.kernel).max(axis=axes))
