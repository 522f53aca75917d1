"""
What is odd about a quantized .tflite: things that load, run, and cost accuracy, or that only some runtimes take.

`oddities` looks at the file alone; `observed` looks at what samples made of its activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.model_file.layers import KERNELS, sources
from deploy.model_file.parse import Model, scales, shape, text, zero_points

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int4": (-8, 7), "int2": (-2, 1)}
FEW_LEVELS = 16  # int8 weights on no more are low-bit or pruned ones, stored wide
SATURATED = 0.01  # of the values of a tensor at one of its limits: a range that is too narrow
SATURATED_WEIGHTS = 0.05
USED = 0.25  # of a range: below, two bits are wasted
BIAS_SCALE = 1e-3  # relative: biases are added to sums of products as they are
# Operators that copy stored integers: what goes in and comes out must mean the same.
_COPIES = ("RESHAPE", "MAX_POOL_2D", "AVERAGE_POOL_2D", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "STRIDED_SLICE", "SLICE",
           "PACK", "GATHER", "SPACE_TO_DEPTH", "DEPTH_TO_SPACE")  # fmt: skip
_GIVEN = ("SOFTMAX", "LOGISTIC", "TANH", "LOG_SOFTMAX", "SELECT_V2")  # whose output's scale is not anybody's choice
_ARITHMETIC = (*KERNELS, "ADD", "SUB", "MUL", "SOFTMAX", "LOGISTIC", "TANH", "MEAN", "CONCATENATION", "PRELU",
               "LEAKY_RELU", "HARD_SWISH", "RESIZE_BILINEAR", "BATCH_MATMUL")  # fmt: skip


@dataclass(frozen=True)
class Oddity:
    """
    Attributes:
        code: what kind it is; stays the same between versions.
        where: the tensor or operator.
        what: a sentence with the numbers.
    """

    code: str
    where: str
    what: str


@dataclass(frozen=True)
class Met:
    """
    What samples made of one activation tensor, in stored integers.

    Attributes:
        low, high: extremes.
        at_low, at_high: share of values at the type's limits.
    """

    low: int
    high: int
    at_low: float
    at_high: float


def oddities(data: bytes, name: str) -> tuple[Oddity, ...]:
    """
    Look at a file.

    Args:
        name: of the file, for messages.

    Raises:
        BuildError: not a TFLite file, or one that ends too early.
    """
    model = Model(data, name)
    with model.reading():
        found: list[Oddity] = []
        for graph in model.graphs:
            for tensor in graph.tensors if graph.tensors is not None else ():
                found += _quantization(model, tensor)
            found += _operators(model, graph)
        return tuple(found)


def observed(data: bytes, name: str, met: Mapping[str, Met]) -> tuple[Oddity, ...]:
    """
    Compare the ranges of activations with what samples made of them.

    Args:
        met: tensor -> what was met there; see `deploy.model_file.observe`.
    """
    model = Model(data, name)
    found: list[Oddity] = []
    with model.reading():
        graph = model.graphs[0]
        makers = {int(i): model.operator(op) for op in graph.operators or () for i in op.outputs}
        for index, tensor in enumerate(graph.tensors):
            seen, limits = met.get(text(tensor.name)), LIMITS.get(model.dtype(tensor))
            if seen is None or limits is None or scales(tensor).size != 1 or makers.get(index) in _COPIES:
                continue
            # What is fed was looked at when it was quantized, and pixels do lie at their limits.
            found += _against(tensor, seen, limits, makers.get(index) in _GIVEN, index not in graph.inputs)
    return tuple(found)


def _against(tensor: Any, seen: Met, limits: tuple[int, int], given: bool, computed: bool) -> Iterator[Oddity]:
    where, scale = text(tensor.name), float(scales(tensor)[0])
    zero = int(zero_points(tensor)[0]) if zero_points(tensor).size else 0
    low, high = ((limit - zero) * scale for limit in limits)
    # At a limit that stands for zero values belong: a ReLU put them there.
    for share, limit in ((seen.at_low, limits[0]), (seen.at_high, limits[1])):
        if share > SATURATED and limit != zero and computed and not given:
            yield Oddity("saturated", where, f"{share:.1%} of its values lie at a limit of [{low:.4g}, {high:.4g}]")
    used = (seen.high - seen.low) / (limits[1] - limits[0])
    if used < USED and not given:
        met = [(value - zero) * scale for value in (seen.low, seen.high)]
        yield Oddity(
            "wide-range",
            where,
            f"samples reach [{met[0]:.4g}, {met[1]:.4g}] of [{low:.4g}, {high:.4g}]: {used:.0%} of it",
        )


def _quantization(model: Model, tensor: Any) -> Iterator[Oddity]:
    dtype, where, scale, zero = model.dtype(tensor), text(tensor.name), scales(tensor), zero_points(tensor)
    if scale.size == 0 or not dtype.startswith(("int", "uint")):
        return
    bad = int((~np.isfinite(scale) | (scale <= 0)).sum())
    if bad:
        yield Oddity("scale", where, f"{bad} of {scale.size} scales are zero, negative or not finite")
    limits = LIMITS.get(dtype)
    if limits and zero.size and (zero.min() < limits[0] or zero.max() > limits[1]):
        yield Oddity("zero-point", where, f"zero point {zero[np.argmax(np.abs(zero))]} is no {dtype}")
    if scale.size > 1:
        axis = int(tensor.quantization.quantizedDimension)
        extents = shape(tensor)
        if not 0 <= axis < len(extents) or extents[axis] != scale.size:
            yield Oddity("axis", where, f"{scale.size} scales along axis {axis} of {list(extents)}")


def _operators(model: Model, graph: Any) -> Iterator[Oddity]:
    constants = sources(model, graph)
    operators = list(graph.operators if graph.operators is not None else ())
    integers, floats = 0, []
    for op in operators:
        operator = model.operator(op)
        inputs = [int(i) for i in (op.inputs if op.inputs is not None else ())]
        if op.outputs is None or len(op.outputs) == 0 or not inputs:
            continue
        out = graph.tensors[int(op.outputs[0])]
        if operator in _ARITHMETIC:
            quantized = model.dtype(out) in LIMITS
            integers += quantized
            floats += [] if quantized else [text(out.name)]
        if operator in KERNELS:
            yield from _kernel(model, graph, operator, inputs, constants)
        first = graph.tensors[inputs[0]]
        if operator in _COPIES and model.dtype(first) == model.dtype(out) and not _same(first, out):
            yield Oddity("requantized", text(out.name), f"{operator} copies, but in and out have different scales")
        if operator == "SOFTMAX" and model.dtype(out) == "int8":
            grid = (scales(out).tolist(), zero_points(out).tolist())
            if grid != ([1 / 256], [-128]):
                yield Oddity("softmax", text(out.name), f"scale and zero point are {grid}, not 1/256 and -128")
    if integers and floats:
        shown = ", ".join(floats[:3]) + (", ..." if len(floats) > 3 else "")
        yield Oddity(
            "float", shown, f"{len(floats)} of {integers + len(floats)} operators with arithmetic run in float"
        )


def _kernel(
    model: Model, graph: Any, operator: str, inputs: list[int], constants: Mapping[int, int]
) -> Iterator[Oddity]:
    kernel_at, bias_at = KERNELS[operator]
    constant = constants.get(inputs[kernel_at]) if kernel_at < len(inputs) else None
    if constant is None:
        return
    kernel = graph.tensors[constant]
    where, dtype, values = text(kernel.name), model.dtype(kernel), model.stored(kernel)
    if dtype not in ("int8", "int4", "int2") or values is None:
        return
    if zero_points(kernel).any():
        yield Oddity("zero-point", where, "weights with a zero point other than 0")
    bias = graph.tensors[inputs[bias_at]] if bias_at < len(inputs) and inputs[bias_at] >= 0 else None
    if bias is not None and scales(bias).size and scales(kernel).size and operator != "TRANSPOSE_CONV":
        wanted = scales(graph.tensors[inputs[0]]).astype(np.float64)
        if wanted.size == 1:
            expected = np.broadcast_to(wanted * scales(kernel), np.broadcast_shapes(scales(kernel).shape, (1,)))
            found = np.broadcast_to(scales(bias), expected.shape) if scales(bias).size in (1, expected.size) else None
            if found is None or (np.abs(found - expected) > BIAS_SCALE * np.abs(expected)).any():
                yield Oddity("bias-scale", text(bias.name), "its scale is not the input's times the weights'")
    if kernel.sparsity is None:
        yield from _values(where, dtype, values, shape(kernel), 3 if operator == "DEPTHWISE_CONV_2D" else 0)


def _values(where: str, dtype: str, values: NDArray[Any], extents: tuple[int, ...], axis: int) -> Iterator[Oddity]:
    if values.size != np.prod(extents) or not values.size:
        return
    channels = np.moveaxis(values.reshape(extents), axis, 0).reshape(extents[axis], -1).astype(np.int64)
    largest = np.abs(channels).max(axis=1)
    if dead := int((largest == 0).sum()):
        yield Oddity("dead-channel", where, f"{dead} of {len(largest)} output channels have no weight but zeros")
    if dtype != "int8":
        return
    levels = len(np.unique(values))
    if levels <= FEW_LEVELS < values.size // 4:
        yield Oddity("few-levels", where, f"int8 weights on {levels} levels: fewer bits would hold them")
        return
    at_limit = float((np.abs(channels) >= 127).mean())
    if at_limit > SATURATED_WEIGHTS and channels.shape[1] > 2 / SATURATED_WEIGHTS:
        yield Oddity("saturated", where, f"{at_limit:.1%} of the weights lie at the limits")
    small = int(((largest > 0) & (largest < 127 * USED)).sum())
    if small:
        yield Oddity("wide-range", where, f"{small} of {len(largest)} output channels use less than a quarter of int8")


def _same(a: Any, b: Any) -> bool:
    if scales(a).size == 0 and scales(b).size == 0:
        return True
    same_scales = scales(a).shape == scales(b).shape and np.allclose(scales(a), scales(b), rtol=1e-6)
    return bool(same_scales and np.array_equal(zero_points(a), zero_points(b)))
