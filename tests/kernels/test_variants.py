"""Dense layers: every variant of every dense family against the definition, and the rounding against its own words."""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.library import Layer, Library, Refused, conv_layer, quantize_multiplier, reference
from tests.kernels.test_pruned import SHAPES, every_variant

DENSE = ("w8", "w4", "w2")
EXAMPLES = int(os.environ.get("DEPLOY_KERNELS_EXAMPLES", "25"))


def test_names_say_what_a_variant_is(kernels: Library) -> None:
    """<op>_<weights>_<mr>x<nr>c<kr>_<isa>, and no two are the same."""
    names = [str(variant) for variant in kernels.variants()]
    assert len(set(names)) == len(names)
    for variant in kernels.variants():
        found = re.fullmatch(
            r"(?:conv_(?:w8|w4|w2|binary|tile8|tile4|block8|nm8)|winograd_w[42])_(\d+)x(\d+)c(\d+)_[a-z0-9]+",
            str(variant),
        )
        assert found, str(variant)
        assert (variant.mr, variant.nr, variant.kr) == tuple(int(group) for group in found.groups())


def test_every_family_has_a_reference_that_every_cpu_executes(kernels: Library) -> None:
    for family in (*DENSE, "binary", "tile8", "tile4", "block8", "nm8"):
        last = kernels.variants(family)[-1]
        assert str(last).endswith("_reference")
        assert last.supported


@pytest.mark.parametrize("family", DENSE)
def test_every_variant_equals_the_definition_on_shapes_that_fit_no_tile(kernels: Library, family: str) -> None:
    rng = np.random.default_rng(1)
    for in_shape, out_c, kernel, stride, dilation, same, groups in SHAPES:
        layer = conv_layer(
            family, rng, in_shape=in_shape, out_c=out_c, kernel=kernel, stride=stride, dilation=dilation, same=same,
            groups=groups,
        )  # fmt: skip
        inputs = rng.integers(-128, 128, in_shape).astype(np.int8)
        every_variant(kernels, layer, inputs, threads=int(rng.integers(1, 4)))
        every_variant(kernels, layer.with_(single_rounding=True), inputs)


@pytest.mark.parametrize("family", DENSE)
def test_every_number_of_rows_and_columns_up_to_a_tile(kernels: Library, family: str) -> None:
    rng = np.random.default_rng(2)
    for rows in (*range(1, 14), 25):
        layer = conv_layer(family, rng, in_shape=(rows, 1, 1, 21), out_c=rows * 3, kernel=(1, 1))
        every_variant(kernels, layer, rng.integers(-128, 128, (rows, 1, 1, 21)).astype(np.int8))


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("single_rounding", [False, True])
def test_extreme_numbers_wrap_and_clamp_like_the_definition(
    kernels: Library, family: str, single_rounding: bool
) -> None:
    """Biases at the ends of int32, every shift, zero multipliers, weights and inputs at their ends."""
    rng = np.random.default_rng(3)
    low, high = {"w8": (-127, 127), "w4": (-8, 7), "w2": (-2, 1)}[family]
    layer = conv_layer(family, rng, in_shape=(2, 4, 3, 19), out_c=62)
    extreme = layer.with_(
        weights=rng.choice([low, high], layer.weights.shape).astype(np.int8),
        bias=rng.choice([-(2**31), 2**31 - 1, 0], 62).astype(np.int32),
        multiplier=rng.choice([0, 2**30, 2**31 - 1], 62).astype(np.int32),
        shift=np.arange(-31, 31, dtype=np.int32),
        single_rounding=single_rounding,
    )
    for zero_point in (-128, 127):
        inputs = rng.choice([-128, 127], layer.in_shape).astype(np.int8)
        changed = extreme.with_(input_zero_point=zero_point, output_zero_point=-zero_point - 1, clamp=(-100, 99))
        every_variant(kernels, changed, inputs)


@pytest.mark.parametrize("family", DENSE)
def test_ties_round_as_tflite_does(kernels: Library, family: str) -> None:
    """
    Scales that are powers of two make every other sum a tie, of both roundings; the second only at negative sums
    differs from "up".  A vector variant that rounds in floating point has to notice each of them.
    """
    rng = np.random.default_rng(4)
    for shift in range(-12, 1):
        layer = conv_layer(family, rng, in_shape=(3, 5, 5, 4), out_c=40, kernel=(2, 2), same=False)
        mixed = rng.choice([2**30, 2**30 + 1, 2**30 - 1 + 2**30, 3 << 29], 40).astype(np.int32)
        powers = layer.with_(shift=np.full(40, shift, np.int32), multiplier=mixed, output_zero_point=0)
        inputs = rng.integers(-128, 128, layer.in_shape).astype(np.int8)
        for single in (False, True):
            every_variant(kernels, powers.with_(single_rounding=single), inputs)


def test_rounding_equals_the_words_of_its_definition(kernels: Library) -> None:
    """
    TFLite's two steps transcribed with Python's integers, apart from the numpy oracle.  A 1x1 layer of one channel and
    weight 0 brings any accumulator in through the bias.
    """
    rng = np.random.default_rng(5)
    count = 4000
    acc = np.concatenate([rng.integers(-(2**31), 2**31, count // 2), rng.integers(-(2**14), 2**14, count // 2)])
    multiplier = rng.integers(2**30, 2**31, count)
    multiplier[::3] = 2**30
    shift = rng.integers(-14, 2, count)
    layer = Layer(
        "w8", (1, 1, 1, 1), (1, 1), np.zeros((count, 1, 1, 1), np.int8),
        bias=acc.astype(np.int32), multiplier=multiplier.astype(np.int32), shift=shift.astype(np.int32),
    )  # fmt: skip
    expected = [
        max(-128, min(127, _two_steps(int(a), int(m), int(s)))) for a, m, s in zip(acc, multiplier, shift, strict=True)
    ]
    for variant in kernels.variants("w8"):
        if variant.supported:
            actual = kernels.run(layer, np.zeros((1, 1, 1, 1), np.int8), str(variant))[0, 0, 0].tolist()
            wrong = [i for i in range(count) if expected[i] != actual[i]]
            assert not wrong, f"{variant}: acc {acc[wrong[0]]}, {expected[wrong[0]]} != {actual[wrong[0]]}"


def _two_steps(acc: int, multiplier: int, shift: int) -> int:
    if shift > 0:
        acc = (acc * 2**shift + 2**31) % 2**32 - 2**31
    product = acc * multiplier
    nudged = product + (2**30 if product >= 0 else 1 - 2**30)
    high = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)  # C's division goes towards zero
    if shift >= 0:
        return high
    mask = 2**-shift - 1
    return (high >> -shift) + (high & mask > (mask >> 1) + (high < 0))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape(kernels: Library, data: st.DataObject) -> None:
    draw = data.draw
    family = draw(st.sampled_from(DENSE))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    same = draw(st.booleans())
    size = [draw(st.integers(1 if same else r, r + 5)) for r in reach]
    layer = conv_layer(
        family, np.random.default_rng(draw(st.integers(0, 999))),
        in_shape=(draw(st.integers(1, 2)), *size, groups * draw(st.integers(1, 70))),
        out_c=groups * draw(st.integers(1, 40)), kernel=kernel, dilation=dilation, same=same,
        stride=draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), groups=groups,
    )  # fmt: skip
    inputs = np.random.default_rng(0).integers(-128, 128, layer.in_shape).astype(np.int8)
    every_variant(kernels, layer, inputs, threads=draw(st.integers(1, 3)))


@pytest.mark.parametrize("family", ["w4", "w2"])
def test_transformed_convolutions_of_every_number_of_tiles_and_every_edge(kernels: Library, family: str) -> None:
    """Outputs end at each of a tile's four rows and columns, runs of 4 tiles side by side at each of four, and channels
    and columns anywhere in a step."""
    rng = np.random.default_rng(10)
    for height, width, in_c, out_c, same in [
        (1, 1, 1, 1, True), (2, 19, 5, 31, True), (3, 6, 33, 33, False), (4, 16, 32, 32, True), (5, 22, 8, 40, False),
        (15, 14, 63, 64, True), (30, 35, 3, 17, True),
    ]:  # fmt: skip
        in_shape = (2, height, width, in_c)
        layer = conv_layer(family, rng, in_shape=in_shape, out_c=out_c, same=same)
        for threads in (1, 3):
            every_variant(kernels, layer, rng.integers(-128, 128, in_shape).astype(np.int8), threads)


@pytest.mark.parametrize(("family", "low"), [("w4", -8), ("w2", -2)])
def test_transformed_sums_are_exact_up_to_the_most_channels(kernels: Library, family: str, low: int) -> None:
    """All products of the largest sum that fits have one sign; with one channel more the layer is refused."""
    rng = np.random.default_rng(11)
    layer = conv_layer(family, rng, in_shape=(1, 4, 4, 3640), out_c=2, same=False)
    large = layer.with_(
        weights=np.full_like(layer.weights, low), shift=np.full(2, -17, np.int32), input_zero_point=-128
    )
    for value in (-128, 127):
        every_variant(kernels, large.with_(input_zero_point=-1 - value), np.full(layer.in_shape, value, np.int8))
    more = conv_layer(family, rng, in_shape=(1, 4, 4, 3641), out_c=2)
    for name in [str(v) for v in kernels.variants(family) if v.supported and str(v).startswith("winograd_")]:
        with pytest.raises(Refused) as refusal, kernels.conv(more, name):
            pass
        assert "more input channels than this variant can add up" == str(refusal.value)


def test_only_plain_3x3_convolutions_are_transformed(kernels: Library) -> None:
    rng = np.random.default_rng(12)
    shapes: list[dict[str, Any]] = [{"kernel": (1, 1)}, {"kernel": (3, 1)}, {"stride": (1, 2)}, {"dilation": (2, 1)}]
    names = [str(v) for v in kernels.variants() if v.supported and str(v).startswith("winograd_")]
    for name in names:
        for shape in shapes:
            layer = conv_layer(name.split("_")[1], rng, in_shape=(1, 16, 16, 64), out_c=64, **shape)
            with pytest.raises(Refused) as refusal, kernels.conv(layer, name):
                pass
            assert "this variant computes 3x3 convolutions without stride and dilation only" == str(refusal.value)
            with kernels.conv(layer) as conv:
                assert conv.variant.startswith("conv_")


@pytest.mark.parametrize(
    ("size", "channels", "transformed"),
    [
        (16, 64, True),
        (14, 256, True),
        (4, 64, False),  # one tile: transforming the weights takes longer than multiplying
        (5, 64, False),  # three of four tiles lie outside of the output, nearly
        (32, 16, False),  # half of the columns would be idle
    ],
)
def test_a_convolution_is_transformed_where_that_pays(
    kernels: Library, size: int, channels: int, transformed: bool
) -> None:
    names = [str(v) for v in kernels.variants("w4") if v.supported]
    if not any(name.startswith("winograd_") for name in names):
        pytest.skip("needs AVX-512 VNNI, for which alone there is a variant that transforms")
    layer = conv_layer("w4", np.random.default_rng(13), in_shape=(1, size, size, channels), out_c=channels)
    with kernels.conv(layer) as conv:
        assert transformed == conv.variant.startswith("winograd_")


def test_low_bit_weights_stay_low_bit_in_memory(kernels: Library) -> None:
    rng = np.random.default_rng(6)
    for family, most in (("w8", 1.02), ("w4", 0.52), ("w2", 0.27)):
        layer = conv_layer(family, rng, in_shape=(1, 14, 14, 256), out_c=256)
        with kernels.conv(layer) as conv:
            assert conv.packed_bytes <= most * layer.weights.size, conv.variant


def test_what_does_not_fit_is_refused_with_the_reason(kernels: Library) -> None:
    layer = conv_layer("w4", np.random.default_rng(7), in_shape=(1, 3, 3, 8), out_c=4)
    weights = layer.weights.copy()
    weights[1, 0, 2, 3] = 8
    for refused, reason in [
        (layer.with_(weights=weights), "a weight does not fit 4 bits"),
        (layer.with_(stride=(0, 1)), "a size is less than 1"),
        (layer.with_(pad=(-1, 0)), "a padding is negative"),
        (layer.with_(groups=3), "the groups do not divide the channels"),
        (layer.with_(shift=np.full(4, 31, np.int32)), "a shift lies outside [-31, 30]"),
        (layer.with_(multiplier=np.full(4, 5, np.int32)), "a multiplier lies outside [2^30, 2^31)"),
        (layer.with_(clamp=(3, 2)), "the activation's range is not one of int8"),
        (layer.with_(input_zero_point=128), "a zero point does not fit int8"),
        (layer.with_(in_shape=(2**15, 2**15, 1, 8)), "the input has 2^31 elements or more"),
    ]:
        with pytest.raises(Refused) as refusal, kernels.conv(refused):
            pass
        assert reason == str(refusal.value)


def test_a_forced_path_is_taken(kernels: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = conv_layer("w4", np.random.default_rng(8), in_shape=(1, 3, 3, 8), out_c=4)
    for variant in kernels.variants("w4"):
        if variant.supported:
            for word in (str(variant), str(variant).rpartition("_")[2]):
                monkeypatch.setenv("KERNELS_FORCE", word)
                with kernels.conv(layer) as conv:
                    assert word in conv.variant


def test_a_scale_becomes_the_multiplier_that_gives_it_back() -> None:
    for scale in (1.0, 0.5, 0.7, 1e-6, 123.4, 2**-31, 0.9999999999):
        multiplier, shift = quantize_multiplier(scale)
        assert 2**30 <= multiplier < 2**31
        assert abs(multiplier * 2.0 ** (shift - 31) / scale - 1) < 2**-30


def test_the_oracle_can_tell() -> None:
    """One changed weight changes the definition's answer: equality above means something."""
    rng = np.random.default_rng(9)
    layer = conv_layer("w4", rng, in_shape=(1, 5, 5, 16), out_c=8)
    inputs = rng.integers(-128, 128, layer.in_shape).astype(np.int8)
    weights = layer.weights.copy()
    weights[0, 1, 1, 0] ^= 1
    assert not np.array_equal(reference(layer, inputs), reference(layer.with_(weights=weights), inputs))
