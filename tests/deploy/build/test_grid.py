"""The grids of the file."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.build.graph import Graph, Node, tied
from deploy.build.grid import activation_grid, weight_grid, weight_scale
from deploy.build.quantized import BIAS_LIMIT, bias_integers, roomy
from deploy.errors import BuildError
from tests.deploy.build.networks import classifier


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 255.0, 1.0, -128),  # pixels keep their steps
        (-1.0, 1.04, 0.008, -3),
        (2.0, 5.1, 5.1 / 255, -128),  # 0 is on the grid even where it does not occur: padding needs it
        (-5.1, -2.0, 5.1 / 255, 127),
        (0.0, 0.0, 1.0, -128),  # nothing but zeros
    ],
)
def test_activations_use_all_256_steps_and_hold_zero(low: float, high: float, scale: float, zero_point: int) -> None:
    grid = activation_grid(low, high)

    assert (np.float32(scale), zero_point) == (grid.scale[0], grid.zero_point)
    assert 0 == grid.fake(np.zeros(1, np.float32))[0]


def test_sixteen_bits_are_symmetric() -> None:
    grid = activation_grid(-3.0, 1.0, bits=16)

    assert (0, -32767, 32767) == (grid.zero_point, *grid.quantize(np.array([-3.0, 3.0], np.float32)))


def test_a_range_that_is_not_finite_is_refused() -> None:
    with pytest.raises(BuildError) as caught:
        activation_grid(0.0, float("nan"))
    assert "activations in [0, nan] have no grid: NaN or infinite values in the model" == str(caught.value)


@pytest.mark.parametrize(("kind", "low", "high"), [("8", -127, 127), ("4", -7, 7), ("ternary", -1, 1), ("2", -2, 1)])
def test_the_largest_weight_of_each_channel_just_fits(kind: str, low: int, high: int) -> None:
    matrix = np.array([[-6.0, 1.0, 0.0], [3.0, -0.5, 0.0]], np.float32)

    grid = weight_grid(weight_scale(matrix, kind), kind)

    exact = matrix / grid.scale
    assert np.all((exact >= low - 1e-5) & (exact <= high + 1e-5))
    assert np.all(np.isclose(exact, low).any(axis=0) | np.isclose(exact, high).any(axis=0) | (matrix == 0).all(axis=0))


def test_fake_quantization_is_quantize_and_dequantize() -> None:
    values = np.random.default_rng(0).normal(0, 3, 1000).astype(np.float32)
    grid = activation_grid(-4.0, 7.0)

    np.testing.assert_array_equal(grid.dequantize(grid.quantize(values)), grid.fake(values))


def test_a_bias_always_fits_because_the_scale_gives_way() -> None:
    """A channel of nearly no weight with a large bias, as batch normalization makes of a dead one."""
    bias, scale = np.array([100.0, 1.0], np.float32), np.array([1e-12, 0.01], np.float32)

    wider = roomy(scale, bias, in_scale=0.05)
    integers = bias_integers(bias, 0.05, weight_grid(wider))

    assert np.float32(0.01) == wider[1]
    assert np.abs(integers).max() <= BIAS_LIMIT
    np.testing.assert_allclose(bias, integers * (np.float32(0.05) * wider), rtol=1e-3)


def test_what_copies_integers_shares_a_grid_and_a_softmax_has_its_own() -> None:
    """The concatenation reads a pool, so that the pool, the layer in front of it and the sum end up together."""
    group = tied(classifier(np.random.default_rng(0)))

    assert {"first", "pool", "sum", "both", "wide"} == {name for name, first in group.items() if first == "first"}
    assert {"bent", "smooth"} == {name for name, first in group.items() if first == "bent"}
    assert {"y"} == {name for name, first in group.items() if first == "y"}


def test_a_concatenation_of_softmaxes_has_a_grid_of_its_own() -> None:
    nodes = [Node("x", "input", (), (4,)), Node("a", "softmax", ("x",), (4,)), Node("b", "reshape", ("a",), (4,)),
             Node("c", "concat", ("x", "b"), (8,), attrs={"axis": 1})]  # fmt: skip

    group = tied(Graph({node.name: node for node in nodes}, ("x",), ("c",)))

    assert {"x": "x", "a": "a", "b": "a", "c": "x"} == group
