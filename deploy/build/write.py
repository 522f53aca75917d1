"""
`Quantized` to a .tflite: every node an operator of the schema, with the integers that were decided before.

Nothing is rounded, folded or chosen here, so that the file answers what quantization meant.  Tensors are named after
their nodes.  What has no integers runs in float between DEQUANTIZE and QUANTIZE, as TensorFlow's converter writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from deploy.build.binary import BinaryLayer, append_binary
from deploy.build.flatfile import add_operator, add_signature, add_tensor, finish, new_model
from deploy.build.graph import SAME_GRID, Graph, Node
from deploy.build.grid import Grid
from deploy.build.island import add_island
from deploy.build.quantized import Quantized, Weights
from deploy.build.sparse import block_sparsity
from deploy.errors import BuildError

_ACTIVATIONS = {"none": "NONE", "relu": "RELU", "relu6": "RELU6"}


def write(quantized: Quantized, *, least_bits: int = 2) -> bytes:
    """
    The file; its inputs and outputs have a batch of one and the signature ``serving_default``, named after the nodes.

    Args:
        least_bits: the narrowest integers that weights are stored in; the values stay what they are.  Stock LiteRT has
            no 2-bit convolutions; 4 makes a file for it, 8 one for every runtime.

    Raises:
        BuildError: the parts do not fit each other, or an opaque layer cannot be converted.
    """
    return _Writer(quantized, least_bits).file()


class _Writer:
    def __init__(self, quantized: Quantized, least_bits: int) -> None:
        self.quantized = quantized
        self.graph: Graph = quantized.graph
        self.least_bits = least_bits
        self.model = new_model("deploy")
        self.on: dict[tuple[str, Any], int] = {}  # (node, grid or None for float) -> tensor

    def file(self) -> bytes:
        for node in self.graph:
            grid = self.quantized.grids.get(node.name)
            if grid is None and node.op != "opaque":
                raise BuildError(f"node {node.name!r} has no grid")
            self.on[node.name, _key(grid)] = _WRITE[node.op](self, node, grid)
        ends = [{name: self.own(name) for name in names} for names in (self.graph.inputs, self.graph.outputs)]
        add_signature(self.model, *ends)
        return finish(self.model)

    def own(self, name: str) -> int:
        """A node's output as it is computed."""
        return self.on[name, _key(self.quantized.grids.get(name))]

    def real(self, name: str) -> int:
        """A node's output in float."""
        if (name, None) not in self.on:
            y = add_tensor(self.model, f"{name}/float", self.shape(name), "FLOAT32")
            version = 3 if self.quantized.grids[name].bits == 16 else 2
            add_operator(self.model, "DEQUANTIZE", version, [self.own(name)], [y], schema.DequantizeOptionsT())
            self.on[name, None] = y
        return self.on[name, None]

    def integers(self, name: str, grid: Grid | None = None) -> int:
        """A node's output on its own grid, or on another one."""
        mine = self.quantized.grids.get(name)
        if mine is None:
            raise BuildError(f"node {name!r} has no grid, and an integer operator reads it")
        wanted = grid or mine
        if (name, _key(wanted)) not in self.on:
            y = self.tensor(f"{name}/requantized", self.shape(name), wanted)
            add_operator(self.model, "QUANTIZE", 2, [self.own(name)], [y], schema.QuantizeOptionsT())
            self.on[name, _key(wanted)] = y
        return self.on[name, _key(wanted)]

    def shape(self, name: str) -> tuple[int, ...]:
        return (1, *self.graph[name].shape)

    def tensor(self, name: str, shape: tuple[int, ...], grid: Grid) -> int:
        dtype = "INT16" if grid.bits == 16 else "INT8"
        return add_tensor(self.model, name, shape, dtype, (grid.scale.tolist(), grid.zero_point))

    def constant(self, name: str, values: Any) -> int:
        data = np.array(values, np.int32)
        return add_tensor(self.model, name, data.shape, "INT32", data=data)

    def output(self, node: Node, grid: Grid | None) -> int:
        assert grid is not None
        return self.tensor(node.name, (1, *node.shape), grid)

    # Each of these writes one node and returns its output.

    def input(self, node: Node, grid: Grid | None) -> int:
        return self.output(node, grid)

    def weighted(self, node: Node, grid: Grid | None) -> int:
        assert grid is not None
        weights = self.quantized.weights.get(node.name)
        if weights is None:
            raise BuildError(f"node {node.name!r} has no integer weights")
        if node.kernel is not None and weights.values.shape != node.kernel.shape:
            raise BuildError(f"node {node.name!r}: weights {weights.values.shape}, kernel {node.kernel.shape}")
        x = self.integers(node.inputs[0])
        if weights.binary is not None:
            return append_binary(self.model, x, _binary_layer(node, weights, grid), node.name)
        values = _tflite_layout(node, weights.values)
        kernel = self.kernel(node, weights, values)
        in_scale = np.float64(self.quantized.grids[node.inputs[0]].scale[0])
        scales = (in_scale * weights.grid.scale.astype(np.float64)).astype(np.float32)
        dtype = "INT64" if grid.bits == 16 else "INT32"
        bias = weights.bias.astype(np.int64 if grid.bits == 16 else np.int32)
        b = add_tensor(self.model, f"{node.name}/bias", bias.shape, dtype, (scales.tolist(), 0), bias)
        y = self.output(node, grid)
        name, options = _options(node)
        version = _version(node, weights, self.bits(node, weights), grid)
        add_operator(self.model, name, version, [x, kernel, b], [y], options)
        return y

    def bits(self, node: Node, weights: Weights) -> int:
        """Of the weights as the file stores them."""
        if node.op == "depthwise":
            return 8  # not every runtime has fewer: TFLite's reference kernels refuse to load such a file
        return max(weights.grid.bits, self.least_bits)

    def kernel(self, node: Node, weights: Weights, values: NDArray[np.int8]) -> int:
        bits = self.bits(node, weights)
        dtype = f"INT{bits}"
        quantization = (weights.grid.scale.tolist(), 0)
        axis = 3 if node.op == "depthwise" else 0
        name = f"{node.name}/kernel"
        if weights.encoding == "dense":
            return add_tensor(self.model, name, values.shape, dtype, quantization, values, axis)
        if bits != 8 or node.op == "depthwise" or values.shape[-1] % 16:
            raise BuildError(f"node {node.name!r}: blocks of 16 are for 8-bit weights of 16, 32 ... input channels")
        sparsity, kept = block_sparsity(values)
        index = add_tensor(self.model, name, values.shape, dtype, quantization, kept, axis)
        self.model.subgraphs[0].tensors[index].sparsity = sparsity
        if node.op == "dense":
            return index
        dense = add_tensor(self.model, f"{name}/dense", values.shape, dtype, quantization, axis=axis)
        add_operator(self.model, "DENSIFY", 1, [index], [dense], schema.DensifyOptionsT())
        return dense

    def add(self, node: Node, grid: Grid | None) -> int:
        y = self.output(node, grid)
        options = schema.AddOptionsT()
        options.fusedActivationFunction = _activation(node)
        options.potScaleInt16 = False
        xs = [self.integers(name) for name in node.inputs]
        add_operator(self.model, "ADD", 3 if _wide(grid) else 2, xs, [y], options)
        return y

    def copy(self, node: Node, grid: Grid | None) -> int:
        """Operators that copy stored integers; inputs that lie elsewhere are brought to the output's grid."""
        xs = [self.integers(name, grid) for name in node.inputs]
        y = self.output(node, grid)
        name, options, extra, version = self.copy_operator(node, _wide(grid))
        add_operator(self.model, name, version, [*xs, *extra], [y], options)
        return y

    def copy_operator(self, node: Node, wide: bool) -> tuple[str, Any, list[int], int]:
        if node.op == "concat":
            options = schema.ConcatenationOptionsT()
            options.axis = node.attrs["axis"]
            return "CONCATENATION", options, [], 3 if wide else 2
        if node.op == "reshape":
            return "RESHAPE", None, [self.constant(f"{node.name}/shape", (1, *node.shape))], 1
        if node.op == "pad":
            paddings = ((0, 0), *node.attrs["paddings"], (0, 0))
            return "PAD", schema.PadOptionsT(), [self.constant(f"{node.name}/paddings", paddings)], 3 if wide else 2
        options = schema.Pool2DOptionsT()
        options.padding = _padding(node)
        options.filterHeight, options.filterWidth = node.attrs["size"]
        options.strideH, options.strideW = node.attrs["strides"]
        return ("MAX" if node.op == "max_pool" else "AVERAGE") + "_POOL_2D", options, [], 3 if wide else 2

    def mean(self, node: Node, grid: Grid | None) -> int:
        y = self.output(node, grid)
        options = schema.ReducerOptionsT()
        options.keepDims = node.attrs["keepdims"]
        axes = self.constant(f"{node.name}/axes", (1, 2))
        add_operator(self.model, "MEAN", 3 if _wide(grid) else 2, [self.integers(node.inputs[0]), axes], [y], options)
        return y

    def softmax(self, node: Node, grid: Grid | None) -> int:
        y = self.output(node, grid)
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        add_operator(self.model, "SOFTMAX", 3 if _wide(grid) else 2, [self.integers(node.inputs[0])], [y], options)
        return y

    def relu(self, node: Node, grid: Grid | None) -> int:
        y = self.output(node, grid)
        name = _ACTIVATIONS[node.activation]
        add_operator(self.model, name, 3 if _wide(grid) else 2, [self.integers(node.inputs[0])], [y])
        return y

    def opaque(self, node: Node, grid: Grid | None) -> int:
        y = add_island(
            self.model, node, [self.shape(name) for name in node.inputs], [self.real(n) for n in node.inputs]
        )
        if grid is None:
            return y
        self.on[node.name, None] = y
        quantized = self.tensor(f"{node.name}/integers", (1, *node.shape), grid)
        add_operator(self.model, "QUANTIZE", 2 if _wide(grid) else 1, [y], [quantized], schema.QuantizeOptionsT())
        return quantized


_WRITE: dict[str, Callable[[_Writer, Node, Grid | None], int]] = {
    "input": _Writer.input, "conv": _Writer.weighted, "depthwise": _Writer.weighted, "dense": _Writer.weighted,
    "add": _Writer.add, "mean": _Writer.mean, "softmax": _Writer.softmax, "relu": _Writer.relu,
    "opaque": _Writer.opaque, **dict.fromkeys(SAME_GRID, _Writer.copy),
}  # fmt: skip


def _key(grid: Grid | None) -> Any:
    return None if grid is None else (float(grid.scale[0]), grid.zero_point, grid.bits)


def _wide(grid: Grid | None) -> bool:
    return grid is not None and grid.bits == 16


def _activation(node: Node) -> int:
    return int(getattr(schema.ActivationFunctionType, _ACTIVATIONS[node.activation]))


def _padding(node: Node) -> int:
    return int(getattr(schema.Padding, node.attrs["padding"].upper()))


def _tflite_layout(node: Node, values: NDArray[np.int8]) -> NDArray[np.int8]:
    """Conv [out_c, H, W, in_c], depthwise [1, H, W, out_c], dense [out, in]."""
    if node.op == "conv":
        return np.ascontiguousarray(values.transpose(3, 0, 1, 2))
    if node.op == "depthwise":
        return values.reshape(1, *values.shape[:2], -1)
    return np.ascontiguousarray(values.T)


def _options(node: Node) -> tuple[str, Any]:
    options: Any
    if node.op == "dense":
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = len(node.shape) > 1
        options.fusedActivationFunction = _activation(node)
        return "FULLY_CONNECTED", options
    options = schema.Conv2DOptionsT() if node.op == "conv" else schema.DepthwiseConv2DOptionsT()
    options.padding = _padding(node)
    options.strideH, options.strideW = node.attrs["strides"]
    options.dilationHFactor, options.dilationWFactor = node.attrs["dilation"]
    options.fusedActivationFunction = _activation(node)
    if node.op == "conv":
        return "CONV_2D", options
    assert node.kernel is not None
    options.depthMultiplier = node.kernel.shape[3]
    return "DEPTHWISE_CONV_2D", options


def _version(node: Node, weights: Weights, bits: int, grid: Grid) -> int:
    """The first version of an operator's kernel that takes these types, by LiteRT's op_version.cc."""
    if node.op == "conv":
        narrow = 7 if bits < 8 else 3
        return max(narrow, 6 if node.attrs["groups"] > 1 else 0, 4 if grid.bits == 16 else 0)
    if node.op == "depthwise":
        return 7 if bits < 8 else 5 if grid.bits == 16 else 3
    if weights.encoding != "dense":
        return 8
    if bits < 8:
        return 13 if grid.bits == 16 else 10
    return 7 if grid.bits == 16 else 5 if len(node.shape) > 1 else 4


def _binary_layer(node: Node, weights: Weights, grid: Grid) -> BinaryLayer:
    binary = weights.binary
    assert binary is not None
    if node.op == "depthwise" or node.attrs.get("groups", 1) != 1:
        raise BuildError(f"node {node.name!r}: depthwise and grouped layers cannot be binary")
    if node.op == "dense" and len(node.shape) != 1:
        raise BuildError(f"node {node.name!r}: a binary dense layer takes vectors, not shape {list(node.shape)}")
    window: dict[str, Any] = {}
    if node.op == "conv":
        window = {"padding": node.attrs["padding"].upper(), "stride": tuple(node.attrs["strides"]),
                  "dilation": tuple(node.attrs["dilation"])}  # fmt: skip
    return BinaryLayer(
        weights=_tflite_layout(node, weights.values),
        bias=weights.bias.astype(np.int32),
        threshold=binary.threshold,
        weight_scale=np.asarray(np.broadcast_to(weights.grid.scale, weights.bias.shape), np.float32),
        output_scale=float(grid.scale[0]),
        output_zero_point=grid.zero_point,
        input_scale=binary.scale,
        low=binary.low,
        high=binary.high,
        activation=_ACTIVATIONS[node.activation],
        **window,
    )
