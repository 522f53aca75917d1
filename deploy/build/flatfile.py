"""
Building a .tflite through the schema's objects: tensors, operators, bytes.

The same calls give the same bytes.  Constants that are equal share one buffer; each begins at a multiple of 16 bytes,
as the schema asks, so that kernels may read a mapped file as it is.  Vectors of zero points that are equal are stored
once too: at 8 bytes a channel they would be larger than scales and biases together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

_ALIGNMENT = 16
_BITS = {"INT2": 2, "INT4": 4}


class _Buffer(schema.BufferT):  # type: ignore[misc]
    def Pack(self, builder: Any) -> Any:
        content = b"" if self.data is None else self.data.tobytes()
        if content:
            builder.StartVector(1, len(content), _ALIGNMENT)
            builder.head = builder.head - len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if content:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


class _Quantization(schema.QuantizationParametersT):  # type: ignore[misc]
    def Pack(self, builder: Any) -> Any:
        if self.scale is not None:
            scale = builder.CreateNumpyVector(self.scale)
            key = self.zeroPoint.tobytes()
            if key not in builder.zero_points:
                builder.zero_points[key] = builder.CreateNumpyVector(self.zeroPoint)
        schema.QuantizationParametersStart(builder)
        if self.scale is not None:
            schema.QuantizationParametersAddScale(builder, scale)
            schema.QuantizationParametersAddZeroPoint(builder, builder.zero_points[key])
            schema.QuantizationParametersAddQuantizedDimension(builder, self.quantizedDimension)
        return schema.QuantizationParametersEnd(builder)


class _Builder(flatbuffers.Builder):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(1 << 16)
        self.zero_points: dict[bytes, Any] = {}


def new_model(description: str) -> schema.ModelT:
    """A model of one subgraph without tensors, operators, inputs and outputs."""
    model = schema.ModelT()
    model.version = 3
    model.description = description
    model.buffers = [_Buffer()]
    model.operatorCodes = []
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors, graph.operators = [], []
    model.subgraphs = [graph]
    return model


def add_tensor(
    model: schema.ModelT,
    name: str,
    shape: Sequence[int],
    dtype: str,
    quantization: tuple[Sequence[float], int] | None = None,
    data: NDArray[Any] | None = None,
    axis: int = 0,
) -> int:
    """
    Append a tensor and return its index.

    Args:
        dtype: in the schema's words.
        quantization: scales, one or one for each channel along `axis`, and the zero point of all of them.
        data: makes it a constant; int8 values where dtype is INT4 or INT2, which are packed here.
    """
    tensor = schema.TensorT()
    tensor.name = name
    tensor.shape = [int(extent) for extent in shape]
    tensor.type = getattr(schema.TensorType, dtype)
    tensor.quantization = _Quantization()
    if quantization:
        scales, zero_point = quantization
        tensor.quantization.scale = np.asarray(scales, np.float32)
        tensor.quantization.zeroPoint = np.full(len(scales), zero_point, np.int64)
        tensor.quantization.quantizedDimension = axis
    tensor.buffer = 0 if data is None else _buffer(model, pack(data, _BITS.get(dtype)))
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def add_operator(
    model: schema.ModelT, name: str, version: int, inputs: Sequence[int], outputs: Sequence[int], options: Any = None
) -> None:
    """
    Append a builtin operator.

    Args:
        name: in the schema's words.
        inputs: tensors; -1 is one that is left out.
        options: an object of the schema, such as ``schema.Conv2DOptionsT``.
    """
    builtin = getattr(schema.BuiltinOperator, name)
    codes = [(code.builtinCode, code.version) for code in model.operatorCodes]
    if (builtin, version) not in codes:
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        code.deprecatedBuiltinCode = min(builtin, 127)
        model.operatorCodes.append(code)
        codes.append((builtin, version))
    operator = schema.OperatorT()
    operator.opcodeIndex = codes.index((builtin, version))
    operator.inputs, operator.outputs = list(inputs), list(outputs)
    if options is not None:
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        operator.builtinOptions = options
    model.subgraphs[0].operators.append(operator)


def add_signature(model: schema.ModelT, inputs: dict[str, int], outputs: dict[str, int]) -> None:
    """Make these tensors the inputs and outputs, under these names, of the signature ``serving_default``."""
    graph = model.subgraphs[0]
    graph.inputs, graph.outputs = list(inputs.values()), list(outputs.values())
    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    signature.inputs, signature.outputs = _maps(inputs), _maps(outputs)
    model.signatureDefs = [signature]


def finish(model: schema.ModelT) -> bytes:
    """The file."""
    builder = _Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def pack(values: NDArray[Any], bits: int | None) -> bytes:
    """Little-endian bytes; values of 2 or 4 bits several to a byte, the first in the lowest bits."""
    if bits is None:
        return bytes(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    per_byte = 8 // bits
    flat = values.reshape(-1).astype(np.uint8) & ((1 << bits) - 1)
    flat = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    return bytes((flat << (np.arange(per_byte, dtype=np.uint8) * bits)).sum(axis=1).astype(np.uint8).tobytes())


def _buffer(model: schema.ModelT, content: bytes) -> int:
    for index, buffer in enumerate(model.buffers):
        if index and buffer.data is not None and len(buffer.data) == len(content) and buffer.data.tobytes() == content:
            return index
    buffer = _Buffer()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _maps(tensors: dict[str, int]) -> list[Any]:
    maps = []
    for name, index in tensors.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        maps.append(entry)
    return maps
