"""
`Graph` back to Keras: the same function as a model that can be saved, exported, and taken for a teacher.

What training changed stands in the graph alone; floating-point files are written by TensorFlow's converter, which takes
Keras models, and so does the next build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deploy.build.graph import Graph, Node


def to_keras(graph: Graph, name: str = "model") -> Any:
    """
    A functional Keras model that computes what `graph` does; its layers are named after the nodes.

    Opaque nodes call the layers they stand for, which the two models then share.
    """
    import keras

    builder = _Builder(keras)
    made: dict[str, Any] = {}
    for node in graph:
        if node.op == "input":
            made[node.name] = keras.Input(node.shape, name=builder.name(node.name))
        else:
            made[node.name] = builder.layer(node, [made[source] for source in node.inputs])
    inputs, outputs = ([made[key] for key in names] for names in (graph.inputs, graph.outputs))
    model = keras.Model(
        inputs if len(inputs) > 1 else inputs[0], outputs if len(outputs) > 1 else outputs[0], name=name
    )
    for layer, weights in builder.weights:
        layer.set_weights(weights)
    return model


class _Builder:
    def __init__(self, keras: Any) -> None:
        self.keras = keras
        self.taken: set[str] = set()
        self.weights: list[tuple[Any, list[Any]]] = []  # layers take theirs when all are built

    def name(self, wanted: str) -> str:
        """Keras takes no slashes, and each name once."""
        base = wanted.replace("/", "_")
        found, count = base, 1
        while found in self.taken:
            count += 1
            found = f"{base}_{count}"
        self.taken.add(found)
        return found

    def layer(self, node: Node, given: list[Any]) -> Any:
        if node.op == "opaque":
            return node.attrs["call"](*given)
        x = _LAYERS[node.op](self, node, given)
        if node.norm is not None:
            norm = node.norm
            layer = self.keras.layers.BatchNormalization(epsilon=norm.epsilon, name=self.name(f"{node.name}_norm"))
            x = layer(x)
            self.weights.append((layer, [norm.gamma, norm.beta, norm.mean, norm.variance]))
        if node.activation != "none" and node.op != "relu":
            x = self.relu(node, f"{node.name}_{node.activation}", x)
        return x

    def relu(self, node: Node, name: str, x: Any) -> Any:
        return self.keras.layers.ReLU(6.0 if node.activation == "relu6" else None, name=self.name(name))(x)

    def weighted(self, node: Node, layer: Any, x: Any) -> Any:
        y = layer(x)
        self.weights.append((layer, [node.kernel] if node.bias is None else [node.kernel, node.bias]))
        return y

    def window(self, node: Node) -> dict[str, Any]:
        attrs = node.attrs
        assert node.kernel is not None
        return {
            "kernel_size": node.kernel.shape[:2], "strides": attrs["strides"], "padding": attrs["padding"],
            "dilation_rate": attrs["dilation"], "use_bias": node.bias is not None, "name": self.name(node.name),
        }  # fmt: skip


def _conv(builder: _Builder, node: Node, given: list[Any]) -> Any:
    layer = builder.keras.layers.Conv2D(node.channels, groups=node.attrs["groups"], **builder.window(node))
    return builder.weighted(node, layer, given[0])


def _depthwise(builder: _Builder, node: Node, given: list[Any]) -> Any:
    assert node.kernel is not None
    if node.attrs.get("fixed") and node.norm is None:  # a Rescaling or a Normalization, as it was
        offset = np.zeros(node.channels) if node.bias is None else node.bias
        layer = builder.keras.layers.Rescaling(
            node.kernel.reshape(-1).tolist(), offset.tolist(), name=builder.name(node.name)
        )
        return layer(given[0])
    layer = builder.keras.layers.DepthwiseConv2D(depth_multiplier=node.kernel.shape[3], **builder.window(node))
    return builder.weighted(node, layer, given[0])


def _dense(builder: _Builder, node: Node, given: list[Any]) -> Any:
    layer = builder.keras.layers.Dense(node.channels, use_bias=node.bias is not None, name=builder.name(node.name))
    return builder.weighted(node, layer, given[0])


def _pool(builder: _Builder, node: Node, given: list[Any]) -> Any:
    kind = builder.keras.layers.MaxPooling2D if node.op == "max_pool" else builder.keras.layers.AveragePooling2D
    attrs = node.attrs
    return kind(attrs["size"], attrs["strides"], attrs["padding"], name=builder.name(node.name))(given[0])


def _mean(builder: _Builder, node: Node, given: list[Any]) -> Any:
    keepdims = node.attrs["keepdims"]
    return builder.keras.layers.GlobalAveragePooling2D(keepdims=keepdims, name=builder.name(node.name))(given[0])


_LAYERS: dict[str, Callable[[_Builder, Node, list[Any]], Any]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "dense": _dense,
    "max_pool": _pool,
    "avg_pool": _pool,
    "mean": _mean,
    "add": lambda b, node, given: b.keras.layers.Add(name=b.name(node.name))(given),
    "concat": lambda b, node, given: b.keras.layers.Concatenate(node.attrs["axis"], name=b.name(node.name))(given),
    "reshape": lambda b, node, given: b.keras.layers.Reshape(node.shape, name=b.name(node.name))(given[0]),
    "softmax": lambda b, node, given: b.keras.layers.Softmax(name=b.name(node.name))(given[0]),
    "relu": lambda b, node, given: b.relu(node, node.name, given[0]),
    "pad": lambda b, node, given: b.keras.layers.ZeroPadding2D(node.attrs["paddings"], name=b.name(node.name))(
        given[0]
    ),
}
