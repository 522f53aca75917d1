"""
Keras to `Graph`: what is known becomes a node, what is not stays whole as an opaque one, with the reason.

TensorFlow need not be imported before: whoever has a Keras model has it running already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deploy.build.graph import Floats, Graph, Node, Norm
from deploy.errors import BuildError

_NOTHING = (
    "Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "GaussianDropout",
    "GaussianNoise", "ActivityRegularization", "Identity",
)  # fmt: skip
"""What only training feels, besides the layers that augment images, whose names begin with Random."""
_ACTIVATIONS = ("linear", "relu", "relu6", "softmax")


def from_keras(model: Any) -> Graph:
    """
    Read a functional or sequential Keras model; it is not changed.

    A batch normalization behind a convolution or a dense layer becomes its `Node.norm`, a ReLU or ReLU6 behind these or
    an addition its `Node.activation`; each needs to be the only reader.  A normalization that stands alone becomes a
    depthwise 1x1 convolution.  A layer that is called twice becomes two nodes with the same weights.

    Raises:
        BuildError: not such a model, an extent besides the batch is open, or a layer has several outputs.
    """
    functional = getattr(model, "_functional", None) or model
    if not hasattr(functional, "_nodes_by_depth"):
        raise BuildError(
            f"{type(model).__name__} is neither a functional nor a sequential Keras model; its layers cannot be read",
            "`--recipe dynamic` converts it as it is",
        )
    reader = _Reader()
    inputs = []
    for tensor in functional.inputs:
        shape = _shape(tensor, tensor.name)
        name = reader.add(Node(_name(tensor), "input", (), shape, layers=(_name(tensor),)))
        reader.names[id(tensor)] = name
        inputs.append(name)
    reader.walk(functional, "")
    outputs = tuple(reader.names[id(tensor)] for tensor in functional.outputs)
    graph = Graph(reader.nodes, tuple(inputs), outputs, model)
    _lower(graph)
    return graph


class _Reader:
    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.names: dict[int, str] = {}  # id of a Keras tensor -> the node that makes it

    def add(self, node: Node) -> str:
        base, count = node.name, 1
        while node.name in self.nodes:
            count += 1
            node.name = f"{base}_{count}"
        self.nodes[node.name] = node
        return node.name

    def walk(self, functional: Any, prefix: str) -> None:
        """The calls of a model, in the order in which Keras runs them; its inputs are known already."""
        for depth in sorted(functional._nodes_by_depth, reverse=True):
            for call in functional._nodes_by_depth[depth]:
                if call.is_input or any(id(tensor) not in self.names for tensor in call.input_tensors):
                    continue
                self._call(call, prefix)

    def _call(self, call: Any, prefix: str) -> None:
        layer, name = call.operation, prefix + call.operation.name
        given = [self.names[id(tensor)] for tensor in call.input_tensors]
        inner = getattr(layer, "_functional", None) or layer
        if hasattr(inner, "_nodes_by_depth"):
            self.names |= {id(tensor): source for tensor, source in zip(inner.inputs, given, strict=True)}
            self.walk(inner, name + "/")
            made = [self.names[id(tensor)] for tensor in inner.outputs]
            # A model called twice is walked twice: what the first walk found must not be taken for the second's.
            for inner_call in (c for calls in inner._nodes_by_depth.values() for c in calls):
                for tensor in inner_call.outputs:
                    self.names.pop(id(tensor), None)
            self.names |= {id(tensor): source for tensor, source in zip(call.outputs, made, strict=True)}
            return
        if len(call.outputs) != 1:
            raise BuildError(
                f"layer {name!r} ({type(layer).__name__}) has {len(call.outputs)} outputs, which no node here has",
                "`--recipe dynamic` converts the model as it is",
            )
        shape = _shape(call.outputs[0], name)
        self.names[id(call.outputs[0])] = self._node(layer, call, name, given, shape)

    def _node(self, layer: Any, call: Any, name: str, given: list[str], shape: tuple[int, ...]) -> str:
        kind = type(layer).__name__
        if kind in _NOTHING or kind.startswith("Random"):
            return given[0]
        reason = _refuse(layer, kind, [self.nodes[source].shape for source in given], shape)
        if reason:
            return self._opaque(layer, call, name, given, shape, reason)
        made: str = _LAYERS[kind](self, layer, name, tuple(given), shape)
        return made

    def _opaque(self, layer: Any, call: Any, name: str, given: list[str], shape: tuple[int, ...], reason: str) -> str:
        tensors = list({id(tensor): tensor for tensor in call.input_tensors}.values())

        def run(*values: Any) -> Any:
            known = {id(tensor): value for tensor, value in zip(tensors, values, strict=True)}
            args, kwargs = call.arguments.fill_in(known)
            return layer(*args, **kwargs)

        attrs = {"reason": reason, "call": run}
        sources = tuple({id(tensor): source for tensor, source in zip(call.input_tensors, given, strict=True)}.values())
        return self.add(Node(name, "opaque", sources, shape, attrs=attrs, layers=(name,)))


def _refuse(layer: Any, kind: str, inputs: list[tuple[int, ...]], shape: tuple[int, ...]) -> str | None:
    """Why a layer stays opaque; None where it need not."""
    if kind not in _LAYERS:
        return f"{kind} has no integer form here"
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return "channels first"
    if kind == "Activation" and _activation(layer) not in _ACTIVATIONS:
        return _unknown(layer)
    if kind in ("ReLU", "Relu6") and (layer.negative_slope or layer.threshold or layer.max_value not in (None, 6)):
        return "a ReLU with a slope, a threshold or a limit other than 6"
    if kind == "Softmax" and layer.axis not in (-1, len(shape)):
        return "softmax along another axis than the last"
    if kind == "BatchNormalization" and layer.axis not in (-1, len(shape)):
        return "normalization along another axis than the last"
    if kind == "Normalization" and (layer.invert or np.asarray(layer.mean).size not in (1, shape[-1])):
        return "normalization along another axis than the last"
    if kind == "Rescaling" and max(np.asarray(v).size for v in (layer.scale, layer.offset)) not in (1, shape[-1]):
        return "scales along another axis than the last"
    if kind == "Add" and (len(inputs) < 2 or any(each != shape for each in inputs)):
        return "an addition that repeats one of its inputs"
    if kind == "Concatenate" and layer.axis not in (-1, *range(1, len(shape) + 1)):
        return f"a concatenation along axis {layer.axis}"
    if kind in ("AveragePooling2D", "MaxPooling2D", "Conv2D", "DepthwiseConv2D", "SeparableConv2D"):
        return None if layer.padding in ("same", "valid") else f"padding {layer.padding}"
    return None


def _unknown(layer: Any) -> str:
    return f"activation {_activation(layer)} has no integer form here"


def _activation(layer: Any) -> str:
    """One of `_ACTIVATIONS`, or the name of another one in quotes."""
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    import keras

    name = getattr(function, "__name__", type(function).__name__)
    known = keras.activations.get(name) if name in _ACTIVATIONS else None
    return name if known is function else f"{name!r}"


def _conv(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    node = Node(name, "conv", given, shape, _array(layer.kernel), _bias(layer), attrs=_window(layer), layers=(name,))
    node.attrs["groups"] = int(layer.groups)
    return _activated(reader, layer, node)


def _depthwise(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    node = Node(
        name, "depthwise", given, shape, _array(layer.kernel), _bias(layer), attrs=_window(layer), layers=(name,)
    )
    node.attrs["groups"] = node.kernel.shape[2] if node.kernel is not None else 1
    return _activated(reader, layer, node)


def _separable(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    kernel, point = _array(layer.depthwise_kernel), _array(layer.pointwise_kernel)
    attrs = _window(layer) | {"groups": kernel.shape[2]}
    middle = (*shape[:-1], kernel.shape[2] * kernel.shape[3])
    first = reader.add(Node(f"{name}/depthwise", "depthwise", given, middle, kernel, attrs=attrs))
    one = {"strides": (1, 1), "dilation": (1, 1), "padding": "valid", "groups": 1}
    return _activated(
        reader, layer, Node(name, "conv", (first,), shape, point, _bias(layer), attrs=one, layers=(name,))
    )


def _dense(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return _activated(
        reader, layer, Node(name, "dense", given, shape, _array(layer.kernel), _bias(layer), layers=(name,))
    )


def _norm(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    ones, zeros = np.ones(shape[-1], np.float32), np.zeros(shape[-1], np.float32)
    norm = Norm(
        _array(layer.gamma) if layer.scale else ones,
        _array(layer.beta) if layer.center else zeros,
        _array(layer.moving_mean),
        _array(layer.moving_variance),
        float(layer.epsilon),
    )
    return reader.add(Node(name, "affine", given, shape, ones, None, norm, layers=(name,)))


def _rescaling(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return _affine(reader, name, given, shape, layer.scale, layer.offset)


def _normalization(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    mean, variance = (np.asarray(value, np.float32).reshape(-1) for value in (layer.mean, layer.variance))
    factor = 1 / np.maximum(np.sqrt(variance), np.float32(1e-7))  # Keras divides by no less than this
    return _affine(reader, name, given, shape, factor, -mean * factor)


def _affine(
    reader: _Reader, name: str, given: tuple[str, ...], shape: tuple[int, ...], factor: Any, offset: Any
) -> str:
    kernel, bias = (
        np.broadcast_to(np.asarray(value, np.float32).reshape(-1), (shape[-1],)).copy() for value in (factor, offset)
    )
    return reader.add(Node(name, "affine", given, shape, kernel, bias, layers=(name,)))


def _relu(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    activation = "relu6" if type(layer).__name__ == "Relu6" or getattr(layer, "max_value", None) == 6 else "relu"
    return reader.add(Node(name, "relu", given, shape, activation=activation, layers=(name,)))


def _activation_layer(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    activation = _activation(layer)
    if activation == "linear":
        return given[0]
    op = "softmax" if activation == "softmax" else "relu"
    return reader.add(
        Node(name, op, given, shape, activation="none" if op == "softmax" else activation, layers=(name,))
    )


def _softmax(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return reader.add(Node(name, "softmax", given, shape, layers=(name,)))


def _add(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    sum_ = given[0]
    for i, other in enumerate(given[1:]):  # TFLite adds two at a time
        last = i == len(given) - 2
        node = Node(name if last else f"{name}/{i}", "add", (sum_, other), shape, layers=(name,) if last else ())
        sum_ = reader.add(node)
    return sum_


def _concat(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    axis = int(layer.axis) if layer.axis > 0 else len(shape)
    return reader.add(Node(name, "concat", given, shape, attrs={"axis": axis}, layers=(name,)))


def _pool(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    op = "max_pool" if type(layer).__name__ == "MaxPooling2D" else "avg_pool"
    attrs = {"size": tuple(layer.pool_size), "strides": tuple(layer.strides), "padding": layer.padding}
    return reader.add(Node(name, op, given, shape, attrs=attrs, layers=(name,)))


def _mean(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return reader.add(Node(name, "mean", given, shape, attrs={"keepdims": bool(layer.keepdims)}, layers=(name,)))


def _max(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    """The maximum over a whole image is a pool of its size."""
    source = reader.nodes[given[0]].shape
    attrs = {"size": source[:2], "strides": source[:2], "padding": "valid"}
    one = (1, 1, source[2])
    if one == shape:
        return reader.add(Node(name, "max_pool", given, one, attrs=attrs, layers=(name,)))
    pool = reader.add(Node(f"{name}/pool", "max_pool", given, one, attrs=attrs))
    return reader.add(Node(name, "reshape", (pool,), shape, layers=(name,)))


def _reshape(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    return reader.add(Node(name, "reshape", given, shape, layers=(name,)))


def _pad(reader: _Reader, layer: Any, name: str, given: tuple[str, ...], shape: tuple[int, ...]) -> str:
    paddings = tuple(tuple(int(n) for n in pair) for pair in layer.padding)
    return reader.add(Node(name, "pad", given, shape, attrs={"paddings": paddings}, layers=(name,)))


_LAYERS: dict[str, Callable[[_Reader, Any, str, tuple[str, ...], tuple[int, ...]], str]] = {
    "Conv2D": _conv, "DepthwiseConv2D": _depthwise, "SeparableConv2D": _separable, "Dense": _dense,
    "BatchNormalization": _norm, "Rescaling": _rescaling, "Normalization": _normalization,
    "ReLU": _relu, "Activation": _activation_layer, "Softmax": _softmax, "Add": _add, "Concatenate": _concat,
    "MaxPooling2D": _pool, "AveragePooling2D": _pool, "GlobalAveragePooling2D": _mean, "GlobalMaxPooling2D": _max,
    "Flatten": _reshape, "Reshape": _reshape, "ZeroPadding2D": _pad,
}  # fmt: skip


def _activated(reader: _Reader, layer: Any, node: Node) -> str:
    """Add a weighted node with the activation that its layer has built in, as a node of its own where need be."""
    activation = _activation(layer)
    if activation in ("linear", "relu", "relu6"):
        node.activation = "none" if activation == "linear" else activation
        return reader.add(node)
    name, layers, node.name, node.layers = node.name, node.layers, f"{node.name}/sum", ()
    given = (reader.add(node),)
    if activation == "softmax":
        return reader.add(Node(name, "softmax", given, node.shape, layers=layers))
    attrs = {"reason": _unknown(layer), "call": layer.activation}
    return reader.add(Node(name, "opaque", given, node.shape, attrs=attrs, layers=layers))


def _window(layer: Any) -> dict[str, Any]:
    return {
        "strides": tuple(layer.strides), "dilation": tuple(layer.dilation_rate), "padding": layer.padding, "groups": 1
    }  # fmt: skip


def _array(variable: Any) -> Floats:
    return np.array(variable.numpy(), np.float32)


def _bias(layer: Any) -> Floats | None:
    return _array(layer.bias) if layer.use_bias else None


def _name(tensor: Any) -> str:
    """Of an input: its layer's."""
    return str(tensor._keras_history.operation.name)


def _shape(tensor: Any, name: str) -> tuple[int, ...]:
    shape = tuple(tensor.shape[1:])
    if any(extent is None for extent in shape):
        text = ", ".join("?" if extent is None else str(extent) for extent in tensor.shape)
        raise BuildError(f"{name!r} has the shape [{text}]: only the batch may be open", "give keras.Input its extents")
    return tuple(int(extent) for extent in shape)


def _lower(graph: Graph) -> None:
    """Fuse what can be, then make depthwise convolutions of the scalings that are left."""
    into: dict[str, str] = {}  # fused away -> where it went
    nodes: dict[str, Node] = {}
    readers = {name: len(graph.consumers(name)) + (name in graph.outputs) for name in graph.nodes}
    for node in list(graph):
        node.inputs = tuple(into.get(name, name) for name in node.inputs)
        before = nodes[node.inputs[0]] if len(node.inputs) == 1 else None
        # The only reader of the node that came last into it
        alone = before is not None and readers[_last(into, before.name)] == 1 and before.activation == "none"
        if before and alone and node.op == "affine" and node.norm and before.weighted and before.norm is None:
            before.norm = node.norm
        elif before and alone and node.op == "relu" and (before.weighted or before.op == "add"):
            before.activation = node.activation
        elif node.op == "affine":
            for made in _expand(node):
                nodes[made.name] = made
            continue
        else:
            nodes[node.name] = node
            continue
        into[node.name] = before.name
        before.layers += node.layers
    graph.nodes = nodes
    graph.outputs = tuple(into.get(name, name) for name in graph.outputs)


def _last(into: dict[str, str], name: str) -> str:
    return next((fused for fused, where in reversed(into.items()) if where == name), name)


def _expand(node: Node) -> list[Node]:
    """A depthwise 1x1 convolution for an affine node, between reshapes where its input is no image."""
    assert node.kernel is not None
    shape, channels = node.shape, node.channels
    node.kernel = node.kernel.reshape(1, 1, channels, 1)
    window = {"strides": (1, 1), "dilation": (1, 1), "padding": "valid", "groups": channels, "fixed": True}
    node.op, node.attrs = "depthwise", window
    if len(shape) == 3:
        return [node]
    image = (int(np.prod(shape[:-1], dtype=np.int64)), 1, channels)
    to = Node(f"{node.name}/image", "reshape", node.inputs, image)
    back = Node(node.name, "reshape", (f"{node.name}/scale",), shape, layers=node.layers)
    node.name, node.inputs, node.shape, node.layers = f"{node.name}/scale", (to.name,), image, ()
    return [to, node, back]
