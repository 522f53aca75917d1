"""
What a .tflite file holds, read through the schema: operators, tensors, signatures.

Nothing is executed; a file that breaks interpreters can be looked at.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.errors import BuildError
from devices.protocol.manifest import TensorInfo

_IDENTIFIER = b"TFL3"


@dataclass(frozen=True)
class Weights:
    """All constant tensors of one type."""

    dtype: str
    tensors: int
    bytes: int
    zeros: float | None  # share of zero elements; None where the type packs several values in a byte


@dataclass(frozen=True)
class ModelFacts:
    """
    Attributes:
        ops: operator -> how often, over all subgraphs; custom ones as ``CUSTOM:name``.
        inputs, outputs: of the first subgraph; an open extent is -1.
        signatures: their names.
        weights: by type, largest first.
        per_channel: whether any weight has one scale per channel.
        sparse: how many tensors are stored in a sparse encoding.
    """

    bytes: int
    ops: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    signatures: tuple[str, ...]
    weights: tuple[Weights, ...]
    subgraphs: int
    per_channel: bool = False
    sparse: int = 0
    description: str = field(default="", compare=False)


def read(data: bytes, name: str) -> ModelFacts:
    """
    Read a model.

    Args:
        name: of the file, for messages.

    Raises:
        BuildError: not a TFLite file, or one that ends too early.
    """
    schema, model = _parse(data, name)
    try:
        return _facts(schema, model, len(data), name)
    except (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError):
        raise _cut_short(data, name) from None


def operator_names(data: bytes, name: str) -> list[str]:
    """
    The operators of the first subgraph in the order of execution; custom ones as ``CUSTOM:name``.

    Raises:
        BuildError: as `read`.
    """
    schema, model = _parse(data, name)
    try:
        names = _reverse(schema.BuiltinOperator)
        operators = model.subgraphs[0].operators
        return [_operator(model, op, names) for op in (operators if operators is not None else ())]
    except (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError):
        raise _cut_short(data, name) from None


_HINT = "`deploy build` takes .tflite, .keras, .h5, a SavedModel folder or module:function"


def _parse(data: bytes, name: str) -> tuple[Any, Any]:
    from ai_edge_litert import schema_py_generated as schema

    if not data:
        raise BuildError(f"{name}: not a TFLite file (it is empty)", _HINT)
    if data[4:8] != _IDENTIFIER:
        raise BuildError(f"{name}: not a TFLite file (no 'TFL3' at byte 4, but {data[4:8]!r})", _HINT)
    try:
        return schema, schema.ModelT.InitFromPackedBuf(data, 0)
    except (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError):
        raise _cut_short(data, name) from None


def _cut_short(data: bytes, name: str) -> BuildError:
    return BuildError(f"{name}: not a TFLite file, or cut short ({len(data)} bytes)", _HINT)


def _operator(model: Any, op: Any, names: dict[int, str]) -> str:
    code = model.operatorCodes[op.opcodeIndex]
    builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
    operator = names.get(builtin, f"BUILTIN:{builtin}")  # of a newer schema
    return f"CUSTOM:{_text(code.customCode)}" if operator == "CUSTOM" else operator


def _facts(schema: Any, model: Any, size: int, name: str) -> ModelFacts:
    types = _reverse(schema.TensorType)
    operators = _reverse(schema.BuiltinOperator)
    ops: Counter[str] = Counter()
    graphs = model.subgraphs or []
    if not graphs:
        raise BuildError(f"{name}: no subgraph in the model")
    weights: dict[str, list[Any]] = {}
    per_channel, sparse = False, 0
    for graph in graphs:
        for op in graph.operators if graph.operators is not None else ():
            ops[_operator(model, op, operators)] += 1
        for tensor in graph.tensors if graph.tensors is not None else ():
            content = model.buffers[tensor.buffer].data if tensor.buffer < len(model.buffers) else None
            if content is None or len(content) == 0:
                continue
            scales = tensor.quantization.scale if tensor.quantization is not None else None
            per_channel |= scales is not None and len(scales) > 1
            sparse += tensor.sparsity is not None
            weights.setdefault(types[tensor.type].lower(), []).append(np.asarray(content, np.uint8))
    return ModelFacts(
        bytes=size,
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        inputs=tuple(_info(graphs[0].tensors[i], types) for i in graphs[0].inputs),
        outputs=tuple(_info(graphs[0].tensors[i], types) for i in graphs[0].outputs),
        signatures=tuple(_text(s.signatureKey) for s in model.signatureDefs or ()),
        weights=tuple(sorted((_weights(dtype, parts) for dtype, parts in weights.items()), key=lambda w: -w.bytes)),
        subgraphs=len(graphs),
        per_channel=per_channel,
        sparse=sparse,
        description=_text(model.description),
    )


def _info(tensor: Any, types: dict[int, str]) -> TensorInfo:
    shape = tensor.shapeSignature if tensor.shapeSignature is not None and len(tensor.shapeSignature) else tensor.shape
    quantization = tensor.quantization
    scales: Any = quantization.scale if quantization is not None and quantization.scale is not None else ()
    zeros: Any = quantization.zeroPoint if quantization is not None and quantization.zeroPoint is not None else ()
    per_tensor = len(scales) == 1
    return TensorInfo(
        name=_text(tensor.name),
        dtype=types[tensor.type].lower(),
        shape=tuple(int(extent) for extent in (shape if shape is not None else ())),
        scale=float(scales[0]) if per_tensor else 0.0,
        zero_point=int(zeros[0]) if per_tensor and len(zeros) else 0,
    )


_WHOLE_BYTES = {"int8": "i1", "uint8": "u1", "int16": "i2", "int32": "i4", "int64": "i8", "float16": "f2",
                "float32": "f4", "float64": "f8"}  # fmt: skip


def _weights(dtype: str, parts: list[Any]) -> Weights:
    total = sum(len(part) for part in parts)
    zeros = None
    if dtype in _WHOLE_BYTES:
        values = [np.frombuffer(part.tobytes(), "<" + _WHOLE_BYTES[dtype]) for part in parts]
        count = sum(v.size for v in values)
        zeros = math.fsum(int((v == 0).sum()) for v in values) / count if count else None
    return Weights(dtype, len(parts), total, zeros)


def _reverse(enum: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else (value or "")
