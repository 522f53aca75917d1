"""Small int8 networks of several operators, written through the schema, with every property chosen."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

SAME, VALID = 0, 1
#: Of operators that have int8 (CONV_2D and FULLY_CONNECTED: int4) kernels only from a later version on.
_VERSIONS = {
    "CONV_2D": 7, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 10, "AVERAGE_POOL_2D": 3, "MAX_POOL_2D": 3, "MEAN": 2,
    "ADD": 2, "SOFTMAX": 3,
}  # fmt: skip


class Graph:
    """
    Operators are added one by one; each returns its output's tensor.

    Weights, biases, scales and zero points are random, so that outputs use the whole range of int8.
    """

    def __init__(self, seed: int, *shape: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._model = schema.ModelT()
        self._model.version = 3
        self._model.description = "test"
        self._model.buffers = [schema.BufferT()]
        self._model.operatorCodes = []
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self.shapes: list[tuple[int, ...]] = []
        self.scales: list[float] = []
        self.input = self._activation(shape)
        self._graph.inputs = [self.input]

    def _tensor(
        self, shape: tuple[int, ...], dtype: str, scales: list[float], zero: int, data: bytes, axis: int
    ) -> int:
        tensor = schema.TensorT()
        tensor.name = f"t{len(self._graph.tensors)}"
        tensor.shape = list(shape)
        tensor.type = getattr(schema.TensorType, dtype)
        tensor.buffer = 0
        if data:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            self._model.buffers.append(buffer)
            tensor.buffer = len(self._model.buffers) - 1
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = scales
        tensor.quantization.zeroPoint = [zero] * len(scales)
        tensor.quantization.quantizedDimension = axis
        self._graph.tensors.append(tensor)
        self.shapes.append(shape)
        self.scales.append(scales[0] if scales else 0.0)
        return len(self._graph.tensors) - 1

    def _activation(self, shape: tuple[int, ...], scale: float | None = None, zero: int | None = None) -> int:
        scale = float(np.float32(self.rng.uniform(0.02, 0.1))) if scale is None else scale
        zero = int(self.rng.integers(-128, 128)) if zero is None else zero
        return self._tensor(shape, "INT8", [scale], zero, b"", 0)

    def _operator(self, name: str, options: Any, inputs: list[int], output: int) -> int:
        code = schema.OperatorCodeT()
        code.version = _VERSIONS.get(name, 1)
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        self._model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, [output]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        operator.builtinOptions = options
        self._graph.operators.append(operator)
        return output

    def _values(self, kind: str, shape: tuple[int, ...], axis: int, least: int) -> tuple[NDArray[np.int8], bytes]:
        """Weights and how they are stored: int8, int4, small (4 bits as int8), binary (a size a channel, any sign)."""
        if kind == "binary":
            sizes = self.rng.integers(1, 128, [n if i == axis else 1 for i, n in enumerate(shape)])
            values = (sizes * self.rng.choice([-1, 1], shape)).astype(np.int8)
            return values, values.tobytes()
        least, end = (-8, 8) if kind in ("int4", "small") else (least, 128)
        values = self.rng.integers(least, end, shape).astype(np.int8)
        values.reshape(-1)[0] = least
        if kind != "int4":
            return values, values.tobytes()
        flat = np.append(values.reshape(-1), np.int8(0)) if values.size % 2 else values.reshape(-1)
        return values, (flat[::2] & 15 | flat[1::2] << 4).astype(np.int8).tobytes()

    def _weights(
        self,
        source: int,
        shape: tuple[int, ...],
        channels: int,
        depth: int,
        axis: int,
        scales: int,
        least: int = -127,
        kind: str = "int8",
    ) -> tuple[list[int], float]:
        """Filter and bias, and a scale for the output that most sums fit."""
        values, stored = self._values(kind, shape, axis, least)
        filters = [float(np.float32(s)) for s in self.rng.uniform(0.002, 0.004, scales)]
        spread = (1 if kind == "binary" else 70) * float(np.abs(values).mean()) * depth**0.5
        bias = self.rng.normal(0, spread, channels).astype("<i4")
        product = [float(np.float32(self.scales[source]) * np.float32(s)) for s in filters]
        tensors = [
            self._tensor(shape, "INT4" if kind == "int4" else "INT8", filters, 0, stored, axis),
            self._tensor((channels,), "INT32", product, 0, bias.tobytes(), 0),
        ]
        return tensors, product[0] * spread / 50

    def _window(
        self, source: int, kernel: tuple[int, int], stride: int, padding: int, dilation: int
    ) -> tuple[int, int]:
        _, height, width, _ = self.shapes[source]
        reach = [(k - 1) * dilation + 1 for k in kernel]
        if padding == SAME:
            return -(-height // stride), -(-width // stride)
        return (height - reach[0]) // stride + 1, (width - reach[1]) // stride + 1

    def conv(
        self,
        source: int,
        channels: int,
        kernel: tuple[int, int] = (3, 3),
        stride: int = 1,
        padding: int = SAME,
        dilation: int = 1,
        activation: str = "NONE",
        depthwise: bool = False,
        scales: int | None = None,
        least: int = -127,
        kind: str = "int8",
    ) -> int:
        depth = self.shapes[source][3]
        count = channels if scales is None else scales
        if depthwise:
            shape, taps, axis = (1, *kernel, channels), kernel[0] * kernel[1], 3
            options = schema.DepthwiseConv2DOptionsT()
            options.depthMultiplier = channels // depth
        else:
            shape, taps, axis = (channels, *kernel, depth), kernel[0] * kernel[1] * depth, 0
            options = schema.Conv2DOptionsT()
        constants, scale = self._weights(source, shape, channels, taps, axis, count, least, kind)
        options.padding, options.strideH, options.strideW = padding, stride, stride
        options.dilationHFactor = options.dilationWFactor = dilation
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        size = self._window(source, kernel, stride, padding, dilation)
        target = self._activation((1, *size, channels), float(np.float32(scale)))
        name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        return self._operator(name, options, [source, *constants], target)

    def dense(self, source: int, channels: int, activation: str = "NONE", kind: str = "int8") -> int:
        rows, depth = self.shapes[source]
        scales = channels if kind == "binary" else 1
        constants, scale = self._weights(source, (channels, depth), channels, depth, 0, scales, kind=kind)
        options = schema.FullyConnectedOptionsT()
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        target = self._activation((rows, channels), float(np.float32(scale)))
        return self._operator("FULLY_CONNECTED", options, [source, *constants], target)

    def pool(
        self, source: int, kernel: tuple[int, int], stride: int = 1, largest: bool = False, padding: int = VALID
    ) -> int:
        options = schema.Pool2DOptionsT()
        options.padding, options.strideH, options.strideW = padding, stride, stride
        options.filterHeight, options.filterWidth = kernel
        size = self._window(source, kernel, stride, padding, 1)
        quantization = self._graph.tensors[source].quantization
        shape = (1, *size, self.shapes[source][3])
        target = self._activation(shape, float(quantization.scale[0]), int(quantization.zeroPoint[0]))
        return self._operator("MAX_POOL_2D" if largest else "AVERAGE_POOL_2D", options, [source], target)

    def mean(self, source: int, keep: bool = False) -> int:
        axes = self._tensor((2,), "INT32", [], 0, np.array([1, 2], "<i4").tobytes(), 0)
        options = schema.ReducerOptionsT()
        options.keepDims = keep
        channels = self.shapes[source][3]
        scale = float(np.float32(self.scales[source] * self.rng.uniform(0.2, 1.2)))
        target = self._activation((1, 1, 1, channels) if keep else (1, channels), scale)
        return self._operator("MEAN", options, [source, axes], target)

    def add(self, first: int, second: int, activation: str = "NONE") -> int:
        options = schema.AddOptionsT()
        options.fusedActivationFunction = getattr(schema.ActivationFunctionType, activation)
        scale = float(np.float32(max(self.scales[first], self.scales[second]) * self.rng.uniform(1.0, 2.0)))
        return self._operator("ADD", options, [first, second], self._activation(self.shapes[first], scale))

    def signs(self, source: int, high: int = 1, low: int = -1, zero: int = 0, thresholds: int | None = None) -> int:
        """The pattern of binary layers: `high` where a value reaches its channel's threshold, else `low`."""
        shape, channels = self.shapes[source], self.shapes[source][-1]
        cast = schema.CastOptionsT()
        cast.inDataType, cast.outDataType = schema.TensorType.INT8, schema.TensorType.INT32
        wide = self._operator("CAST", cast, [source], self._tensor(shape, "INT32", [], 0, b"", 0))
        limits = self.rng.integers(-60, 60, channels if thresholds is None else thresholds).astype("<i4")
        limits[:2] = (-300, 200)[: limits.size]  # always, and never
        constant = self._tensor((limits.size,), "INT32", [], 0, limits.tobytes(), 0)
        bits = self._tensor(shape, "BOOL", [], 0, b"", 0)
        self._operator("GREATER_EQUAL", schema.GreaterEqualOptionsT(), [wide, constant], bits)
        ends = [self._tensor((1,), "INT8", [1.0], zero, np.int8(end).tobytes(), 0) for end in (high, low)]
        target = self._activation(shape, 1.0, zero)
        return self._operator("SELECT_V2", schema.SelectV2OptionsT(), [bits, *ends], target)

    def flat(self, source: int) -> int:
        shape = (1, int(np.prod(self.shapes[source])))
        quantization = self._graph.tensors[source].quantization
        target = self._activation(shape, float(quantization.scale[0]), int(quantization.zeroPoint[0]))
        options = schema.ReshapeOptionsT()
        options.newShape = list(shape)
        return self._operator("RESHAPE", options, [source], target)

    def softmax(self, source: int) -> int:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self._operator("SOFTMAX", options, [source], self._activation(self.shapes[source], 1 / 256, -128))

    def model(self, *outputs: int) -> bytes:
        """The flatbuffer."""
        self._graph.outputs = list(outputs)
        self._graph.name = "main"
        self._model.subgraphs = [self._graph]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def values(self) -> NDArray[np.int8]:
        """An input that has the extreme values, too."""
        values = self.rng.integers(-128, 128, self.shapes[self.input]).astype(np.int8)
        values.reshape(-1)[:2] = (-128, 127)
        return values


def cnv() -> tuple[Graph, bytes]:
    """FINN's CNV with random weights: one bit for all but the first and the last layer, as `--recipe binary` has it."""
    graph = Graph(70, 1, 32, 32, 3)
    x = graph.conv(graph.input, 64, padding=VALID)
    for channels, pooled in ((64, True), (128, False), (128, True), (256, False), (256, False)):
        x = graph.conv(graph.signs(x), channels, padding=VALID, kind="binary")
        x = graph.pool(x, (2, 2), stride=2, largest=True) if pooled else x
    x = graph.flat(x)
    for _ in range(2):
        x = graph.dense(graph.signs(x), 512, kind="binary")
    return graph, graph.model(graph.dense(x, 10))
