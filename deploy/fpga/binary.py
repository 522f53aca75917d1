"""
Binary layers in a .tflite file, by the pattern of `kernels/binary/README.md`, as the accelerator runs them::

    x int8 -> CAST -> GREATER_EQUAL(thresholds) -> SELECT_V2(high, low) -> CONV_2D or FULLY_CONNECTED

The first three become the end of the layer that makes x, or a copy; what reads them counts agreeing bits.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from deploy.fpga.network import Layer, Network, Node, Tensor, Unsupported, copy_of, layer_of
from deploy.fpga.weights import NEVER

MOST_FACTOR = 255


@dataclass(frozen=True)
class Binarization:
    """
    Attributes:
        nodes: CAST, GREATER_EQUAL and SELECT_V2.
        source, target: tensors: int8 values, and what SELECT_V2 makes of them.
        thresholds: int64 [C], at most NEVER.
        high: what a bit of 1 stands for, in steps of the target's scale; a bit of 0 is its negative.
    """

    nodes: tuple[int, ...]
    source: int
    target: int
    thresholds: NDArray[np.int64]
    high: int


def find(network: Network, left_out: Container[int]) -> dict[int, Binarization]:
    """
    Target -> binarization, where nobody but binary layers reads the target.

    Args:
        left_out: nodes that stay on the CPU.
    """
    made = {tensor: node for node in network.nodes for tensor in node.outputs}
    readers: dict[int, list[Node]] = {}
    for node in network.nodes:
        for tensor in set(node.inputs):
            readers.setdefault(tensor, []).append(node)
    found = {}
    for node in network.nodes:
        pattern = _pattern(network, node, made)
        if pattern is None:
            continue
        inner = [t for n in pattern.nodes for t in network.nodes[n].outputs]
        alone = all(len(readers.get(tensor, [])) == 1 for tensor in inner[:-1])
        outside = [n.index for n in readers.get(pattern.target, [])]
        kept = all(n not in left_out for n in (*pattern.nodes, *outside))
        if not (alone and kept and outside) or set(inner) & set(network.outputs):
            continue
        try:
            copy_of(network, network.nodes[pattern.nodes[0]])
            for n in outside:
                binary_layer(network, network.nodes[n], pattern)
        except Unsupported:
            continue
        found[pattern.target] = pattern
    return found


def _pattern(network: Network, select: Node, made: dict[int, Node]) -> Binarization | None:
    chain = [select]
    for op, inputs in (("SELECT_V2", 3), ("GREATER_EQUAL", 2), ("CAST", 1)):
        if chain[-1].op != op or len(chain[-1].inputs) != inputs:
            return None
        if op != "CAST":
            before = made.get(chain[-1].inputs[0])
            if before is None:
                return None
            chain.append(before)
    _, greater, cast = chain
    x, target = network.tensors[cast.inputs[0]], network.tensors[select.outputs[0]]
    limits = network.tensors[greater.inputs[1]]
    high, low = (network.tensors[t] for t in select.inputs[1:])
    if limits.values is None or limits.dtype != "INT32" or x.dtype != "INT8" or x.shape != target.shape:
        return None
    if limits.values.size not in (1, x.shape[-1]) or limits.shape[-1:] not in ((), (limits.values.size,)):
        return None
    if not (_is_value(high, target) and _is_value(low, target)):
        return None
    assert high.values is not None and low.values is not None
    ends = [int(t.values.reshape(-1)[0]) - target.zero_point for t in (high, low) if t.values is not None]
    if ends[0] != -ends[1] or ends[0] == 0:
        return None
    thresholds = np.broadcast_to(np.clip(limits.values.reshape(-1).astype(np.int64), -128, NEVER), x.shape[-1:])
    return Binarization((cast.index, greater.index, select.index), x.index, target.index, thresholds, ends[0])


def _is_value(tensor: Tensor, target: Tensor) -> bool:
    constant = tensor.values is not None and tensor.values.size == 1 and tensor.dtype == target.dtype == "INT8"
    return constant and (tensor.scales, tensor.zero_point) == (target.scales, target.zero_point)


def bits_of(network: Network, pattern: Binarization) -> Layer:
    """A binarization as a layer of its own: a copy that writes bits."""
    layer = copy_of(network, network.nodes[pattern.nodes[0]])
    return replace(layer, nodes=pattern.nodes, target=pattern.target, thresholds=pattern.thresholds)


def binary_layer(network: Network, node: Node, pattern: Binarization) -> Layer:
    """
    A layer that reads bits.

    Raises:
        Unsupported: it cannot; as one of int8 it may.
    """
    if node.op not in ("CONV_2D", "FULLY_CONNECTED") or node.inputs[0] != pattern.target:
        raise Unsupported("it does not multiply bits")
    layer = layer_of(network, node, check=False)
    channels = len(layer.weights)
    flat = layer.weights.reshape(channels, -1).astype(np.int64)
    size = np.abs(flat[:, 0])
    if (np.abs(flat) != size[:, np.newaxis]).any() or size.min() < 1:
        raise Unsupported("its weights are not of one size")
    if layer.weights.shape[2] % 2:
        raise Unsupported("an odd number of binary channels")
    factor = size * abs(pattern.high)
    if factor.max() > MOST_FACTOR:
        raise Unsupported(f"a product of bits counts more than {MOST_FACTOR} times")
    bias = layer.bias + layer.pad * flat.sum(axis=1)  # without what int8 inputs would need
    if (np.abs(bias) + factor * flat.shape[1]).max() >= 1 << 31:
        raise Unsupported("a sum with its bias may exceed 32 bits")
    signs = (np.sign(layer.weights) * np.sign(pattern.high)).astype(np.int8)
    return replace(layer, weights=signs, bias=bias, factor=factor, binary=True)
