"""Weights to integers, against exhaustive search and the error that rounding is meant to lower."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from deploy.build.rounding import best_scale, compensated, descent, gptq, nearest


def layer(rng: np.random.Generator, rows: int = 24, channels: int = 5) -> tuple[Any, Any]:
    """Weights, and H of inputs that hang together, as neighbouring pixels do."""
    inputs = rng.normal(0, 1, (400, rows)) @ rng.normal(0, 1, (rows, rows))
    return rng.normal(0, 1, (rows, channels)).astype(np.float32), inputs.T @ inputs


def error(matrix: Any, values: Any, scale: Any, hessian: Any) -> Any:
    off = matrix - values * scale
    return np.einsum("kc,kl,lc->c", off, hessian, off)


@pytest.mark.parametrize("kind", ["4", "2", "ternary"])
def test_each_method_makes_a_smaller_error_than_the_one_before(kind: str) -> None:
    matrix, hessian = layer(np.random.default_rng(0))
    scale = best_scale(matrix, kind)

    plain = nearest(matrix, scale, kind)
    fed_back = gptq(matrix, scale, kind, hessian)
    searched, fitted = descent(matrix, scale, kind, hessian, fed_back)

    errors = [error(matrix, plain, scale, hessian), error(matrix, fed_back, scale, hessian),
              error(matrix, searched, fitted, hessian)]  # fmt: skip
    sums = [each.sum() for each in errors]
    assert sums[0] > 1.2 * sums[1]
    assert sums[1] > 1.05 * sums[2]


def test_descent_is_near_the_best_of_all_roundings() -> None:
    """Three to the sixth roundings for each channel, all with one scale; descent may stop at a local optimum."""
    matrix, hessian = layer(np.random.default_rng(1), rows=6, channels=8)
    scale = best_scale(matrix, "ternary")
    every = np.array(list(itertools.product((-1, 0, 1), repeat=6)))
    least = np.array(
        [min(error(matrix[:, [c]], v.reshape(6, 1), scale[c], hessian)[0] for v in every) for c in range(8)]
    )

    values, fitted = descent(matrix, scale, "ternary", hessian, gptq(matrix, scale, "ternary", hessian))

    ratio = error(matrix, values, fitted, hessian) / least
    assert np.median(ratio) <= 1
    assert ratio.max() < 4


@pytest.mark.parametrize("kind", ["8", "4", "2", "ternary"])
def test_weights_that_are_zero_stay_zero(kind: str) -> None:
    """Pruned patterns survive, though feeding errors back would fill them."""
    matrix, hessian = layer(np.random.default_rng(2))
    matrix[4:12] = 0
    scale = best_scale(matrix, kind)

    values, _ = descent(matrix, scale, kind, hessian, gptq(matrix, scale, kind, hessian))

    assert not values[4:12].any()
    assert values[:4].any()
    assert not compensated(matrix, hessian, hessian @ matrix * 1.5)[4:12].any()


def test_the_best_scale_clips_a_lonely_outlier() -> None:
    matrix = np.full((200, 1), 0.1, np.float32)
    matrix[::2] *= -1
    matrix[0] = 1.0

    assert best_scale(matrix, "4")[0] < 1 / 7
    assert np.isclose(best_scale(matrix, "4", importance=np.eye(200)[0] + 1e-9)[0], 1 / 7)


def test_weights_are_refitted_to_the_inputs_that_they_will_get() -> None:
    """Inputs that arrive at half their size need weights of twice theirs."""
    rng = np.random.default_rng(3)
    matrix, true = rng.normal(0, 1, (8, 3)).astype(np.float32), rng.normal(0, 1, (5000, 8))
    given = true / 2

    fitted = compensated(matrix, given.T @ given, given.T @ (true @ matrix))

    np.testing.assert_allclose(2 * matrix, fitted, rtol=0.02)


def test_inputs_that_never_occur_do_no_harm() -> None:
    rng = np.random.default_rng(4)
    matrix, dead = rng.normal(0, 1, (8, 3)).astype(np.float32), np.zeros((8, 8))

    scale = best_scale(matrix, "4")

    values, scale = descent(matrix, scale, "4", dead, gptq(matrix, scale, "4", dead))

    assert np.abs(matrix - values * scale).max() <= scale.max()
