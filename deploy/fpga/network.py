"""
The nodes of a .tflite file as the accelerator sees them: what it could run, and why not the others.

A `Layer` is one pass of the array: a convolution, a depthwise one, a fully-connected layer, a pooling, or nothing but a
copy that an addition is tied to.  Multipliers and ranges are worked out as TFLite's `kernel_util.cc` and
`quantization_util.cc` do, so that answers can equal its reference kernels bit for bit.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import BuildError
from deploy.fpga import isa

LARGEST_SIDE = 255  # rows or columns: coordinates are 8 bits wide
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6")


@dataclass(frozen=True)
class Tensor:
    """
    Attributes:
        shape: as the file has it.  scales, zero_point: empty and 0 where it is not quantized.
        values: of a constant, else None.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_point: int
    channel_axis: int
    values: NDArray[Any] | None = None

    @property
    def grid(self) -> tuple[int, int, int]:
        """Height, width and channels; a vector has one position."""
        if len(self.shape) == 4:
            return self.shape[1], self.shape[2], self.shape[3]
        return 1, math.prod(self.shape[:-1]), self.shape[-1]


@dataclass(frozen=True)
class Node:
    """An operator of the file."""

    index: int
    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Network:
    """The first subgraph."""

    tensors: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Sum:
    """
    An addition in int8, as TFLite's reference ADD does it.

    Attributes:
        other: the tensor that is added.
        tables: int64 [2, 256]: for the layer's own value and for the other's, by the value + 128: both scaled and
            multiplied already, so that their sum is TFLite's 64-bit product.
        shift: right, after the product's upper 32 bits.
    """

    node: int
    other: int
    tables: NDArray[np.int64]
    shift: int
    zero_point: int
    least: int
    most: int


@dataclass(frozen=True)
class Layer:
    """
    Attributes:
        nodes: of the file, which it takes the place of.
        source, target: tensors.  grid_in, grid_out: height, width, channels.
        weights: int8 [C_out, taps, C_in]; [C_out, taps, 1] where diagonal.
        taps: row and column of each tap, relative to the output's times the stride.
        bias: int64 [C_out], with the input's zero point folded in.
        multiplier, shift: int64 [C_out]; scale is multiplier * 2^(shift - 31), shift in [-31, 0].
        binary: the source is bits and weights are -1 or 1; a sum counts `factor` times.
        thresholds: int64 [C_out]; the target is bits: whether a value reaches its channel's.  None: it is int8.
    """

    nodes: tuple[int, ...]
    source: int
    target: int
    grid_in: tuple[int, int, int]
    grid_out: tuple[int, int, int]
    stride: tuple[int, int]
    taps: tuple[tuple[int, int], ...]
    weights: NDArray[np.int8]
    bias: NDArray[np.int64]
    multiplier: NDArray[np.int64]
    shift: NDArray[np.int64]
    zero_point: int
    least: int
    most: int
    pad: int
    once: bool = False
    diagonal: bool = False
    maximum: bool = False
    sum: Sum | None = None
    binary: bool = False
    factor: NDArray[np.int64] | None = None
    thresholds: NDArray[np.int64] | None = None

    @property
    def nibbles(self) -> bool:
        """Whether its weights fit 4 bits."""
        return not self.binary and bool(self.weights.min() >= -8 and self.weights.max() <= 7)


class Unsupported(Exception):
    """Why the accelerator leaves a node to the CPU."""


def read(data: bytes, name: str) -> Network:
    """
    The first subgraph of a model.

    Raises:
        BuildError: it is no model.
    """
    from ai_edge_litert import schema_py_generated as schema

    if data[4:8] != b"TFL3":
        raise BuildError(f"{name} is not a TFLite model")
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        graph = model.subgraphs[0]
        types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        operators = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        tensors = tuple(_tensor(model, graph.tensors[i], i, types) for i in range(len(graph.tensors)))
        nodes = []
        for i, op in enumerate(graph.operators):
            code = model.operatorCodes[op.opcodeIndex]
            options = vars(op.builtinOptions) if op.builtinOptions is not None else {}
            inputs = tuple(int(x) for x in op.inputs)
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            nodes.append(Node(i, operators.get(number, "?"), inputs, tuple(int(x) for x in op.outputs), options))
        return Network(tensors, tuple(nodes), tuple(map(int, graph.inputs)), tuple(map(int, graph.outputs)))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise BuildError(f"{name} cannot be read: {error}") from error


def _tensor(model: Any, tensor: Any, index: int, types: dict[int, str]) -> Tensor:
    quantization = tensor.quantization
    scales = () if quantization is None or quantization.scale is None else tuple(float(s) for s in quantization.scale)
    zero_point = int(quantization.zeroPoint[0]) if scales and quantization.zeroPoint is not None else 0
    dtype = types[tensor.type]
    shape = tuple(int(x) for x in tensor.shape) if tensor.shape is not None else ()
    values, raw = None, model.buffers[tensor.buffer].data
    if raw is not None and len(raw) and dtype in ("INT8", "INT32"):
        values = np.frombuffer(bytes(raw), np.dtype(dtype.lower()).newbyteorder("<")).reshape(shape)
    elif raw is not None and len(raw) and dtype == "INT4":  # the lower half of a byte first
        pairs = np.frombuffer(bytes(raw), np.int8)
        values = (np.stack([pairs << 4, pairs], -1).reshape(-1) >> 4)[: math.prod(shape)].reshape(shape)
    name = (tensor.name or b"").decode(errors="replace")
    axis = int(quantization.quantizedDimension) if scales else 0
    return Tensor(index, name, shape, dtype, scales, zero_point, axis, values)


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """Multiplier in [2^30, 2^31) and shift, so that scale = multiplier * 2^(shift - 31); 0, 0 for a scale of 0."""
    if scale == 0:
        return 0, 0
    fraction, shift = math.frexp(scale)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier >> 1, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def layer_of(network: Network, node: Node, check: bool = True) -> Layer:
    """
    A node as a pass of the array.

    Args:
        check: that no int8 input makes a sum which is too large.

    Raises:
        Unsupported: why it stays on the CPU.
    """
    if node.op in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        layer = _conv(network, node)
    elif node.op == "FULLY_CONNECTED":
        layer = _fully_connected(network, node)
    elif node.op in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        layer = _pool(network, node)
    elif node.op == "MEAN":
        layer = _mean(network, node)
    elif node.op == "ADD":
        layer = _add(network, node)
    else:
        raise Unsupported("no such operator in the accelerator")
    if check:
        _check_sums(layer.weights, layer.bias)
    return layer


def _activation(network: Network, node: Node, index: int) -> Tensor:
    tensor = network.tensors[index]
    if tensor.dtype != "INT8" or len(tensor.scales) != 1:
        raise Unsupported(f"tensor {index} is {tensor.dtype.lower()}, not int8 with one scale")
    if tensor.values is not None:
        raise Unsupported(f"tensor {index} is constant")
    if len(tensor.shape) not in (1, 2, 4) or min(tensor.shape) < 1 or (len(tensor.shape) == 4 and tensor.shape[0] != 1):
        raise Unsupported(f"shape {list(tensor.shape)}: only one image, or vectors")
    if max(tensor.grid[:2]) > LARGEST_SIDE:
        raise Unsupported(f"shape {list(tensor.shape)}: no side may be longer than {LARGEST_SIDE}")
    return tensor


def _range(tensor: Tensor, activation: int) -> tuple[int, int]:
    """As CalculateActivationRangeQuantized; scale and quotient are single precision there."""
    kind = _ACTIVATIONS[activation] if 0 <= activation < len(_ACTIVATIONS) else "?"

    def quantize(value: float) -> int:
        quotient = float(np.float32(value) / np.float32(tensor.scales[0]))
        return tensor.zero_point + int(math.copysign(math.floor(abs(quotient) + 0.5), quotient))

    if kind == "NONE":
        return -128, 127
    if kind == "RELU":
        return max(-128, quantize(0.0)), 127
    if kind == "RELU6":
        return max(-128, quantize(0.0)), min(127, quantize(6.0))
    if kind == "RELU_N1_TO_1":
        return max(-128, quantize(-1.0)), min(127, quantize(1.0))
    raise Unsupported(f"fused activation {activation}")


def _constants(network: Network, node: Node, channels: int) -> tuple[Tensor, NDArray[np.int8], NDArray[np.int64]]:
    weights = network.tensors[node.inputs[1]]
    if weights.dtype not in ("INT8", "INT4") or weights.values is None or not weights.scales:
        raise Unsupported(f"weights are {weights.dtype.lower()}, not constant int8 or int4")
    if weights.values.min() < -127:
        raise Unsupported("a weight is -128, and two of them share a multiplier only in [-127, 127]")
    if len(weights.scales) not in (1, channels):
        raise Unsupported(f"{len(weights.scales)} scales for {channels} channels")
    bias = np.zeros(channels, np.int64)
    if len(node.inputs) > 2 and node.inputs[2] >= 0:
        tensor = network.tensors[node.inputs[2]]
        if tensor.dtype != "INT32" or tensor.values is None:
            raise Unsupported(f"the bias is {tensor.dtype.lower()}, not constant int32")
        bias = tensor.values.reshape(-1).astype(np.int64)
    return weights, weights.values, bias


def _scales(effective: list[float], channels: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = [quantize_multiplier(scale) for scale in effective]
    multiplier = np.array([m for m, _ in pairs] * (channels // len(pairs)), np.int64)
    shift = np.array([s for _, s in pairs] * (channels // len(pairs)), np.int64)
    if shift.max() > 0:
        raise Unsupported("a scale of 1 or more")
    return multiplier, shift


def _check_sums(weights: NDArray[np.int8], bias: NDArray[np.int64]) -> None:
    """Whatever the input, a sum must fit the accumulator, and with its bias 32 bits."""
    flat = weights.reshape(len(weights), -1).astype(np.int64)
    most = np.where(flat > 0, flat * 127, flat * -128).sum(axis=1)
    least = np.where(flat > 0, flat * -128, flat * 127).sum(axis=1)
    limit = 1 << (isa.ACCUMULATOR_BITS - 1)
    if most.max() >= limit or least.min() < -limit:
        raise Unsupported(f"a sum may exceed {isa.ACCUMULATOR_BITS} bits")
    if (most + bias).max() >= 1 << 31 or (least + bias).min() < -(1 << 31):
        raise Unsupported("a sum with its bias may exceed 32 bits")


def _window(node: Node, source: Tensor, target: Tensor, kernel: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Row and column of each tap relative to the output's position times the stride, as ComputePaddingHeightWidth."""
    taps = []
    first = []
    for side in (0, 1):
        stride = node.options["strideH" if side == 0 else "strideW"]
        dilation = node.options.get("dilationHFactor" if side == 0 else "dilationWFactor", 1)
        reach = (kernel[side] - 1) * dilation + 1
        total = max(0, (target.grid[side] - 1) * stride + reach - source.grid[side])
        first.append(-(total // 2) if node.options["padding"] == 0 else 0)
    for y in range(kernel[0]):
        for x in range(kernel[1]):
            taps.append(
                (
                    first[0] + y * node.options.get("dilationHFactor", 1),
                    first[1] + x * node.options.get("dilationWFactor", 1),
                )
            )
    return tuple(taps)


def _conv(network: Network, node: Node) -> Layer:
    source, target = _activation(network, node, node.inputs[0]), _activation(network, node, node.outputs[0])
    channels = target.grid[2]
    constants, weights, bias = _constants(network, node, channels)
    kernel = (weights.shape[1], weights.shape[2])
    depthwise = node.op == "DEPTHWISE_CONV_2D"
    if depthwise:
        if source.grid[2] != channels:
            raise Unsupported("a depthwise convolution that makes several channels of one")
        by_tap = weights.reshape(-1, channels).T[:, :, np.newaxis]
    else:
        if weights.shape[3] != source.grid[2]:
            raise Unsupported("a grouped convolution")
        by_tap = weights.reshape(channels, -1, weights.shape[3])
    bias = bias - source.zero_point * by_tap.astype(np.int64).sum(axis=(1, 2))
    effective = [source.scales[0] * scale / target.scales[0] for scale in constants.scales]
    multiplier, shift = _scales(effective, channels)
    least, most = _range(target, node.options["fusedActivationFunction"])
    return Layer(
        nodes=(node.index,), source=source.index, target=target.index, grid_in=source.grid, grid_out=target.grid,
        stride=(node.options["strideH"], node.options["strideW"]), taps=_window(node, source, target, kernel),
        weights=by_tap, bias=bias, multiplier=multiplier, shift=shift, zero_point=target.zero_point,
        least=least, most=most, pad=source.zero_point, diagonal=depthwise,
    )  # fmt: skip


def _fully_connected(network: Network, node: Node) -> Layer:
    source, target = _activation(network, node, node.inputs[0]), _activation(network, node, node.outputs[0])
    channels = target.grid[2]
    constants, weights, bias = _constants(network, node, channels)
    if node.options["weightsFormat"] != 0:
        raise Unsupported("shuffled weights")
    if weights.shape[0] != channels or math.prod(source.shape) != weights.shape[1] * math.prod(target.shape[:-1]):
        raise Unsupported("shapes that do not fit")
    vectors = math.prod(target.shape[:-1])
    by_tap = weights.reshape(channels, 1, -1)
    bias = bias - source.zero_point * by_tap.astype(np.int64).sum(axis=(1, 2))
    if len(constants.scales) == 1:  # the product of two scales is rounded to single precision here, and only here
        product = float(np.float32(source.scales[0]) * np.float32(constants.scales[0]))
        effective = [product / target.scales[0]]
    else:
        effective = [source.scales[0] * scale / target.scales[0] for scale in constants.scales]
    multiplier, shift = _scales(effective, channels)
    least, most = _range(target, node.options["fusedActivationFunction"])
    return Layer(
        nodes=(node.index,), source=source.index, target=target.index, grid_in=(1, vectors, weights.shape[1]),
        grid_out=target.grid, stride=(1, 1), taps=((0, 0),), weights=by_tap, bias=bias, multiplier=multiplier,
        shift=shift, zero_point=target.zero_point, least=least, most=most, pad=source.zero_point, once=True,
    )  # fmt: skip


def _pool(network: Network, node: Node) -> Layer:
    """A depthwise layer with weights of 1: the sum is multiplied by 1 / taps, or the largest is kept."""
    source, target = _activation(network, node, node.inputs[0]), _activation(network, node, node.outputs[0])
    kernel = (node.options["filterHeight"], node.options["filterWidth"])
    taps, count = _window(node, source, target, kernel), kernel[0] * kernel[1]
    largest = node.op == "MAX_POOL_2D"
    if not largest and any(dy < 0 or dx < 0 for dy, dx in taps):
        raise Unsupported("an average over padding")
    strides = (node.options["strideH"], node.options["strideW"])
    reach = [(target.grid[i] - 1) * strides[i] + taps[-1][i] for i in (0, 1)]
    if not largest and (reach[0] >= source.grid[0] or reach[1] >= source.grid[1]):
        raise Unsupported("an average over padding")
    channels = target.grid[2]
    multiplier, shift = 1 << 31, 0  # a copy
    if not largest:
        # TFLite divides and rounds halves away from zero.  A factor a little above 1 / count moves every half outwards
        # and no other quotient across a half, while count < 2^22.
        shift = -(count - 1).bit_length()
        multiplier = (1 << (31 - shift)) // count + 1
        if multiplier >= 1 << 32 or count >= 1 << 16:
            raise Unsupported(f"an average over {count} values")
    least, most = _range(target, node.options["fusedActivationFunction"])
    full = np.full(channels, multiplier, np.int64), np.full(channels, shift, np.int64)
    return Layer(
        nodes=(node.index,), source=source.index, target=target.index, grid_in=source.grid, grid_out=target.grid,
        stride=strides, taps=taps, weights=np.ones((channels, count, 1), np.int8), bias=np.zeros(channels, np.int64),
        multiplier=full[0], shift=full[1], zero_point=0, least=least, most=most, pad=-128, once=True, diagonal=True,
        maximum=largest,
    )  # fmt: skip


def _mean(network: Network, node: Node) -> Layer:
    """The average of an image: TFLite multiplies the sum by scale / count, as one multiplier, and rounds twice."""
    source, target = _activation(network, node, node.inputs[0]), _activation(network, node, node.outputs[0])
    axes = network.tensors[node.inputs[1]].values
    if axes is None or len(source.shape) != 4 or sorted(int(a) % 4 for a in axes.reshape(-1)) != [1, 2]:
        raise Unsupported("a mean of anything but a whole image")
    height, width, channels = source.grid
    count = height * width
    multiplier, shift = quantize_multiplier(source.scales[0] / target.scales[0])
    more = min(count.bit_length() - 1, 31 + shift)
    multiplier, shift = (multiplier << more) // count, shift - more
    if shift > 0 or more < 0:
        raise Unsupported("a scale of 1 or more")
    full = np.full(channels, multiplier, np.int64), np.full(channels, shift, np.int64)
    return Layer(
        nodes=(node.index,), source=source.index, target=target.index, grid_in=source.grid, grid_out=(1, 1, channels),
        stride=(1, 1), taps=tuple((y, x) for y in range(height) for x in range(width)),
        weights=np.ones((channels, count, 1), np.int8), bias=np.full(channels, -count * source.zero_point, np.int64),
        multiplier=full[0], shift=full[1], zero_point=target.zero_point, least=-128, most=127, pad=0, diagonal=True,
    )  # fmt: skip


def _add(network: Network, node: Node) -> Layer:
    """A copy of the first operand, to which the second is added."""
    first, second = (_activation(network, node, i) for i in node.inputs)
    target = _activation(network, node, node.outputs[0])
    if not first.shape == second.shape == target.shape:
        raise Unsupported("an addition of unlike shapes")
    return replace(copy_of(network, node), target=target.index, sum=sum_of(network, node, first.index))


def copy_of(network: Network, node: Node) -> Layer:
    """
    A layer that copies the node's first input; where to is for the caller to say.

    Raises:
        Unsupported: the accelerator cannot hold it.
    """
    source = _activation(network, node, node.inputs[0])
    channels = source.grid[2]
    return Layer(
        nodes=(node.index,), source=source.index, target=-1, grid_in=source.grid, grid_out=source.grid,
        stride=(1, 1), taps=((0, 0),), weights=np.ones((channels, 1, 1), np.int8), bias=np.zeros(channels, np.int64),
        multiplier=np.full(channels, 1 << 31, np.int64), shift=np.zeros(channels, np.int64), zero_point=0, least=-128,
        most=127, pad=0, once=True, diagonal=True,
    )  # fmt: skip


def sum_of(network: Network, node: Node, own: int) -> Sum:
    """
    An ADD as the step after a layer that makes its operand `own`.

    Raises:
        Unsupported: scales that TFLite would not take either.
    """
    a, b = (network.tensors[i] for i in node.inputs)
    mine, other = (a, b) if a.index == own else (b, a)
    target = network.tensors[node.outputs[0]]
    twice = 2 * max(a.scales[0], b.scales[0])
    multiplier, shift = quantize_multiplier(twice / ((1 << 20) * target.scales[0]))
    if not -31 <= shift <= 0:
        raise Unsupported("an addition whose scale is 1 or more")
    tables = np.stack([_scaled(tensor, twice) * multiplier for tensor in (mine, other)])
    least, most = _range(target, node.options["fusedActivationFunction"])
    return Sum(node.index, other.index, tables, -shift, target.zero_point, least, most)


def _scaled(tensor: Tensor, twice: float) -> NDArray[np.int64]:
    """Each int8 value of a tensor, shifted left by 20 and scaled, as the reference ADD does with its operands."""
    multiplier, shift = quantize_multiplier(tensor.scales[0] / twice)
    values = (np.arange(-128, 128, dtype=np.int64) - tensor.zero_point) << 20
    return round_twice(values, np.int64(multiplier), np.int64(shift))


def round_twice(acc: NDArray[np.int64], multiplier: Any, shift: Any) -> NDArray[np.int64]:
    """acc * multiplier * 2^(shift - 31), shift <= 0, as TFLite's reference kernels round (`common/requantize.h`)."""
    high = (acc * multiplier + (1 << 30)) >> 31
    half = np.where(shift < 0, np.int64(1) << np.maximum(-shift - 1, 0), 0)
    out: NDArray[np.int64] = np.where(shift < 0, (high + half - (high < 0)) >> -np.minimum(shift, 0), high)
    return out
