"""
Weights to integers: with which scale, and which of the two neighbours each.

Matrices are [K, C]: a column for each output channel, in the order of `deploy.build.execute.columns`.  H is [K, K], the
sum of x x' over what a layer is multiplied with, so that ``d' H d`` is the square error that rounding by d makes in the
layer's output.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deploy.build.graph import Floats
from deploy.build.grid import WEIGHT_LIMITS, weight_scale

Matrix = NDArray[np.float64]

METHODS = ("nearest", "gptq", "descent")
_SHARES = np.linspace(1.0, 0.2, 81)
_DAMPING = 0.01
_SWEEPS = 20


def nearest(matrix: Floats | Matrix, scale: Floats, kind: str) -> NDArray[np.int8]:
    low, high = WEIGHT_LIMITS[kind]
    return np.asarray(np.clip(np.rint(matrix / scale), low, high), np.int8)


def best_scale(matrix: Floats, kind: str, importance: NDArray[np.floating] | None = None) -> Floats:
    """
    The scales [C] with the smallest square error of rounding to the nearest: they clip what is rare and large.

    Args:
        importance: [K], how much an error in each row counts; the diagonal of H, for example.
    """
    widest = weight_scale(matrix, kind)
    rows = np.ones((len(matrix), 1)) if importance is None else np.asarray(importance, np.float64).reshape(-1, 1)
    best, least = widest, np.full(matrix.shape[1], np.inf)
    for share in _SHARES:
        scale = np.asarray(widest * np.float32(share), np.float32)
        error = (rows * (nearest(matrix, scale, kind) * scale - matrix) ** 2).sum(axis=0)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return np.asarray(best, np.float32)


def gptq(matrix: Matrix, scale: Floats, kind: str, hessian: Matrix) -> NDArray[np.int8]:
    """
    Round row by row, and let the rows that are not rounded yet make up for the error (GPTQ, Frantar et al. 2023).

    Rows that meet the largest inputs go first.  A weight that is exactly 0 stays 0, so that pruned patterns do.
    """
    low, high = WEIGHT_LIMITS[kind]
    order = np.argsort(-np.diag(hessian), kind="stable")
    left, free = matrix[order].astype(np.float64), matrix[order] != 0
    inverse = np.linalg.inv(damped(hessian)[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    rounded = np.zeros(matrix.shape, np.int8)
    for k in range(len(order)):
        steps = np.clip(np.rint(left[k] / scale), low, high) * free[k]
        rounded[order[k]] = steps
        error = (left[k] - steps * scale) / upper[k, k]
        left[k + 1 :] -= np.outer(upper[k, k + 1 :], error)
    return rounded


def descent(
    matrix: Matrix, scale: Floats, kind: str, hessian: Matrix, start: NDArray[np.int8]
) -> tuple[NDArray[np.int8], Floats]:
    """
    Change integers one row at a time to what is best given all others, until none changes; then the scale, and again.

    Coordinate descent on ``d' H d`` (as QuantEase does, Behdin et al. 2023); the error never grows.

    Returns:
        Integers and scales; the error with both is at most that of `start` and `scale`.
    """
    low, high = WEIGHT_LIMITS[kind]
    curvature = damped(hessian)
    diagonal, free = np.diag(curvature), matrix != 0
    steps, scale = start.astype(np.float64), scale.astype(np.float64)
    for _ in range(_SWEEPS):
        before = steps.copy()
        slope = curvature @ (matrix - steps * scale)
        for k in range(len(matrix)):
            wanted = np.clip(np.rint(steps[k] + slope[k] / (diagonal[k] * scale)), low, high) * free[k]
            moved = np.flatnonzero(wanted != steps[k])
            slope[:, moved] -= np.outer(curvature[:, k], ((wanted - steps[k]) * scale)[moved])
            steps[k] = wanted
        product = curvature @ steps
        norm = (steps * product).sum(axis=0)
        fitted = (product * matrix).sum(axis=0) / np.where(norm > 0, norm, 1)
        scale = np.where((norm > 0) & (fitted > 0), fitted, scale)
        if (steps == before).all():
            break
    return steps.astype(np.int8), scale.astype(np.float32)


def compensated(matrix: Floats | Matrix, given: Matrix, wanted: Matrix) -> Matrix:
    """
    Real weights that answer to the inputs that there are what is wanted, as nearly as weights can.

    Least squares with a pull towards `matrix`, the stronger the less the samples say.  What is exactly 0 stays 0, and
    the other weights of its column make up for it.

    Args:
        given: H of these inputs.
        wanted: [K, C], sum over samples of input times wanted output.
    """
    sure = damped(given)
    wanted = wanted + (sure - given) @ matrix
    fitted = np.zeros(matrix.shape)
    patterns, columns = np.unique(matrix != 0, axis=1, return_inverse=True)
    for place, pattern in enumerate(patterns.T):
        if pattern.any():
            mine = np.ix_(pattern, columns.reshape(-1) == place)
            fitted[mine] = np.linalg.solve(sure[np.ix_(pattern, pattern)], wanted[mine])
    return fitted


def damped(hessian: Matrix) -> Matrix:
    """Invertible: inputs that never occur get a share of what the others have."""
    mean = float(np.mean(np.diag(hessian)))
    return hessian + np.eye(len(hessian)) * (_DAMPING * mean if mean > 0 else 1.0)
