"""Small graphs, made without Keras, and stock LiteRT's reference kernels, which say what a file answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from deploy.build.graph import Floats, Graph, Node, Norm


def answers(model: bytes, samples: Floats) -> list[np.ndarray[Any, Any]]:
    """Real values of each output, [N, ...]; the model has one input."""
    interpreter = Interpreter(
        model_content=model, num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    scale, zero_point = given["quantization"]
    limits = np.iinfo(given["dtype"])
    made: list[list[np.ndarray[Any, Any]]] = [[] for _ in interpreter.get_output_details()]
    for sample in samples:
        steps = np.clip(np.rint(sample / np.float32(scale)) + zero_point, limits.min, limits.max)
        interpreter.set_tensor(given["index"], steps.astype(given["dtype"])[np.newaxis])
        interpreter.invoke()
        for values, detail in zip(made, interpreter.get_output_details(), strict=True):
            y, (scale_y, zero_y) = interpreter.get_tensor(detail["index"])[0], detail["quantization"]
            values.append(y if y.dtype == np.float32 else (y.astype(np.float32) - zero_y) * np.float32(scale_y))
    return [np.stack(values) for values in made]


def decibels(expected: Floats, actual: Floats) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum()))


def window(groups: int = 1, stride: int = 1, padding: str = "same", dilation: int = 1) -> dict[str, Any]:
    return {"strides": (stride, stride), "dilation": (dilation, dilation), "padding": padding, "groups": groups}


def pool(stride: int, padding: str) -> dict[str, Any]:
    return {"size": (2, 2), "strides": (stride, stride), "padding": padding}


def classifier(rng: np.random.Generator, channels: int = 16) -> Graph:
    """Images [8, 8, 3] to 4 probabilities: every operator but dilation, with normalizations that are not folded."""

    def norm(count: int) -> Norm:
        return Norm(*(rng.uniform(0.5, 1.5, count).astype(np.float32) for _ in range(4)), 1e-3)

    def weights(*shape: int) -> Floats:
        return np.asarray(rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape), np.float32)

    c = channels
    image, small = (8, 8), (4, 4)
    nodes = [
        Node("x", "input", (), (*image, 3)),
        Node("first", "conv", ("x",), (*image, c), weights(3, 3, 3, c), None, norm(c), "relu", window()),
        Node("deep", "depthwise", ("first",), (*small, c), weights(3, 3, c, 1), None, norm(c), "relu6",
             window(c, stride=2)),
        Node("pool", "max_pool", ("first",), (*small, c), attrs=pool(2, "valid")),
        Node("left", "conv", ("deep",), (*small, c), weights(3, 3, c, c), rng.normal(0, 0.1, c).astype(np.float32),
             attrs=window()),
        Node("right", "conv", ("pool",), (*small, c), weights(1, 1, c, c), activation="relu", attrs=window()),
        Node("sum", "add", ("left", "right"), (*small, c), activation="relu"),
        Node("both", "concat", ("sum", "pool"), (*small, 2 * c), attrs={"axis": 3}),
        Node("wide", "pad", ("both",), (6, 6, 2 * c), attrs={"paddings": ((1, 1), (1, 1))}),
        Node("mixed", "conv", ("wide",), (*small, c), weights(3, 3, 2 * c, c), None, norm(c),
             attrs=window(padding="valid")),
        Node("bent", "relu", ("mixed",), (*small, c), activation="relu6"),
        Node("smooth", "avg_pool", ("bent",), (*small, c), attrs=pool(1, "same")),
        Node("mean", "mean", ("smooth",), (c,), attrs={"keepdims": False}),
        Node("square", "reshape", ("mean",), (2, c // 2)),
        Node("flat", "reshape", ("square",), (c,)),
        Node("last", "dense", ("flat",), (4,), weights(c, 4), rng.normal(0, 1, 4).astype(np.float32)),
        Node("y", "softmax", ("last",), (4,)),
    ]  # fmt: skip
    return Graph({node.name: node for node in nodes}, ("x",), ("y",))


def images(rng: np.random.Generator, count: int = 64) -> Floats:
    return np.asarray(rng.normal(0, 1, (count, 8, 8, 3)), np.float32)


def inner(graph: Graph, kind: str) -> dict[str, str]:
    """`kind` for all weights but those of the first, the last and depthwise layers, as recipes have it."""
    nodes = graph.weighted()[1:-1]
    return {node.name: kind for node in nodes if node.op != "depthwise"}
