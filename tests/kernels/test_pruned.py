"""Pruned layers, tile-shared and in blocks: every variant equals the definition, and what is zero takes no room."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.library import Layer, Library, Refused, conv_layer, prune, reference

FAMILIES = ("tile8", "tile4", "block8", "nm8")
EXAMPLES = int(os.environ.get("DEPLOY_KERNELS_EXAMPLES", "25"))
# [batch, height, width, channels], outputs, kernel, stride, dilation, same, groups: none fits a tile.
SHAPES = [
    ((1, 7, 9, 33), 70, (3, 3), (1, 1), (1, 1), True, 1),
    ((2, 5, 6, 12), 33, (3, 2), (2, 1), (1, 2), True, 1),
    ((1, 8, 5, 3), 5, (5, 3), (1, 2), (1, 1), False, 1),
    ((1, 4, 4, 130), 31, (1, 1), (1, 1), (1, 1), True, 1),
    ((3, 6, 5, 20), 66, (3, 3), (1, 1), (1, 1), True, 2),
    ((1, 1, 1, 258), 65, (1, 1), (1, 1), (1, 1), True, 1),
    ((19, 1, 1, 64), 300, (1, 1), (1, 1), (1, 1), True, 1),
]


def every_variant(library: Library, layer: Layer, inputs: np.ndarray, threads: int = 1) -> None:
    """Each variant that this CPU can execute, and that is made for such a layer, gives the definition's answer."""
    expected = reference(layer, inputs)
    plain = (layer.weights.shape[1:3], layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1))
    for variant in library.variants(layer.family):
        if variant.supported and (plain or not str(variant).startswith("winograd_")):
            actual = library.run(layer, inputs, str(variant), threads)
            wrong = np.argwhere(expected != actual)
            assert 0 == len(wrong), f"{variant}: {len(wrong)} differ, the first at {wrong[0].tolist()}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 1.0])
def test_every_variant_equals_the_definition_on_shapes_that_fit_no_tile(
    kernels: Library, family: str, keep: float
) -> None:
    rng = np.random.default_rng(7)
    for in_shape, out_c, kernel, stride, dilation, same, groups in SHAPES:
        layer = conv_layer(
            family, rng, in_shape=in_shape, out_c=out_c, kernel=kernel, stride=stride, dilation=dilation, same=same,
            groups=groups, keep=keep,
        )  # fmt: skip
        inputs = rng.integers(-128, 128, in_shape).astype(np.int8)
        every_variant(kernels, layer, inputs, threads=int(rng.integers(1, 4)))
        every_variant(kernels, layer.with_(single_rounding=True), inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_extreme_numbers_wrap_and_clamp_like_the_definition(kernels: Library, family: str) -> None:
    rng = np.random.default_rng(8)
    shape = (1, 5, 5, 24)
    layer = conv_layer(family, rng, in_shape=shape, out_c=40, keep=0.6)
    shifts = rng.integers(-31, 9, 40).astype(np.int32)
    multipliers = rng.choice([0, 2**30, 2**31 - 1, 1_500_000_001], 40).astype(np.int32)
    for bias in (-(2**31), 2**31 - 1):
        for value in (-128, 127):
            extreme = layer.with_(
                bias=np.full(40, bias, np.int32), multiplier=multipliers, shift=shifts, input_zero_point=-value - 1
            )
            every_variant(kernels, extreme, np.full(shape, value, np.int8))
    # Shifts that all lie near: here halves are met often, since multipliers are powers of two.
    halves = layer.with_(
        multiplier=np.full(40, 2**30, np.int32), shift=np.full(40, -6, np.int32), clamp=(-100, 99), output_zero_point=3
    )
    every_variant(kernels, halves, rng.integers(-128, 128, shape).astype(np.int8))


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_equals_the_definition(kernels: Library, data: st.DataObject) -> None:
    small = st.integers(1, 3)
    groups, kernel, stride, dilation = data.draw(st.tuples(st.integers(1, 2), *[st.tuples(small, small)] * 3))
    extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    height, width = (data.draw(st.integers(e, e + 7)) for e in extent)
    in_shape = (data.draw(small), height, width, groups * data.draw(st.integers(1, 70)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    layer = conv_layer(
        data.draw(st.sampled_from((*FAMILIES, "binary"))), rng, in_shape=in_shape,
        out_c=groups * data.draw(st.integers(1, 70)), kernel=kernel, stride=stride, dilation=dilation,
        same=data.draw(st.booleans()), groups=groups, keep=data.draw(st.floats(0, 1)),
    )  # fmt: skip
    every_variant(kernels, layer, rng.integers(-128, 128, in_shape).astype(np.int8), threads=data.draw(small))


def test_groups_are_found_wherever_they_begin(kernels: Library) -> None:
    """Pruned input channels rarely come in fours: 40 of 48 are zero here, the kept ones begin at channel 5."""
    rng = np.random.default_rng(9)
    layer = conv_layer("tile8", rng, in_shape=(1, 6, 6, 48), out_c=32, keep=1.0)
    weights = np.zeros_like(layer.weights)
    weights[..., 5:13] = layer.weights[..., 5:13]
    pruned = layer.with_(weights=weights)
    every_variant(kernels, pruned, rng.integers(-128, 128, (1, 6, 6, 48)).astype(np.int8))

    with kernels.conv(layer) as dense, kernels.conv(pruned) as sparse:
        # 12 windows for each of 9 taps, or 2.
        assert 9 * 10 * 32 * 4 <= dense.packed_bytes - sparse.packed_bytes


def test_a_layer_without_weights_answers_its_bias(kernels: Library) -> None:
    rng = np.random.default_rng(10)
    for family in FAMILIES:
        layer = conv_layer(family, rng, in_shape=(1, 3, 3, 8), out_c=9, keep=0.0)
        every_variant(kernels, layer, rng.integers(-128, 128, (1, 3, 3, 8)).astype(np.int8))


def test_4_bits_stay_4_bits_in_memory(kernels: Library) -> None:
    rng = np.random.default_rng(11)
    layer = conv_layer("tile4", rng, in_shape=(1, 14, 14, 256), out_c=256, keep=0.25)
    with kernels.conv(layer) as four, kernels.conv(layer.with_(family="tile8")) as eight:
        assert four.packed_bytes < 0.56 * eight.packed_bytes
        assert four.packed_bytes < 0.16 * layer.weights.size


def test_blocks_of_16_are_stored_as_such(kernels: Library) -> None:
    rng = np.random.default_rng(12)
    layer = conv_layer("block8", rng, in_shape=(1, 4, 4, 64), out_c=64, keep=1.0)
    fours, sixteens = layer.weights.copy(), layer.weights.copy()
    prune(fours, rng, 0.25, outputs=1, channels=4)
    prune(sixteens, rng, 0.25, outputs=1, channels=16)
    with kernels.conv(layer.with_(weights=fours)) as small, kernels.conv(layer.with_(weights=sixteens)) as large:
        assert large.packed_bytes < small.packed_bytes
        assert large.packed_bytes < 0.36 * layer.weights.size


def test_what_does_not_fit_a_family_is_refused_with_the_reason(kernels: Library) -> None:
    rng = np.random.default_rng(13)
    layer = conv_layer("tile8", rng, in_shape=(1, 3, 3, 8), out_c=8)
    weights = layer.weights.copy()
    weights[3, 1, 2, 5] = -128
    deep = conv_layer("block8", rng, in_shape=(1, 1, 1, 8193), out_c=2, kernel=(1, 1), keep=0.1)
    for refused, reason in [
        (layer.with_(weights=weights), "a weight of -128"),
        (layer.with_(family="tile4", weights=np.full_like(weights, 8)), "a weight does not fit 4 bits"),
        (deep, "more than 8192 weights per output channel, each tap rounded up to 64"),
    ]:
        with pytest.raises(Refused) as refusal, kernels.conv(refused):
            pass
        assert reason in str(refusal.value)
