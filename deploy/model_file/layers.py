"""What each operator of a .tflite costs: multiply-accumulates, parameters, bytes, zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from deploy.model_file.parse import PACKED, Model, elements, shape, text

# Operators of which one input is a kernel: (kernel, bias), places among the inputs.
KERNELS = {
    "CONV_2D": (1, 2),
    "DEPTHWISE_CONV_2D": (1, 2),
    "FULLY_CONNECTED": (1, 2),
    "TRANSPOSE_CONV": (1, 3),
    "CONV_3D": (1, 2),
}
_UNPACK = ("DEQUANTIZE", "DENSIFY")  # of a constant: what they make is the constant
_INDICES = ("int32", "int64", "uint32", "uint64", "bool", "string")  # constants of these say where, not how much
# What multiplies in ways that are not counted here.
UNCOUNTED = ("SVDF", "LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "RNN",
             "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "CONV_3D_TRANSPOSE", "RFFT2D", "WHILE", "IF",
             "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE")  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """
    One operator, in the order of execution.

    Attributes:
        index: in its subgraph; operators that only unpack a constant are left out.
        op: as `ModelFacts.ops` names it.
        name: of its first output.
        shape: of its first output, without a resize.
        dtype: of its kernel, as stored; else of its first output.
        macs: multiply-accumulates of convolutions and matrix products, the zeros among the weights included; None where
            they are not counted (custom operators, recurrent ones).
        parameters: weights and biases; a tensor that several operators use counts for the first.
        bytes: that they take in the file.
        zeros: share of zeros of the kernel; None without one.
        subgraph: 0 is the main one.
    """

    index: int
    op: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    macs: int | None
    parameters: int
    bytes: int
    zeros: float | None
    subgraph: int = 0


@dataclass(frozen=True)
class Cost:
    """
    Attributes:
        macs: of all layers that are counted.
        uncounted: operators that are not, by name.
        parameters: of all.
    """

    macs: int
    uncounted: tuple[str, ...]
    parameters: int


def layers(data: bytes, name: str) -> tuple[Layer, ...]:
    """
    Every operator of every subgraph.

    Args:
        name: of the file, for messages.

    Raises:
        BuildError: not a TFLite file, or one that ends too early.
    """
    model = Model(data, name)
    with model.reading():
        seen: set[int] = set()
        return tuple(
            layer for number, graph in enumerate(model.graphs) for layer in _layers(model, graph, number, seen)
        )


def cost(found: tuple[Layer, ...]) -> Cost:
    """The sums over layers."""
    return Cost(
        macs=sum(layer.macs or 0 for layer in found),
        uncounted=tuple(sorted({layer.op for layer in found if layer.macs is None})),
        parameters=sum(layer.parameters for layer in found),
    )


def sources(model: Model, graph: Any) -> dict[int, int]:
    """Tensor -> the constant it stands for: itself, or what DEQUANTIZE or DENSIFY makes of one."""
    made = {i: i for i, tensor in enumerate(graph.tensors) if model.content(tensor) is not None}
    for op in graph.operators if graph.operators is not None else ():
        if model.operator(op) in _UNPACK and int(op.inputs[0]) in made:
            made[int(op.outputs[0])] = made[int(op.inputs[0])]
    return made


def _layers(model: Model, graph: Any, number: int, seen: set[int]) -> list[Layer]:
    constants = sources(model, graph)
    found = []
    for index, op in enumerate(graph.operators if graph.operators is not None else ()):
        operator = model.operator(op)
        outputs = [int(i) for i in (op.outputs if op.outputs is not None else ())]
        inputs = [int(i) for i in (op.inputs if op.inputs is not None else ())]
        if operator in _UNPACK and outputs and outputs[0] in constants:
            continue
        kernel_at, bias_at = KERNELS.get(operator, (-1, -1))
        parameters = size = 0
        for place, tensor in enumerate(inputs):
            constant = constants.get(tensor)
            if constant is None:
                continue
            stored = graph.tensors[constant]
            if model.dtype(stored) in _INDICES and place != bias_at:
                continue
            if stored.buffer not in seen:
                seen.add(stored.buffer)
                parameters += elements(stored)
                content = model.content(stored)
                size += 0 if content is None else len(content)
        kernel = constants.get(inputs[kernel_at]) if 0 <= kernel_at < len(inputs) else None
        first = graph.tensors[outputs[0]] if outputs else None
        described = graph.tensors[kernel] if kernel is not None else first
        found.append(
            Layer(
                index=index,
                op=operator,
                name=text(first.name) if first is not None else "",
                shape=shape(first) if first is not None else (),
                dtype=model.dtype(described) if described is not None else "",
                macs=_macs(graph, operator, inputs, outputs),
                parameters=parameters,
                bytes=size,
                zeros=_zeros(model, graph.tensors[kernel]) if kernel is not None else None,
                subgraph=number,
            )
        )
    return found


def _macs(graph: Any, operator: str, inputs: list[int], outputs: list[int]) -> int | None:
    if operator in UNCOUNTED or operator.startswith(("CUSTOM:", "BUILTIN:")):
        return None
    if operator in KERNELS:
        kernel, out = shape(graph.tensors[inputs[1]]), elements(graph.tensors[outputs[0]])
        if operator == "DEPTHWISE_CONV_2D":  # [1, H, W, out_c]
            return out * kernel[1] * kernel[2]
        if operator == "TRANSPOSE_CONV":  # [out_c, H, W, in_c], each pixel that comes in is spread
            return elements(graph.tensors[inputs[2]]) * kernel[0] * kernel[1] * kernel[2]
        if operator == "CONV_3D":  # [D, H, W, in_c, out_c]
            return out * math.prod(kernel[:4])
        return out * math.prod(kernel[1:])  # [out_c, H, W, in_c / groups], [out, in]
    if operator == "BATCH_MATMUL":
        a, b, out_shape = (shape(graph.tensors[i]) for i in (*inputs[:2], outputs[0]))
        # [.., M, K] x [.., K, N], either transposed: M K * K N * M N / (M N)^2 is K * K.
        product = (a[-1] * a[-2]) * (b[-1] * b[-2]) // max(out_shape[-1] * out_shape[-2], 1)
        return math.prod(out_shape) * math.isqrt(product)
    return 0


def _zeros(model: Model, tensor: Any) -> float | None:
    stored, count = model.stored(tensor), elements(tensor)
    if stored is None or count == 0:
        return None
    return 1 - int((stored != 0).sum()) / count


def width(dtype: str) -> int | None:
    """Bits of one value; None where they are not known."""
    known = {"bool": 8, "bfloat16": 16, "complex64": 64, "complex128": 128}
    if dtype in PACKED or dtype in known:
        return PACKED.get(dtype) or known[dtype]
    digits = dtype.lstrip("abcdefghijklmnopqrstuvwxyz")
    return int(digits) if digits in ("8", "16", "32", "64") and dtype.startswith(("int", "uint", "float")) else None
