"""
Post-training quantization: a float graph and some samples in, integers out.

The samples go through twice, side by side: as the float graph computes them, and as the layers that are quantized
already do.  Each layer is rounded for the inputs that it will really get.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from deploy.build.calibrate import calibrate, grids
from deploy.build.equalize import equalize
from deploy.build.execute import CHUNK, activate, affordable, columns, compute, forward, weigh
from deploy.build.graph import Floats, Graph, Node, fold
from deploy.build.grid import Grid, weight_grid, weight_scale
from deploy.build.quantized import Quantized, Weights, bias_integers, roomy
from deploy.build.rounding import METHODS, Matrix, best_scale, compensated, descent, gptq, nearest
from deploy.errors import BuildError


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        observer: one of `deploy.build.calibrate.OBSERVERS`.
        equalize: even out the channels of layers that follow each other first.
        rounding: nearest; gptq; descent: GPTQ, then coordinate descent.  The latter two are for convolutions without
            groups and dense layers below 8 bits; the others are rounded to the nearest.
        compensate: round weights that were fitted to the quantized inputs, with gptq and descent.
        correct: shift biases by how much the mean of each channel has moved.
        activation_bits: 8 or 16.
    """

    observer: str = "minmax"
    equalize: bool = False
    rounding: str = "descent"
    compensate: bool = True
    correct: bool = True
    activation_bits: int = 8


def quantize(
    graph: Graph,
    feeds: Mapping[str, Floats],
    kinds: Mapping[str, str] | None = None,
    options: Options = Options(),
    progress: Callable[[str, int, int], None] | None = None,
) -> Quantized:
    """
    Quantize without training.

    Args:
        graph: with live or folded normalizations; not changed.
        feeds: input -> [N, ...], real values as the model gets them; a few hundred samples.
        kinds: weighted node -> one of `deploy.build.grid.WEIGHT_LIMITS`; 8 where it says nothing.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        BuildError: no samples, options that do not exist, or values that are not finite.
    """
    if options.rounding not in METHODS:
        raise BuildError(f"no rounding {options.rounding!r}; there is {', '.join(METHODS)}")
    if options.activation_bits not in (8, 16):
        raise BuildError(f"activations of {options.activation_bits} bits; there are 8 and 16")
    tell = progress or (lambda what, done, total: None)
    graph = fold(graph)
    if options.equalize:
        equalize(graph)
    ranges = calibrate(graph, feeds, options.observer, lambda done, total: tell("calibrating", done, total))
    grid = grids(graph, ranges, options.activation_bits)
    rounder = _Rounder(graph, grid, kinds or {}, options, tell)
    there = min(len(samples) for samples in feeds.values())
    count = affordable(graph, there, copies=2)
    rounder.what = "rounding" if count == there else f"rounding with {count} of {there} samples"
    # The float samples in the first half of each batch, the quantized ones in the second.
    forward(graph, {name: np.concatenate([x[:count], x[:count]]) for name, x in feeds.items()}, rounder.step)
    return Quantized(graph, grid, rounder.weights, ranges)


class _Rounder:
    def __init__(
        self,
        graph: Graph,
        grid: Mapping[str, Grid],
        kinds: Mapping[str, str],
        options: Options,
        tell: Callable[[str, int, int], None],
    ) -> None:
        self.grid, self.kinds, self.options, self.tell = grid, kinds, options, tell
        self.layers, self.what = len(graph.weighted()), "rounding"
        self.weights: dict[str, Weights] = {}

    def step(self, node: Node, inputs: list[Floats]) -> Floats:
        real = [x[: len(x) // 2] for x in inputs]
        rough = [x[len(x) // 2 :] for x in inputs]
        if not node.weighted:
            return self._joined(node, compute(node, real), compute(node, rough))
        assert node.kernel is not None and node.bias is not None
        y = weigh(node, real[0], node.kernel, node.bias)
        in_grid = self.grid[node.inputs[0]]
        weights = self._weights(node, real[0], rough[0], in_grid)
        kernel, unit = weights.real(), float(in_grid.scale[0])
        bias = np.asarray(weights.bias * (unit * weights.grid.scale), np.float32)
        y_rough = weigh(node, rough[0], kernel, bias)
        if self.options.correct:
            axes = tuple(range(y.ndim - 1))
            shift = np.asarray((y.astype(np.float64) - y_rough).mean(axis=axes), np.float32)
            bias = bias + shift
            weights.bias = bias_integers(bias, unit, weights.grid, in_grid.bits)
            y_rough = weigh(node, rough[0], kernel, np.asarray(weights.bias * (unit * weights.grid.scale), np.float32))
        self.weights[node.name] = weights
        self.tell(self.what, len(self.weights), self.layers)
        return self._joined(node, activate(node, y), activate(node, y_rough))

    def _joined(self, node: Node, real: Floats, rough: Floats) -> Floats:
        grid = self.grid.get(node.name)
        return np.concatenate([real, rough if grid is None else grid.fake(rough)])

    def _weights(self, node: Node, real: Floats, rough: Floats, in_grid: Grid) -> Weights:
        assert node.kernel is not None and node.bias is not None
        kind = self.kinds.get(node.name, "8")
        matrix = node.kernel.reshape(-1, node.channels)
        scale = weight_scale(matrix, kind) if kind == "8" else best_scale(matrix, kind)
        unit = float(in_grid.scale[0])
        plain = node.op != "depthwise" and node.attrs.get("groups", 1) == 1
        if self.options.rounding == "nearest" or kind == "8" or not plain:
            scale = roomy(scale, node.bias, unit)
            values = nearest(matrix, scale, kind)
        else:
            hessian, target = self._moments(node, matrix, real, rough)
            scale = roomy(best_scale(np.asarray(target, np.float32), kind, np.diag(hessian)), node.bias, unit)
            values = gptq(target, scale, kind, hessian)
            if self.options.rounding == "descent":
                values, scale = descent(target, scale, kind, hessian, values)
                scale = roomy(scale, node.bias, unit)
        grid = weight_grid(scale, kind)
        bias = bias_integers(node.bias, unit, grid, in_grid.bits)
        return Weights(values.reshape(node.kernel.shape), grid, bias)

    def _moments(self, node: Node, matrix: Floats, real: Floats, rough: Floats) -> tuple[Matrix, Matrix]:
        """H of the quantized inputs, and the weights to round."""
        size = len(matrix)
        hessian, wanted = np.zeros((size, size)), np.zeros(matrix.shape)
        for start in range(0, len(real), CHUNK):
            x = columns(node, rough[start : start + CHUNK])
            hessian += x.T @ x
            if self.options.compensate:
                wanted += x.T @ (columns(node, real[start : start + CHUNK]) @ matrix)
        if not self.options.compensate:
            return hessian, matrix.astype(np.float64)
        return hessian, compensated(matrix, hessian, wanted)
