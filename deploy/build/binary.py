"""
Binary layers as operators that stock TFLite executes: a threshold per channel, two values, weights of one magnitude.

The pattern, and how the delegate recognises it, are defined in kernels/binary/README.md::

    x int8 -> CAST int32 -> GREATER_EQUAL(threshold) -> SELECT_V2(high, low) int8 -> CONV_2D or FULLY_CONNECTED

The delegate computes all of it as one step on packed bits; without it every TFLite runtime computes the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from deploy.build.flatfile import add_operator, add_signature, add_tensor, finish, new_model
from deploy.errors import BuildError


@dataclass(frozen=True)
class BinaryLayer:
    """
    One binary convolution, or a fully-connected layer.

    Real activations are ``input_scale * high`` where x >= threshold, else ``input_scale * low``; a weight is
    ``weight_scale * weights``.

    Attributes:
        weights: int8 [out_c, kernel_h, kernel_w, in_c] of a convolution, [out_c, in_c] of a fully-connected layer; in
            each output channel +w and -w, 1 <= w <= 127.
        bias: int32 [out_c], in units of input_scale * weight_scale.
        threshold: integer [in_c] in [-128, 127], compared with the int8 values of x as they are.
        weight_scale: [out_c], each > 0.
        output_scale, output_zero_point: of the int8 output.
        input_scale: of the two values.
        low, high: different, each in [-127, 127]; their zero point is 0, so padding adds nothing.
        padding: SAME or VALID; convolutions only, like stride and dilation.
        activation: NONE, RELU, RELU6 or RELU_N1_TO_1.
    """

    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    threshold: NDArray[Any]
    weight_scale: NDArray[np.float32]
    output_scale: float
    output_zero_point: int = 0
    input_scale: float = 1.0
    low: int = -1
    high: int = 1
    padding: str = "SAME"
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    activation: str = "NONE"


def append_binary(model: schema.ModelT, x: int, layer: BinaryLayer, name: str) -> int:
    """
    Append a binary layer to a model's first subgraph.

    Args:
        model: in the schema's object form; changed.
        x: index of an int8 tensor, [N, H, W, in_c] or [N, in_c], of any quantization.
        name: what the new tensors' names begin with.

    Returns:
        The index of the int8 output tensor.

    Raises:
        BuildError: the numbers do not make a binary layer.
    """
    graph = model.subgraphs[0]
    shape = [int(n) for n in graph.tensors[x].shape]
    _check(layer, shape, name)
    out_c, in_c = layer.weights.shape[0], layer.weights.shape[-1]
    values = ([layer.input_scale], 0)
    wide = add_tensor(model, f"{name}/int32", shape, "INT32")
    add_operator(model, "CAST", 1, [x], [wide], _cast_options())
    threshold = add_tensor(model, f"{name}/threshold", [in_c], "INT32", data=layer.threshold.astype("<i4"))
    bits = add_tensor(model, f"{name}/bits", shape, "BOOL")
    add_operator(model, "GREATER_EQUAL", 1, [wide, threshold], [bits], schema.GreaterEqualOptionsT())
    high = add_tensor(model, f"{name}/high", [1], "INT8", values, np.array([layer.high], np.int8))
    low = add_tensor(model, f"{name}/low", [1], "INT8", values, np.array([layer.low], np.int8))
    binary = add_tensor(model, f"{name}/binary", shape, "INT8", values)
    add_operator(model, "SELECT_V2", 1, [bits, high, low], [binary], schema.SelectV2OptionsT())

    scales = [float(s) for s in layer.weight_scale]
    weights = add_tensor(model, f"{name}/weights", list(layer.weights.shape), "INT8", (scales, 0), layer.weights)
    bias_scales = [float(np.float32(layer.input_scale) * np.float32(s)) for s in scales]
    bias = add_tensor(model, f"{name}/bias", [out_c], "INT32", (bias_scales, 0), layer.bias.astype("<i4"))
    quantization = ([layer.output_scale], layer.output_zero_point)
    activation = getattr(schema.ActivationFunctionType, layer.activation)
    options: Any
    if layer.weights.ndim == 2:
        options, op, version, out_shape = schema.FullyConnectedOptionsT(), "FULLY_CONNECTED", 5, [shape[0], out_c]
    else:
        options, op, version = schema.Conv2DOptionsT(), "CONV_2D", 3
        options.padding = getattr(schema.Padding, layer.padding)
        options.strideH, options.strideW = layer.stride
        options.dilationHFactor, options.dilationWFactor = layer.dilation
        out_shape = [shape[0], *_out_size(layer, shape), out_c]
    options.fusedActivationFunction = activation
    y = add_tensor(model, name, out_shape, "INT8", quantization)
    add_operator(model, op, version, [binary, weights, bias], [y], options)
    return y


def binary_model(in_shape: tuple[int, ...], in_scale: float, in_zero_point: int, layers: list[BinaryLayer]) -> bytes:
    """
    A .tflite file of binary layers one after the other, int8 in and out.

    Args:
        in_shape: [N, H, W, C] or [N, C].

    Raises:
        BuildError: the numbers do not make binary layers.
    """
    model = new_model("binary")
    first = last = add_tensor(model, "x", list(in_shape), "INT8", ([in_scale], in_zero_point))
    for index, layer in enumerate(layers):
        last = append_binary(model, last, layer, f"binary{index}")
    add_signature(model, {"x": first}, {"y": last})
    return finish(model)


def _check(layer: BinaryLayer, shape: list[int], name: str) -> None:
    weights = layer.weights.astype(np.int64)
    rows = np.abs(weights.reshape(weights.shape[0], -1))
    if weights.ndim not in (2, 4) or len(shape) != weights.ndim:
        raise BuildError(f"{name}: weights of shape {list(weights.shape)} do not fit an input of shape {shape}")
    if shape[-1] != weights.shape[-1] or layer.threshold.shape != (shape[-1],):
        raise BuildError(f"{name}: {shape[-1]} input channels need as many thresholds and weights")
    if not (rows == rows[:, :1]).all() or rows.min() < 1 or rows.max() > 127:
        raise BuildError(f"{name}: the weights of an output channel must be +w and -w, 1 <= w <= 127")
    if layer.threshold.min() < -128 or layer.threshold.max() > 127:
        raise BuildError(f"{name}: thresholds must lie in [-128, 127]")
    if layer.low == layer.high or not all(-127 <= value <= 127 for value in (layer.low, layer.high)):
        raise BuildError(f"{name}: low = {layer.low} and high = {layer.high} must differ and lie in [-127, 127]")
    if layer.bias.shape != (weights.shape[0],) or layer.weight_scale.shape != (weights.shape[0],):
        raise BuildError(f"{name}: {weights.shape[0]} output channels need as many biases and scales")


def _out_size(layer: BinaryLayer, shape: list[int]) -> list[int]:
    size = []
    for i in range(2):
        extent = (layer.weights.shape[1 + i] - 1) * layer.dilation[i] + 1
        room = shape[1 + i] if layer.padding == "SAME" else shape[1 + i] - extent + 1
        size.append(-(-room // layer.stride[i]))
    return size


def _cast_options() -> schema.CastOptionsT:
    options = schema.CastOptionsT()
    options.inDataType, options.outDataType = schema.TensorType.INT8, schema.TensorType.INT32
    return options
