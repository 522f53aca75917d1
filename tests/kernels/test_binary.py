"""Binary layers: the kernels against their definition, and the written pattern against stock LiteRT's reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.build.binary import BinaryLayer, binary_model
from deploy.errors import BuildError
from tests.kernels.library import Layer, Library, Refused, conv_layer, quantize_multiplier, reference
from tests.kernels.stock import answer
from tests.kernels.test_pruned import SHAPES, every_variant


def test_every_variant_equals_the_definition_on_shapes_that_fit_no_tile(kernels: Library) -> None:
    rng = np.random.default_rng(1)
    for in_shape, out_c, kernel, stride, dilation, same, groups in SHAPES:
        layer = conv_layer(
            "binary", rng, in_shape=in_shape, out_c=out_c, kernel=kernel, stride=stride, dilation=dilation, same=same,
            groups=groups,
        )  # fmt: skip
        inputs = rng.integers(-128, 128, in_shape).astype(np.int8)
        every_variant(kernels, layer, inputs, threads=int(rng.integers(1, 4)))
        every_variant(kernels, layer.with_(single_rounding=True), inputs)


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (1, -1), (-128, 127), (5, 6)])
def test_padding_is_real_zero_whatever_the_two_values_are(kernels: Library, low: int, high: int) -> None:
    """A 5x5 kernel on a 3x3 input: every output has padded taps, and the corners have 16."""
    rng = np.random.default_rng(2)
    layer = conv_layer("binary", rng, in_shape=(1, 3, 3, 65), out_c=33, kernel=(5, 5))
    for zero_point in (-128, 0, 127):
        inputs = rng.integers(-128, 128, (1, 3, 3, 65)).astype(np.int8)
        every_variant(kernels, layer.with_(low=low, high=high, input_zero_point=zero_point), inputs)


def test_extreme_numbers_wrap_and_clamp_like_the_definition(kernels: Library) -> None:
    rng = np.random.default_rng(3)
    layer = conv_layer("binary", rng, in_shape=(1, 4, 4, 129), out_c=37)
    extreme = layer.with_(
        bias=rng.choice([-(2**31), 2**31 - 1], 37).astype(np.int32),
        multiplier=rng.choice([0, 2**30, 2**31 - 1], 37).astype(np.int32),
        shift=rng.integers(-31, 9, 37).astype(np.int32),
        low=-128, high=127, input_zero_point=-128,
    )  # fmt: skip
    for threshold in (-128, 127):
        every_variant(
            kernels,
            extreme.with_(threshold=np.full(129, threshold, np.int8)),
            rng.choice([-128, 126, 127], (1, 4, 4, 129)).astype(np.int8),
        )


def test_one_bit_takes_one_bit(kernels: Library) -> None:
    layer = conv_layer("binary", np.random.default_rng(4), in_shape=(1, 14, 14, 256), out_c=256)
    with kernels.conv(layer) as conv:
        assert conv.packed_bytes < 0.16 * layer.weights.size


def test_what_is_not_binary_is_refused_with_the_reason(kernels: Library) -> None:
    layer = conv_layer("binary", np.random.default_rng(5), in_shape=(1, 3, 3, 8), out_c=4)
    weights = layer.weights.copy()
    weights[2, 1, 1, 3] = 0
    large = conv_layer("binary", np.random.default_rng(5), in_shape=(1, 9, 9, 8), out_c=4, kernel=(9, 8))
    for refused, reason in [
        (layer.with_(weights=weights), "the weights of an output channel are not +w and -w"),
        (layer.with_(threshold=None), "a binary layer needs thresholds"),
        (layer.with_(low=3, high=3), "the two values of a binary input must differ and fit int8"),
        (large, "a binary layer has at most 64 taps"),
    ]:
        with pytest.raises(Refused) as refusal, kernels.conv(refused):
            pass
        assert reason in str(refusal.value)


def binary_layer(rng: np.random.Generator, shape: tuple[int, ...], **changes: object) -> BinaryLayer:
    """A layer whose outputs use most of int8."""
    out_c, in_c = shape[0], shape[-1]
    magnitude = rng.integers(1, 9, (out_c,) + (1,) * (len(shape) - 1))
    scale = rng.uniform(0.01, 0.02, out_c).astype(np.float32)
    spread = float(np.sqrt(np.prod(shape[1:]))) * 5 * 0.015
    return BinaryLayer(
        **{
            "weights": (rng.choice([-1, 1], shape) * magnitude).astype(np.int8),
            "bias": rng.integers(-30, 30, out_c).astype(np.int32),
            "threshold": rng.integers(-128, 128, in_c),
            "weight_scale": scale,
            "output_scale": float(np.float32(spread / 50)),
            "output_zero_point": -3,
            **changes,
        }  # type: ignore[arg-type]
    )


# At the first scale an int8 comparison would be wrong, at the last the reference would abort.
@pytest.mark.parametrize("in_scale", [0.0005, 0.05, 3.0])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_pattern_means_the_same_to_the_stock_reference(
    tmp_path: Path, kernels: Library, in_scale: float, padding: str
) -> None:
    rng = np.random.default_rng(6)
    first = binary_layer(rng, (40, 3, 3, 33), padding=padding, stride=(2, 1), low=-3, high=100, output_scale=3.0)
    second = binary_layer(rng, (17, 3, 2, 40), padding=padding, activation="RELU")
    shape = (2, 9, 8, 33)
    inputs = rng.integers(-128, 128, shape).astype(np.int8)

    expected = answer(binary_model(shape, in_scale, -7, [first, second]), inputs, tmp_path)

    middle = kernel_answer(kernels, first, inputs)
    assert 40 < len(np.unique(middle))
    assert np.array_equal(expected, kernel_answer(kernels, second, middle))


def test_a_fully_connected_layer_means_the_same_to_the_stock_reference(tmp_path: Path, kernels: Library) -> None:
    rng = np.random.default_rng(7)
    layer = binary_layer(rng, (70, 200))
    inputs = rng.integers(-128, 128, (5, 200)).astype(np.int8)

    expected = answer(binary_model((5, 200), 0.1, 4, [layer]), inputs, tmp_path)

    assert np.array_equal(expected, kernel_answer(kernels, layer, inputs))


def kernel_answer(kernels: Library, layer: BinaryLayer, inputs: np.ndarray) -> np.ndarray:
    """The same layer by the kernels, with TFLite's rules for padding, scales and activations."""
    fc = layer.weights.ndim == 2
    weights = layer.weights[:, None, None] if fc else layer.weights
    x = inputs[:, None, None] if fc else inputs
    scales = [
        np.float64(np.float32(layer.input_scale)) * np.float64(s) / layer.output_scale for s in layer.weight_scale
    ]
    multiplier, shift = zip(*(quantize_multiplier(s) for s in scales), strict=True)
    sizes, pads = [], []
    for extent, kernel, stride in zip(x.shape[1:3], weights.shape[1:3], layer.stride, strict=True):
        same = layer.padding == "SAME"
        size = -(-extent // stride) if same else (extent - kernel) // stride + 1
        sizes.append(size)
        pads.append(max(0, (size - 1) * stride + kernel - extent) // 2 if same else 0)
    plain = Layer(
        "binary", x.shape, (sizes[0], sizes[1]), weights, layer.bias, np.array(multiplier, np.int32),
        np.array(shift, np.int32), stride=layer.stride, pad=(pads[0], pads[1]),
        output_zero_point=layer.output_zero_point,
        clamp=(layer.output_zero_point if layer.activation == "RELU" else -128, 127),
        threshold=layer.threshold.astype(np.int8), low=layer.low, high=layer.high, single_rounding=fc,
    )  # fmt: skip
    out = kernels.run(plain, x)
    assert np.array_equal(reference(plain, x), out)
    return out[:, 0, 0] if fc else out


def test_numbers_that_make_no_binary_layer_are_refused() -> None:
    rng = np.random.default_rng(8)
    good = (4, 3, 3, 8)
    for changes, sentence in [
        ({"weights": np.zeros(good, np.int8)}, "must be +w and -w"),
        ({"threshold": np.full(8, 128)}, "thresholds must lie in [-128, 127]"),
        ({"low": 1, "high": 1}, "low = 1 and high = 1 must differ"),
        ({"bias": np.zeros(3, np.int32)}, "4 output channels need as many biases"),
        ({"weights": np.ones((4, 3, 3, 9), np.int8)}, "8 input channels need as many thresholds and weights"),
    ]:
        with pytest.raises(BuildError) as refusal:
            binary_model((1, 5, 5, 8), 0.1, 0, [binary_layer(rng, good, **changes)])
        assert sentence in str(refusal.value)
