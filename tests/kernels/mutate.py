"""Models of one layer with one thing wrong: what a delegate must decline and survive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from tests.kernels.single_op import SingleOp, block_sparsity, random_conv, random_fc

NUMBERS = (0, 1, -1, 2, 3, 7, 16, 255, 65536, 2**31 - 1, -(2**31))
SCALES = (0.0, -1.0, float("nan"), float("inf"), 1e38, 1e-38, 1e-45, 1.0)
TYPES = ("FLOAT32", "INT32", "UINT8", "INT8", "INT4", "INT2", "INT16", "INT64", "UINT4")


def mutants(rng: np.random.Generator, count: int) -> Iterator[tuple[bytes, list[NDArray[Any]]]]:
    """`count` models, each with inputs of the shape and type that it had before the change."""
    for _ in range(count):
        op = _healthy(rng)
        values = rng.integers(-128, 128, op.in_shape).astype(np.int8)
        yield mutant(op, rng), [values]


def mutant(op: SingleOp, rng: np.random.Generator) -> bytes:
    """The layer's model with one, two or three changes."""
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAs(op.model(), 0))
    for _ in range(int(rng.integers(1, 4))):
        _CHANGES[int(rng.integers(len(_CHANGES)))](tree, rng)
    builder = flatbuffers.Builder(1024)
    builder.Finish(tree.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _healthy(rng: np.random.Generator) -> SingleOp:
    kind = int(rng.integers(5))
    weight_type = ("INT8", "INT4", "INT2")[int(rng.integers(3))]
    if kind == 0:
        return random_fc(rng, rows=int(rng.integers(1, 4)), in_c=32, out_c=9, weight_type=weight_type)
    if kind == 1:
        op = random_fc(rng, rows=2, in_c=32, out_c=8)
        sparsity, values = block_sparsity(_thinned(op.weights, rng), 16)
        return replace(op, sparsity=sparsity, sparse_values=values, op_version=8)
    op = random_conv(rng, in_shape=(1, 5, 6, 32), out_c=9, kernel=(3, 2), weight_type=weight_type)
    if kind == 2:
        op = random_conv(rng, in_shape=(1, 5, 6, 32), out_c=9)
        sparsity, values = block_sparsity(_thinned(op.weights, rng), 4)
        return replace(op, sparsity=sparsity, sparse_values=values, densify=True)
    return op


def _thinned(weights: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int8]:
    blocks = weights.reshape(-1, 16).copy()
    blocks[rng.random(len(blocks)) < 0.6] = 0
    return blocks.reshape(weights.shape)


def _any_tensor(tree: schema.ModelT, rng: np.random.Generator) -> schema.TensorT:
    tensors = tree.subgraphs[0].tensors
    return tensors[int(rng.integers(len(tensors)))]


def _number(rng: np.random.Generator) -> int:
    return int(NUMBERS[int(rng.integers(len(NUMBERS)))])


def _shape(tree: schema.ModelT, rng: np.random.Generator) -> None:
    tensor = _any_tensor(tree, rng)
    shape = list(tensor.shape)
    if rng.random() < 0.2 or not shape:
        shape = shape[:-1] if shape and rng.random() < 0.5 else [*shape, 2]
    else:
        # Never so large that the test itself would need gigabytes.
        shape[int(rng.integers(len(shape)))] = min(_number(rng), 70000)
    tensor.shape = shape


def _scale(tree: schema.ModelT, rng: np.random.Generator) -> None:
    quantization = _any_tensor(tree, rng).quantization
    scales = list(quantization.scale)
    if rng.random() < 0.3:
        scales = scales[:-1] if rng.random() < 0.5 else [*scales, 1.0]
    elif scales:
        scales[int(rng.integers(len(scales)))] = float(np.float32(SCALES[int(rng.integers(len(SCALES)))]))
    quantization.scale = scales
    if rng.random() < 0.5:
        quantization.zeroPoint = list(quantization.zeroPoint)[: len(scales)]


def _zero_point(tree: schema.ModelT, rng: np.random.Generator) -> None:
    quantization = _any_tensor(tree, rng).quantization
    quantization.zeroPoint = [_number(rng)] * len(quantization.zeroPoint)
    quantization.quantizedDimension = int(rng.choice([0, 0, 1, 3, 9, -1]))


def _type(tree: schema.ModelT, rng: np.random.Generator) -> None:
    _any_tensor(tree, rng).type = getattr(schema.TensorType, TYPES[int(rng.integers(len(TYPES)))])


def _options(tree: schema.ModelT, rng: np.random.Generator) -> None:
    options = tree.subgraphs[0].operators[-1].builtinOptions
    names = [name for name, value in vars(options).items() if isinstance(value, int) and name != "quantizedBiasType"]
    name = names[int(rng.integers(len(names)))]
    if isinstance(getattr(options, name), bool):
        setattr(options, name, not getattr(options, name))
    elif name in ("padding", "fusedActivationFunction", "weightsFormat"):
        setattr(options, name, int(rng.integers(0, 6)))
    else:
        setattr(options, name, _number(rng))


def _buffer(tree: schema.ModelT, rng: np.random.Generator) -> None:
    buffer = tree.buffers[int(rng.integers(len(tree.buffers)))]
    if buffer.data is not None and len(buffer.data):
        buffer.data = np.asarray(buffer.data)[: int(rng.integers(0, len(buffer.data) + 1))]


def _wiring(tree: schema.ModelT, rng: np.random.Generator) -> None:
    operator = tree.subgraphs[0].operators[-1]
    inputs = list(operator.inputs)
    inputs[int(rng.integers(len(inputs)))] = int(rng.integers(-1, len(tree.subgraphs[0].tensors)))
    operator.inputs = inputs[: int(rng.integers(1, len(inputs) + 1))] if rng.random() < 0.3 else inputs


def _sparsity(tree: schema.ModelT, rng: np.random.Generator) -> None:
    sparsity = tree.subgraphs[0].tensors[1].sparsity
    if sparsity is None:
        return _buffer(tree, rng)
    what = int(rng.integers(5))
    if what == 0:
        order = list(sparsity.traversalOrder)
        order[int(rng.integers(len(order)))] = int(rng.integers(-1, len(order) + 1))
        sparsity.traversalOrder = order if rng.random() < 0.7 else order[:-1]
    elif what == 1:
        sparsity.blockMap = [_number(rng)] if rng.random() < 0.7 else []
    elif what == 2:
        metadata = list(sparsity.dimMetadata)
        sparsity.dimMetadata = metadata[:-1] if rng.random() < 0.5 else [*metadata, metadata[0]]
    elif what == 3:
        metadata = sparsity.dimMetadata[int(rng.integers(len(sparsity.dimMetadata)))]
        metadata.denseSize = _number(rng)
    else:
        for metadata in sparsity.dimMetadata:
            for vector in (metadata.arraySegments, metadata.arrayIndices):
                if vector is not None and len(vector.values) and rng.random() < 0.6:
                    values = [int(v) for v in vector.values]
                    values[int(rng.integers(len(values)))] = _number(rng)
                    vector.values = values if rng.random() < 0.7 else values[: int(rng.integers(1, len(values) + 1))]
    return None


_CHANGES = (_shape, _shape, _scale, _zero_point, _type, _options, _options, _buffer, _wiring, _sparsity, _sparsity)
