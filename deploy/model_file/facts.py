"""
What a .tflite file holds, in short: operators, tensors, signatures.

Nothing is executed; a file that breaks interpreters can be looked at.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from deploy.model_file.parse import Model, elements, scales, text, zero_points
from devices.protocol.manifest import TensorInfo


@dataclass(frozen=True)
class Weights:
    """
    All constant tensors of one type.

    Attributes:
        elements: values that they stand for; more than are stored where the encoding is sparse.
        zeros: share of zeros among them; None for types that are not read here.
    """

    dtype: str
    tensors: int
    bytes: int
    zeros: float | None
    elements: int = 0


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
    model = Model(data, name)
    with model.reading():
        return _facts(model)


def operator_names(data: bytes, name: str) -> list[str]:
    """
    The operators of the first subgraph in the order of execution; custom ones as ``CUSTOM:name``.

    Raises:
        BuildError: as `read`.
    """
    model = Model(data, name)
    with model.reading():
        operators = model.root.subgraphs[0].operators
        return [model.operator(op) for op in (operators if operators is not None else ())]


def _facts(model: Model) -> ModelFacts:
    ops: Counter[str] = Counter()
    graphs = model.graphs
    constants: dict[str, list[Any]] = {}
    per_channel, sparse = False, 0
    for graph in graphs:
        for op in graph.operators if graph.operators is not None else ():
            ops[model.operator(op)] += 1
        for tensor in graph.tensors if graph.tensors is not None else ():
            if model.content(tensor) is None:
                continue
            per_channel |= scales(tensor).size > 1
            sparse += tensor.sparsity is not None
            constants.setdefault(model.dtype(tensor), []).append(tensor)
    weights = (_weights(model, dtype, tensors) for dtype, tensors in constants.items())
    return ModelFacts(
        bytes=model.bytes,
        ops=dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
        inputs=tuple(_info(model, graphs[0].tensors[i]) for i in graphs[0].inputs),
        outputs=tuple(_info(model, graphs[0].tensors[i]) for i in graphs[0].outputs),
        signatures=tuple(text(s.signatureKey) for s in model.root.signatureDefs or ()),
        weights=tuple(sorted(weights, key=lambda w: -w.bytes)),
        subgraphs=len(graphs),
        per_channel=per_channel,
        sparse=sparse,
        description=text(model.root.description),
    )


def _info(model: Model, tensor: Any) -> TensorInfo:
    shape = tensor.shapeSignature if tensor.shapeSignature is not None and len(tensor.shapeSignature) else tensor.shape
    scale, zero_point = scales(tensor), zero_points(tensor)
    per_tensor = scale.size == 1
    return TensorInfo(
        name=text(tensor.name),
        dtype=model.dtype(tensor),
        shape=tuple(int(extent) for extent in (shape if shape is not None else ())),
        scale=float(scale[0]) if per_tensor else 0.0,
        zero_point=int(zero_point[0]) if per_tensor and zero_point.size else 0,
    )


def _weights(model: Model, dtype: str, tensors: list[Any]) -> Weights:
    size, count, read, zeros = 0, 0, 0, 0
    for tensor in tensors:
        content, values = model.content(tensor), model.stored(tensor)
        size += 0 if content is None else len(content)
        count += elements(tensor)
        if values is not None:
            read += 1
            # What a sparse encoding leaves out is zero.
            zeros += elements(tensor) - int((values != 0).sum()) if tensor.sparsity else int((values == 0).sum())
    return Weights(dtype, len(tensors), size, zeros / count if count and read == len(tensors) else None, count)
