"""libdeploy_kernels.so through ctypes: layers as values, buffers between guard pages, and an oracle in plain numpy."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAMILIES = ("w8", "w4", "w2", "binary", "tile8", "tile4", "block8", "nm8")
PAGE = mmap.PAGESIZE


class Shape(ctypes.Structure):
    """DeployConvShape."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in [
            "batch",
            "in_h",
            "in_w",
            "in_c",
            "out_h",
            "out_w",
            "out_c",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "dilation_h",
            "dilation_w",
            "pad_top",
            "pad_left",
            "groups",
        ]
    ]


class Requantization(ctypes.Structure):
    """DeployRequantization."""

    _fields_ = [
        ("bias", ctypes.c_void_p),
        ("multiplier", ctypes.c_void_p),
        ("shift", ctypes.c_void_p),
        ("input_zero_point", ctypes.c_int32),
        ("output_zero_point", ctypes.c_int32),
        ("clamp_min", ctypes.c_int32),
        ("clamp_max", ctypes.c_int32),
        ("single_rounding", ctypes.c_int32),
    ]


class Binarization(ctypes.Structure):
    """DeployBinarization."""

    _fields_ = [("threshold", ctypes.c_void_p), ("low", ctypes.c_int32), ("high", ctypes.c_int32)]


class Variant(ctypes.Structure):
    """DeployVariant."""

    _fields_ = [("name", ctypes.c_char_p), ("family", ctypes.c_int)] + [
        (name, ctypes.c_int32) for name in ("mr", "nr", "kr", "supported", "gemv")
    ]

    def __repr__(self) -> str:
        return str(self.name.decode())


@dataclass(frozen=True)
class Layer:
    """
    One convolution, all its numbers.  ``conv_layer`` makes random ones.

    Attributes:
        weights: int8 [out_c, kernel_h, kernel_w, in_c / groups].
        bias, multiplier, shift: int32 [out_c].
        threshold: int8 [in_c], binary layers only; ``low`` and ``high`` are what their bits stand for.
        pad: rows above and columns left of the input.
    """

    family: str
    in_shape: tuple[int, int, int, int]
    out_hw: tuple[int, int]
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.int32]
    shift: NDArray[np.int32]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    groups: int = 1
    input_zero_point: int = 0
    output_zero_point: int = 0
    clamp: tuple[int, int] = (-128, 127)
    threshold: NDArray[np.int8] | None = None
    low: int = 0
    high: int = 0
    single_rounding: bool = False

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.in_shape[0], *self.out_hw, self.weights.shape[0])

    def with_(self, **changes: Any) -> Layer:
        return replace(self, **changes)


class Refused(Exception):
    """deploy_conv_create() returned null; the message is its sentence."""


@dataclass
class Library:
    """A loaded library."""

    path: Path
    c: ctypes.CDLL = field(init=False)

    def __post_init__(self) -> None:
        self.c = ctypes.CDLL(str(self.path))
        self.c.deploy_kernels_cpu.restype = ctypes.c_char_p
        self.c.deploy_kernels_variant.restype = Variant
        self.c.deploy_conv_create.restype = ctypes.c_void_p
        self.c.deploy_conv_create.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p,
            ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip
        self.c.deploy_conv_variant.restype = ctypes.c_char_p
        self.c.deploy_conv_variant.argtypes = [ctypes.c_void_p]
        self.c.deploy_conv_packed_bytes.restype = ctypes.c_size_t
        self.c.deploy_conv_packed_bytes.argtypes = [ctypes.c_void_p]
        self.c.deploy_conv_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32]
        self.c.deploy_conv_destroy.argtypes = [ctypes.c_void_p]
        self.c.deploy_conv_destroy.restype = None

    def variants(self, family: str | None = None) -> list[Variant]:
        """All that are compiled in, or those of one family."""
        found = [self.c.deploy_kernels_variant(i) for i in range(self.c.deploy_kernels_variant_count())]
        return [v for v in found if family is None or FAMILIES[v.family] == family]

    @contextmanager
    def conv(self, layer: Layer, variant: str | None = None) -> Iterator[Conv]:
        """
        The layer, packed.  Everything given to the library lies between guard pages, and is gone after packing.

        Raises:
            Refused: the library does not want it.
        """
        shape = conv_shape(layer)
        with (
            guarded(layer.weights) as weights,
            guarded(layer.bias) as bias,
            guarded(layer.multiplier) as multiplier,
            guarded(layer.shift) as shift,
            guarded(np.zeros(1, np.int8) if layer.threshold is None else layer.threshold) as threshold,
        ):
            requantization = Requantization(
                bias.ctypes.data, multiplier.ctypes.data, shift.ctypes.data,
                layer.input_zero_point, layer.output_zero_point, *layer.clamp, layer.single_rounding,
            )  # fmt: skip
            binarization = Binarization(threshold.ctypes.data, layer.low, layer.high)
            error = ctypes.create_string_buffer(200)
            pointer = self.c.deploy_conv_create(
                FAMILIES.index(layer.family), ctypes.byref(shape), weights.ctypes.data, ctypes.byref(requantization),
                None if layer.threshold is None else ctypes.byref(binarization),
                variant.encode() if variant else None, error, len(error),
            )  # fmt: skip
        if not pointer:
            raise Refused(error.value.decode())
        try:
            yield Conv(self, layer, pointer)
        finally:
            self.c.deploy_conv_destroy(pointer)

    def run(
        self, layer: Layer, inputs: NDArray[np.int8], variant: str | None = None, threads: int = 1
    ) -> NDArray[np.int8]:
        """Packs, runs once and forgets the layer."""
        with self.conv(layer, variant) as conv:
            return conv(inputs, threads)


@dataclass(frozen=True)
class Conv:
    """A packed layer."""

    library: Library
    layer: Layer
    pointer: int

    @property
    def variant(self) -> str:
        return str(self.library.c.deploy_conv_variant(self.pointer).decode())

    @property
    def packed_bytes(self) -> int:
        return int(self.library.c.deploy_conv_packed_bytes(self.pointer))

    def __call__(self, inputs: NDArray[np.int8], threads: int = 1) -> NDArray[np.int8]:
        """Runs between guard pages, input and output once at the end of their pages and once at the beginning."""
        outputs = []
        for at_end in (True, False):
            with (
                guarded(inputs, at_end) as given,
                guarded(np.full(self.layer.out_shape, 0x55, np.int8), at_end) as output,
            ):
                assert given.shape == self.layer.in_shape
                failed = self.library.c.deploy_conv_run(self.pointer, given.ctypes.data, output.ctypes.data, threads)
                assert not failed
                outputs.append(output.copy())
        assert np.array_equal(*outputs)
        return outputs[0]


def conv_shape(layer: Layer) -> Shape:
    n, h, w, c = layer.in_shape
    out_c, kernel_h, kernel_w, _ = layer.weights.shape
    return Shape(
        n, h, w, c, *layer.out_hw, out_c, kernel_h, kernel_w, *layer.stride, *layer.dilation, *layer.pad, layer.groups
    )


@contextmanager
def guarded(values: NDArray[Any], at_end: bool = True) -> Iterator[NDArray[Any]]:
    """
    A copy of `values` whose pages have neighbours that cannot be read or written, flush with the one after it
    (`at_end`) or with the one before; whoever steps over kills the process.  The rest of its own pages is a canary.
    """
    room = -(-max(values.nbytes, 1) // PAGE) * PAGE
    block = mmap.mmap(-1, room + 2 * PAGE)
    whole = np.frombuffer(block, np.uint8)
    base = whole.ctypes.data
    _protect(base, 0)
    _protect(base + PAGE + room, 0)
    start = PAGE + (room - values.nbytes if at_end else 0)
    whole[PAGE : PAGE + room] = 0xA5
    inside = whole[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    inside[...] = values
    try:
        yield inside
        canary = np.concatenate([whole[PAGE:start], whole[start + values.nbytes : PAGE + room]])
        assert (canary == 0xA5).all(), "written outside a buffer"
    finally:
        _protect(base, mmap.PROT_READ | mmap.PROT_WRITE)
        _protect(base + PAGE + room, mmap.PROT_READ | mmap.PROT_WRITE)


_libc = ctypes.CDLL(None, use_errno=True)


def _protect(address: int, rights: int) -> None:
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), rights) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def conv_layer(
    family: str,
    rng: np.random.Generator,
    *,
    in_shape: tuple[int, int, int, int],
    out_c: int,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    same: bool = True,
    groups: int = 1,
    keep: float = 0.5,
) -> Layer:
    """
    A random layer whose outputs use the whole of int8.

    Args:
        same: TFLite's SAME padding, else VALID.
        keep: pruned families: how much of the pattern is not zero.
    """
    _, h, w, c = in_shape
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if same:
        out_hw = (-(-h // stride[0]), -(-w // stride[1]))
        pad = tuple(max(0, (o - 1) * s + e - i) // 2 for o, s, e, i in zip(out_hw, stride, extent, (h, w), strict=True))
    else:
        out_hw = ((h - extent[0]) // stride[0] + 1, (w - extent[1]) // stride[1] + 1)
        pad = (0, 0)
    shape = (out_c, *kernel, c // groups)
    weights = random_weights(family, rng, shape, keep)
    depth = kernel[0] * kernel[1] * c // groups
    magnitude = np.abs(weights.astype(float))
    spread = max(1.0, float(magnitude.sum() / max(1, (magnitude > 0).sum())) * 40 * np.sqrt(depth * max(keep, 0.05)))
    scales = rng.uniform(0.3, 1.2, out_c) * 60 / spread
    multiplier, shift = zip(*(quantize_multiplier(s) for s in scales), strict=True)
    return Layer(
        family, in_shape, out_hw, weights,
        bias=rng.integers(-int(spread), int(spread) + 1, out_c).astype(np.int32),
        multiplier=np.array(multiplier, np.int32), shift=np.array(shift, np.int32),
        stride=stride, dilation=dilation, pad=pad, groups=groups,
        input_zero_point=int(rng.integers(-128, 128)), output_zero_point=int(rng.integers(-128, 128)),
        **(_binarization(rng, c) if family == "binary" else {}),
    )  # fmt: skip


def _binarization(rng: np.random.Generator, channels: int) -> dict[str, Any]:
    low, high = rng.choice(256, 2, replace=False) - 128
    return {"threshold": rng.integers(-128, 128, channels).astype(np.int8), "low": int(low), "high": int(high)}


def random_weights(
    family: str, rng: np.random.Generator, shape: tuple[int, int, int, int], keep: float
) -> NDArray[np.int8]:
    """Weights that fit the family; of pruned ones `keep` is the share of the pattern that is not zero."""
    if family == "binary":
        signs = rng.integers(0, 2, shape) * 2 - 1
        return (signs * rng.integers(1, 128, (shape[0], 1, 1, 1))).astype(np.int8)
    low, high = {"w4": (-8, 7), "w2": (-2, 1), "tile4": (-8, 7)}.get(family, (-127, 127))
    weights = rng.integers(low, high + 1, shape).astype(np.int8)
    if family in ("tile8", "tile4"):
        prune(weights, rng, keep, outputs=32, channels=4)
    elif family == "nm8":
        prune_nm(weights, rng, int(rng.choice([1, 2, 3])), 4)
    elif family == "block8":
        prune(weights, rng, keep, outputs=1, channels=int(rng.choice([4, 16])))
    return weights


def prune(weights: NDArray[np.int8], rng: np.random.Generator, keep: float, outputs: int, channels: int) -> None:
    """Zeroes groups of `channels` input channels at one kernel position, shared by `outputs` outputs in a row."""
    out_c, kernel_h, kernel_w, in_c = weights.shape
    for first in range(0, out_c, outputs):
        groups = kernel_h * kernel_w * -(-in_c // channels)
        kept = (rng.permutation(groups) < round(keep * groups)).reshape(kernel_h, kernel_w, -1)
        weights[first : first + outputs] *= np.repeat(kept, channels, axis=2)[..., :in_c]


def prune_nm(weights: NDArray[np.int8], rng: np.random.Generator, n: int, m: int) -> None:
    """Of every `m` consecutive input channels of one output and tap, zeroes all but `n` at random."""
    *outer, in_c = weights.shape
    whole = -(-in_c // m) * m
    order = rng.random((*outer, whole // m, m)).argsort(axis=-1)
    weights *= (order < n).reshape(*outer, whole)[..., :in_c]


def quantize_multiplier(scale: float) -> tuple[int, int]:
    """TFLite's QuantizeMultiplier(): scale = multiplier * 2**(shift - 31), multiplier in [2**30, 2**31)."""
    if scale == 0:
        return 0, 0
    mantissa, shift = np.frexp(scale)
    fixed = int(np.floor(float(mantissa) * 2**31 + 0.5))
    if fixed == 2**31:
        fixed, shift = fixed // 2, shift + 1
    if shift < -31:
        fixed, shift = 0, 0
    return fixed, int(shift)


def reference(layer: Layer, inputs: NDArray[np.int8]) -> NDArray[np.int8]:
    """The answer, by the definition: int64 sums in numpy, and TFLite's rounding with Python's integers."""
    acc = accumulate(layer, inputs)
    # The accumulator is an int32 that wraps.
    acc = (acc + 2**31) % 2**32 - 2**31
    multiplier, shift = layer.multiplier.astype(np.int64), layer.shift.astype(np.int64)
    if layer.single_rounding:
        scaled = (acc * multiplier + (np.int64(1) << (30 - shift))) >> (31 - shift)
        scaled = (scaled + 2**31) % 2**32 - 2**31
        return np.clip(scaled + layer.output_zero_point, *layer.clamp).astype(np.int8)
    left, right = np.maximum(shift, 0), np.maximum(-shift, 0)
    acc = ((acc << left) + 2**31) % 2**32 - 2**31
    # Twice the high half of the product: halves up.
    high = (acc * multiplier + 2**30) >> 31
    # Divided by a power of two: halves away from zero.
    mask = (np.int64(1) << right) - 1
    rest, threshold = high & mask, (mask >> 1) + (high < 0)
    scaled = (high >> right) + (rest > threshold)
    return np.clip(scaled + layer.output_zero_point, *layer.clamp).astype(np.int8)


def accumulate(layer: Layer, inputs: NDArray[np.int8]) -> NDArray[np.int64]:
    """bias + sum of (input - zero point) * weight, [batch, out_h, out_w, out_c]."""
    n, h, w, _ = layer.in_shape
    out_h, out_w = layer.out_hw
    out_c, kernel_h, kernel_w, channels = layer.weights.shape
    x = inputs.astype(np.int64) - layer.input_zero_point
    if layer.threshold is not None:
        x = np.where(inputs >= layer.threshold, layer.high, layer.low).astype(np.int64) - layer.input_zero_point
    bottom = max(0, (out_h - 1) * layer.stride[0] + (kernel_h - 1) * layer.dilation[0] + 1 - layer.pad[0] - h)
    right = max(0, (out_w - 1) * layer.stride[1] + (kernel_w - 1) * layer.dilation[1] + 1 - layer.pad[1] - w)
    x = np.pad(x, ((0, 0), (layer.pad[0], bottom), (layer.pad[1], right), (0, 0)))
    acc = np.zeros((n, out_h, out_w, out_c), np.int64) + layer.bias
    per_group = out_c // layer.groups
    for ky in range(kernel_h):
        for kx in range(kernel_w):
            y0, x0 = ky * layer.dilation[0], kx * layer.dilation[1]
            taps = x[
                :,
                y0 : y0 + (out_h - 1) * layer.stride[0] + 1 : layer.stride[0],
                x0 : x0 + (out_w - 1) * layer.stride[1] + 1 : layer.stride[1],
            ]
            for g in range(layer.groups):
                outputs = slice(g * per_group, (g + 1) * per_group)
                weights = layer.weights[outputs, ky, kx].astype(np.int64)
                acc[..., outputs] += taps[..., g * channels : (g + 1) * channels] @ weights.T
    return acc


def library_path() -> Path:
    """Where the tests look first: $DEPLOY_KERNELS, or what ``python kernels/build.py`` makes."""
    root = Path(__file__).resolve().parent.parent.parent
    return Path(os.environ.get("DEPLOY_KERNELS", root / "build" / "kernels" / "x86_64" / "libdeploy_kernels.so"))
