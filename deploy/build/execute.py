"""
A graph computed in numpy, float32: for calibration, for rounding that looks at what goes through a layer, for reports.

Not how accuracy is measured: that is what LiteRT answers with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deploy.build.graph import Floats, Graph, Node, folded

Step = Callable[[Node, list[Floats]], Floats]

CHUNK = 32
"""Samples that are looked at together where they need not be all at once."""
MEMORY = 1 << 30
"""Bytes that samples may take while they go through a graph; larger graphs are gone through with fewer samples."""

_CACHE = 1 << 21
"""Bytes that a convolution works on at a time."""


def forward(graph: Graph, feeds: Mapping[str, Floats], step: Step | None = None) -> dict[str, Floats]:
    """
    The outputs for a batch.

    Args:
        feeds: input -> [N, ...], real values.
        step: called instead of `compute` for every node but the inputs, in order; values die after their last reader.
            For inputs it is called with the feed, and what it returns is what their readers get.

    Returns:
        Output -> [N, ...].
    """
    last = {source: node.name for node in graph for source in node.inputs}
    values: dict[str, Floats] = {}
    for node in graph:
        given = [feeds[node.name]] if node.op == "input" else [values[source] for source in node.inputs]
        values[node.name] = (step or compute)(node, given)
        for source in set(node.inputs):
            if last[source] == node.name and source not in graph.outputs:
                del values[source]
    return {name: values[name] for name in graph.outputs}


def affordable(graph: Graph, count: int, copies: int = 1) -> int:
    """How many of `count` samples, and `copies` of each, `forward` takes at once within `MEMORY`; at least 1."""
    last = {source: node.name for node in graph for source in node.inputs}
    live, most = 0, 1
    for node in graph:
        live += _bytes(node)
        most = max(most, live)
        live -= sum(_bytes(graph[source]) for source in set(node.inputs) if last[source] == node.name)
    # About as much again for what an operator works with.
    return max(1, min(count, MEMORY // (2 * copies * most)))


def _bytes(node: Node) -> int:
    return 4 * int(np.prod(node.shape, dtype=np.int64))


def compute(node: Node, inputs: Sequence[Floats]) -> Floats:
    """
    One node's output in float32, its normalization and activation included.

    Args:
        inputs: [N, ...] each; for an input node its feed.
    """
    if node.weighted:
        return activate(node, weigh(node, inputs[0], *folded(node)))
    return activate(node, _OPS[node.op](node, inputs))


def weigh(node: Node, x: Floats, kernel: Floats, bias: Floats) -> Floats:
    """A weighted node with another kernel and bias than its own, before its activation."""
    if node.op == "dense":
        return np.asarray(x @ kernel + bias, np.float32)
    y = np.empty((len(x), *node.shape), np.float32)
    groups, outs = node.attrs["groups"], node.channels // node.attrs["groups"]
    matrix = kernel.reshape(-1, node.channels)
    step = max(1, _CACHE // (4 * int(np.prod(node.shape[:2])) * matrix.size // outs))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        if node.op == "depthwise":
            y[part] = _depthwise(node, x[part], kernel)
        elif groups == 1:
            y[part] = (columns(node, x[part]) @ matrix).reshape(-1, *node.shape)
        else:
            ins = x.shape[-1] // groups
            for g in range(groups):
                mine = slice(g * outs, (g + 1) * outs)
                taps = columns(node, x[part, ..., g * ins : (g + 1) * ins])
                y[part, ..., mine] = (taps @ matrix[:, mine]).reshape(-1, *node.shape[:2], outs)
    y += bias
    return y


def _depthwise(node: Node, x: Floats, kernel: Floats) -> Floats:
    taps = _taps(node, x, kernel.shape[0], kernel.shape[1])
    y = sum(window[..., np.newaxis] * kernel[row, column] for row, column, window in taps)
    return np.asarray(y, np.float32).reshape(-1, *node.shape)


def columns(node: Node, x: Floats) -> Floats:
    """
    What each output of a dense layer or an ungrouped convolution is a product with: [outputs, K].

    ``columns(node, x) @ kernel.reshape(K, out_c)`` is the layer without its bias.
    """
    if node.op == "dense":
        return np.asarray(x.reshape(-1, x.shape[-1]), np.float32)
    assert node.kernel is not None
    taps = [window for _, _, window in _taps(node, x, node.kernel.shape[0], node.kernel.shape[1])]
    return np.stack(taps, axis=3).reshape(-1, len(taps) * x.shape[-1])


def activate(node: Node, y: Floats) -> Floats:
    if node.activation == "none":
        return y
    return np.asarray(np.clip(y, 0, 6 if node.activation == "relu6" else None), np.float32)


def same_padding(extent: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """How much TensorFlow's "same" pads before and behind: the odd one behind."""
    needed = max(0, (-(-extent // stride) - 1) * stride + (kernel - 1) * dilation + 1 - extent)
    return needed // 2, needed - needed // 2


def _taps(node: Node, x: Floats, rows: int, columns: int) -> list[tuple[int, int, Floats]]:
    """For each kernel position the pixels it meets, [N, H, W, C]."""
    strides, dilation = node.attrs["strides"], node.attrs.get("dilation", (1, 1))
    if node.attrs["padding"] == "same":
        sizes = zip(x.shape[1:3], (rows, columns), strides, dilation, strict=True)
        x = np.pad(x, ((0, 0), *(same_padding(*each) for each in sizes), (0, 0)))
    height, width = node.shape[:2]
    taps = []
    for row in range(rows):
        for column in range(columns):
            top, left = row * dilation[0], column * dilation[1]
            window = x[:, top : top + (height - 1) * strides[0] + 1 : strides[0]]
            taps.append((row, column, window[:, :, left : left + (width - 1) * strides[1] + 1 : strides[1]]))
    return taps


def _max_pool(node: Node, inputs: Sequence[Floats]) -> Floats:
    x = inputs[0]
    if node.attrs["padding"] == "same":  # a window is never all padding
        sizes = zip(x.shape[1:3], node.attrs["size"], node.attrs["strides"], strict=True)
        paddings = [same_padding(*each) for each in sizes]
        x = np.pad(x, ((0, 0), *paddings, (0, 0)), constant_values=-np.inf)
    windows = [window for _, _, window in _taps(_unpadded(node), x, *node.attrs["size"])]
    return np.asarray(np.maximum.reduce(windows), np.float32)


def _avg_pool(node: Node, inputs: Sequence[Floats]) -> Floats:
    """Padding does not count, neither in the sum nor in how many there are."""
    ones = np.ones((1, *inputs[0].shape[1:3], 1), np.float32)
    total, count = (sum(window for _, _, window in _taps(node, x, *node.attrs["size"])) for x in (inputs[0], ones))
    return np.asarray(total / count, np.float32)


def _unpadded(node: Node) -> Node:
    return Node(node.name, node.op, node.inputs, node.shape, attrs=node.attrs | {"padding": "valid"})


def _mean(node: Node, inputs: Sequence[Floats]) -> Floats:
    return np.asarray(inputs[0].mean(axis=(1, 2), keepdims=node.attrs["keepdims"]), np.float32)


def _softmax(node: Node, inputs: Sequence[Floats]) -> Floats:
    powers = np.exp(inputs[0] - inputs[0].max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def _pad(node: Node, inputs: Sequence[Floats]) -> Floats:
    return np.asarray(np.pad(inputs[0], ((0, 0), *node.attrs["paddings"], (0, 0))), np.float32)


def _opaque(node: Node, inputs: Sequence[Floats]) -> Floats:
    return np.asarray(node.attrs["call"](*inputs), np.float32)


_OPS: dict[str, Callable[[Node, Sequence[Floats]], Floats]] = {
    "input": lambda node, inputs: np.asarray(inputs[0], np.float32),
    "add": lambda node, inputs: inputs[0] + inputs[1],
    "concat": lambda node, inputs: np.concatenate(inputs, axis=node.attrs["axis"]),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": _mean,
    "reshape": lambda node, inputs: inputs[0].reshape(len(inputs[0]), *node.shape),
    "softmax": _softmax,
    "relu": lambda node, inputs: inputs[0],
    "pad": _pad,
    "opaque": _opaque,
}
