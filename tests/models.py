"""Small models, written through the schema: no converter needed, every property chosen."""

from __future__ import annotations

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from deploy.delta import ranges


def elementwise(
    shape: tuple[int, ...] = (1, 4),
    op: str = "ADD",
    dtype: str = "FLOAT32",
    inputs: int = 2,
    custom: str | None = None,
    open_batch: bool = False,
) -> bytes:
    """
    A model of one operator whose inputs and output all have `shape`: ``y = a + b``.

    Args:
        op: ADD, SUB, MUL, LOGISTIC, ...
        custom: name of a custom operator to use instead; no runtime knows it.
        open_batch: the first extent is -1 in the shape signature.
    """
    model = schema.ModelT()
    model.version = 3
    model.description = "test"
    code = schema.OperatorCodeT()
    code.version = 1
    if custom:
        code.builtinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = custom
    else:
        code.builtinCode = getattr(schema.BuiltinOperator, op)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    model.operatorCodes = [code]
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.name = "main"
    graph.tensors = [_tensor(name, shape, dtype, open_batch) for name in [*"abcdefgh"[:inputs], "y"]]
    graph.inputs = list(range(inputs))
    graph.outputs = [inputs]
    operator = schema.OperatorT()
    operator.opcodeIndex = 0
    operator.inputs = list(range(inputs))
    operator.outputs = [inputs]
    if not custom and op in ("ADD", "SUB", "MUL"):
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{op.title()}Options")
        operator.builtinOptions = getattr(schema, f"{op.title()}OptionsT")()
    graph.operators = [operator]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _tensor(name: str, shape: tuple[int, ...], dtype: str, open_batch: bool) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name = name
    tensor.shape = list(shape)
    if open_batch:
        tensor.shapeSignature = [-1, *shape[1:]]
    tensor.type = getattr(schema.TensorType, dtype)
    tensor.buffer = 0
    tensor.quantization = schema.QuantizationParametersT()
    return tensor


def perturbed(model: bytes, share: float, step: int, seed: int, jitter: bool = False) -> bytes:
    """
    A model as if it had been trained a little longer: a `share` of its weights moves by 1 to `step`, up or down.

    Args:
        jitter: its scales (by some 0.2 %) and biases (by up to 20) move as well; else they do when `share` hits them.
    """
    rng = np.random.default_rng(seed)
    out = bytearray(model)
    for each in ranges(model):
        field, where = each.keys[0][0], slice(each.start, each.end)
        if field == 2 and jitter:
            scales = np.frombuffer(model[where], "<f4")
            out[where] = (scales * (1 + rng.normal(0, 0.002, scales.size))).astype("<f4").tobytes()
        elif field == "data":
            wide = {0: "<i4", 1: "<i2", 2: "<i4", 4: "<i8", 7: "<i2"}  # floats by their bits
            values = np.frombuffer(model[where], wide.get(each.type, "i1"))
            moves = rng.integers(1, step + 1, values.size) * rng.choice([-1, 1], values.size)
            moves *= rng.random(values.size) < share
            if jitter and each.type == 2:
                moves = rng.integers(-20, 21, values.size)
            info = np.iinfo(values.dtype)
            moved = np.clip(values.astype(np.int64) + moves, info.min, info.max)
            out[where] = moved.astype(values.dtype).tobytes()
    return bytes(out)
