"""Small models, written through the schema: no converter needed, every property chosen."""

from __future__ import annotations

import flatbuffers
from ai_edge_litert import schema_py_generated as schema


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
