"""
Layers that have no integers: float operators that TensorFlow's converter writes, put into our file.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from deploy.build.flatfile import add_operator, add_tensor
from deploy.build.graph import Node
from deploy.errors import BuildError


def add_island(model: schema.ModelT, node: Node, shapes: list[tuple[int, ...]], inputs: list[int]) -> int:
    """
    Append what one opaque node computes.

    Args:
        shapes: of its inputs, with the batch.
        inputs: float tensors of `model`.

    Returns:
        The float tensor of its output, named after the node.

    Raises:
        BuildError: TensorFlow's converter refuses the layer, or writes what does not stand in one subgraph.
    """
    island = schema.ModelT.InitFromPackedBuf(_convert(node, shapes), 0)
    if len(island.subgraphs) != 1:
        raise BuildError(f"layer {node.name!r} becomes {len(island.subgraphs)} subgraphs; only one can be taken over")
    graph = island.subgraphs[0]
    at: dict[int, int] = {-1: -1} | {int(tensor): given for tensor, given in zip(graph.inputs, inputs, strict=True)}
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    output = int(graph.outputs[0])
    for index, tensor in enumerate(graph.tensors):
        if index in at:
            continue
        content = island.buffers[tensor.buffer].data
        data = None if content is None or len(content) == 0 else np.asarray(content, np.uint8)
        name = node.name if index == output else f"{node.name}/{index}"
        shape = tensor.shape if tensor.shape is not None else ()
        at[index] = add_tensor(model, name, shape, types[tensor.type], data=data)
    for operator in graph.operators:
        code = island.operatorCodes[operator.opcodeIndex]
        builtin = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if builtin == "CUSTOM":
            raise BuildError(f"layer {node.name!r} needs a custom operator, which no runtime here knows")
        given, made = ([at[int(i)] for i in side] for side in (operator.inputs, operator.outputs))
        add_operator(model, builtin, code.version, given, made, operator.builtinOptions)
    return at[output]


def _convert(node: Node, shapes: list[tuple[int, ...]]) -> bytes:
    import tensorflow as tf

    from deploy.build.source import quiet

    specs = [tf.TensorSpec(shape, tf.float32, name=f"x{i}") for i, shape in enumerate(shapes)]
    try:
        with quiet():
            function = tf.function(node.attrs["call"], input_signature=specs).get_concrete_function()
            # The order of arguments is kept.
            return bytes(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    except Exception as error:  # the converter raises whatever MLIR, TensorFlow or Keras felt like
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BuildError(f"layer {node.name!r} cannot be converted: {reason}") from error
