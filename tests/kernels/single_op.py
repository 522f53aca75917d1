"""Models of one convolution or fully-connected layer, written through the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

ACTIVATIONS = ("NONE", "RELU", "RELU6", "RELU_N1_TO_1")
_BITS = {"INT8": 8, "UINT8": 8, "INT4": 4, "INT2": 2}


@dataclass(frozen=True)
class Quantization:
    """real = scale * (q - zero_point); more than one scale: one per output channel."""

    scale: tuple[float, ...]
    zero_point: int = 0


@dataclass(frozen=True)
class SingleOp:
    """
    The layer, in the schema's words.

    Attributes:
        op: CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED.
        weights: integers, [out_c, kernel_h, kernel_w, in_c / groups], [1, kernel_h, kernel_w, out_c] or [out_c, in_c].
        weight_type: INT8, INT4, INT2 or UINT8.
        sparsity: how the weights are stored, or None for densely.
        densify: a DENSIFY operator stands between the sparse weights and the layer.
    """

    op: str
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    weights: NDArray[Any]
    bias: NDArray[np.int32] | None
    input: Quantization
    output: Quantization
    filter: Quantization
    weight_type: str = "INT8"
    io_type: str = "INT8"
    padding: str = "SAME"
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "NONE"
    sparsity: schema.SparsityParametersT | None = None
    sparse_values: NDArray[np.int8] | None = None
    densify: bool = False
    op_version: int = 1

    def model(self) -> bytes:
        """The flatbuffer."""
        model = schema.ModelT()
        model.version = 3
        model.description = "test"
        model.buffers = [schema.BufferT()]
        graph = schema.SubGraphT()
        graph.name = "main"
        axis = 3 if self.op == "DEPTHWISE_CONV_2D" else 0
        values = self.weights if self.sparse_values is None else self.sparse_values
        filter_buffer = _add_buffer(model, pack_bits(values, _BITS[self.weight_type]))
        graph.tensors = [
            _tensor("x", self.in_shape, self.io_type, self.input, 0, 0),
            _tensor("filter", self.weights.shape, self.weight_type, self.filter, filter_buffer, axis),
        ]
        graph.tensors[1].sparsity = self.sparsity
        graph.operators = []
        model.operatorCodes = []
        filter_index = 1
        if self.densify:
            graph.tensors.append(_tensor("dense", self.weights.shape, self.weight_type, self.filter, 0, axis))
            filter_index = 2
            graph.operators.append(_operator(model, "DENSIFY", 1, [1], [2], schema.DensifyOptionsT()))
        inputs = [0, filter_index]
        if self.bias is not None:
            scales = tuple(float(np.float32(self.input.scale[0]) * np.float32(s)) for s in self.filter.scale)
            buffer = _add_buffer(model, self.bias.astype("<i4").tobytes())
            graph.tensors.append(_tensor("bias", self.bias.shape, "INT32", Quantization(scales), buffer, 0))
            inputs.append(len(graph.tensors) - 1)
        graph.tensors.append(_tensor("y", self.out_shape, self.io_type, self.output, 0, 0))
        last = len(graph.tensors) - 1
        graph.operators.append(_operator(model, self.op, self.op_version, inputs, [last], self._options()))
        graph.inputs, graph.outputs = [0], [last]
        model.subgraphs = [graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _options(self) -> Any:
        activation = getattr(schema.ActivationFunctionType, self.activation)
        if self.op == "FULLY_CONNECTED":
            fc = schema.FullyConnectedOptionsT()
            fc.fusedActivationFunction = activation
            fc.keepNumDims = len(self.out_shape) > 2
            return fc
        options = schema.Conv2DOptionsT() if self.op == "CONV_2D" else schema.DepthwiseConv2DOptionsT()
        options.padding = getattr(schema.Padding, self.padding)
        options.strideH, options.strideW = self.stride
        options.dilationHFactor, options.dilationWFactor = self.dilation
        options.fusedActivationFunction = activation
        if self.op == "DEPTHWISE_CONV_2D":
            options.depthMultiplier = self.weights.shape[3] // self.in_shape[3]
        return options


def pack_bits(values: NDArray[Any], bits: int) -> bytes:
    """Integers as the schema stores them: the first in the lowest bits of a byte."""
    if bits == 8:
        return values.astype(np.int64).astype(np.uint8).tobytes()
    per_byte = 8 // bits
    flat = values.reshape(-1).astype(np.int64) & ((1 << bits) - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    return (flat << (np.arange(per_byte) * bits)).sum(1).astype(np.uint8).tobytes()


def block_sparsity(weights: NDArray[np.int8], block: int) -> tuple[schema.SparsityParametersT, NDArray[np.int8]]:
    """
    The schema's block encoding along the last dimension, and the values that it keeps.

    Args:
        weights: [..., channels], ``block`` divides channels; a block of zeros is left out.
    """
    *outer, channels = weights.shape
    blocks = weights.reshape(-1, channels // block, block)
    keep = (blocks != 0).any(axis=2)
    sparsity = schema.SparsityParametersT()
    rank = weights.ndim
    sparsity.traversalOrder = list(range(rank + 1))
    sparsity.blockMap = [rank - 1]
    metadata = []
    for size in [*outer, None, block]:
        dimension = schema.DimensionMetadataT()
        if size is None:
            dimension.format = schema.DimensionType.SPARSE_CSR
            segments, indices = schema.Int32VectorT(), schema.Int32VectorT()
            segments.values = [0, *np.cumsum(keep.sum(1)).tolist()]
            indices.values = np.nonzero(keep)[1].tolist()
            dimension.arraySegmentsType = dimension.arrayIndicesType = schema.SparseIndexVector.Int32Vector
            dimension.arraySegments, dimension.arrayIndices = segments, indices
        else:
            dimension.format = schema.DimensionType.DENSE
            dimension.denseSize = size
        metadata.append(dimension)
    sparsity.dimMetadata = metadata
    return sparsity, blocks[keep].reshape(-1)


def _add_buffer(model: schema.ModelT, data: bytes) -> int:
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _tensor(
    name: str, shape: tuple[int, ...], dtype: str, quantization: Quantization, buffer: int, axis: int
) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name = name
    tensor.shape = list(shape)
    tensor.type = getattr(schema.TensorType, dtype)
    tensor.buffer = buffer
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = list(quantization.scale)
    tensor.quantization.zeroPoint = [quantization.zero_point] * len(quantization.scale)
    tensor.quantization.quantizedDimension = axis
    return tensor


def _operator(
    model: schema.ModelT, name: str, version: int, inputs: list[int], outputs: list[int], options: Any
) -> schema.OperatorT:
    code = schema.OperatorCodeT()
    code.version = version
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = inputs, outputs
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    operator.builtinOptions = options
    return operator


def random_conv(
    rng: np.random.Generator,
    *,
    in_shape: tuple[int, int, int, int],
    out_c: int,
    kernel: tuple[int, int] = (3, 3),
    weight_type: str = "INT8",
    groups: int = 1,
    **changes: Any,
) -> SingleOp:
    """A CONV_2D with random weights, per-channel scales, and an output that uses most of its range."""
    stride, dilation = changes.get("stride", (1, 1)), changes.get("dilation", (1, 1))
    size = []
    for extent, k, s, d in zip(in_shape[1:3], kernel, stride, dilation, strict=True):
        same = changes.get("padding", "SAME") == "SAME"
        size.append(-(-extent // s) if same else (extent - (k - 1) * d - 1) // s + 1)
    bits = _BITS[weight_type]
    low = -(2 ** (bits - 1)) + (bits == 8)
    weights = rng.integers(low, 2 ** (bits - 1), (out_c, *kernel, in_shape[3] // groups)).astype(np.int8)
    weights = changes.pop("weights", weights)
    return SingleOp(
        "CONV_2D", in_shape, (in_shape[0], *size, out_c), weights, **_numbers(rng, weights, out_c),
        weight_type=weight_type, **changes,
    )  # fmt: skip


def random_fc(
    rng: np.random.Generator, *, rows: int, in_c: int, out_c: int, weight_type: str = "INT8", **changes: Any
) -> SingleOp:
    """A FULLY_CONNECTED layer likewise, per-tensor unless ``filter`` says otherwise."""
    bits = _BITS[weight_type]
    low = -(2 ** (bits - 1)) + (bits == 8)
    weights = rng.integers(low, 2 ** (bits - 1), (out_c, in_c)).astype(np.int8)
    weights = changes.pop("weights", weights)
    return SingleOp(
        "FULLY_CONNECTED", (rows, in_c), (rows, out_c), weights, **_numbers(rng, weights, out_c),
        weight_type=weight_type, op_version=changes.pop("op_version", 4), **changes,
    )  # fmt: skip


def _numbers(rng: np.random.Generator, weights: NDArray[Any], out_c: int) -> dict[str, Any]:
    spread = max(1.0, float(np.sqrt((weights.astype(float) ** 2).reshape(out_c, -1).sum(1).mean())) * 75)
    filter_scales = tuple(float(s) for s in rng.uniform(0.004, 0.02, out_c).astype(np.float32))
    input_scale = float(np.float32(rng.uniform(0.01, 0.05)))
    return {
        "bias": rng.integers(-int(spread), int(spread) + 1, out_c).astype(np.int32),
        "input": Quantization((input_scale,), int(rng.integers(-128, 128))),
        "output": Quantization((float(np.float32(input_scale * 0.01 * spread / 40)),), int(rng.integers(-40, 41))),
        "filter": Quantization(filter_scales),
    }
