"""
A graph with its integers: what post-training quantization and training make, and `deploy.build.write` writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.build.graph import Floats, Graph
from deploy.build.grid import Grid

BIAS_LIMIT = 2**30
"""Half of int32 stays free for the sum of products that is added."""


@dataclass
class Binary:
    """
    What makes a node's input one bit: ``high`` where the stored integer of x >= threshold, else ``low``.

    Attributes:
        threshold: integers [in_c] in [-128, 127], of the input node's grid.
        scale: real value of one step: activations are ``scale * high`` or ``scale * low``.
    """

    threshold: NDArray[np.int32]
    scale: float = 1.0
    low: int = -1
    high: int = 1


@dataclass
class Weights:
    """
    Integers of one weighted node, its normalization folded in.

    Attributes:
        values: int8, in the layout of the node's kernel.
        grid: per output channel, or per tensor.
        bias: [out_c], on ``input scale * grid.scale``; int32, int64 where activations have 16 bits.
        binary: None unless the layer's inputs are one bit each.
        encoding: "dense", or "block": blocks of 16 (1x16) that are zero are left out of the file, which only some
            runtimes read; see `deploy.build.sparse`.
    """

    values: NDArray[np.int8]
    grid: Grid
    bias: NDArray[np.signedinteger[Any]]
    binary: Binary | None = None
    encoding: str = "dense"

    def real(self) -> Floats:
        """The weights that the integers stand for, in the layout of the kernel."""
        columns = self.values.reshape(-1, self.bias.size)
        return self.grid.dequantize(columns).reshape(self.values.shape)


@dataclass
class Quantized:
    """
    Attributes:
        graph: its nodes' kernels and norms are what was quantized, and are not written.
        grids: node -> grid of its output; a node without one has a float output.
        weights: weighted node -> integers.
        ranges: node -> lowest and highest value met in calibration; for reports.
    """

    graph: Graph
    grids: dict[str, Grid]
    weights: dict[str, Weights]
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


def bias_integers(bias: Floats, in_scale: float, grid: Grid, bits: int = 8) -> NDArray[np.signedinteger[Any]]:
    """
    A bias on ``in_scale * grid.scale``.

    Args:
        bias: [out_c], real.
        bits: of the activations; 16 makes it int64.
    """
    steps = np.rint(bias.astype(np.float64) / (np.float64(in_scale) * grid.scale.astype(np.float64)))
    if bits == 16:
        return np.clip(steps, -(2**40), 2**40).astype(np.int64)  # what 48-bit arithmetic of the 16x8 kernels takes
    return np.clip(steps, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)


def roomy(scale: Floats, bias: Floats, in_scale: float) -> Floats:
    """
    Weight scales [C], widened where a bias would not fit int32 otherwise.

    Only channels of next to no weight are concerned: their bias is many million steps of their own tiny scale.
    """
    least = np.abs(bias.astype(np.float64)) / (np.float64(in_scale) * (BIAS_LIMIT - 1))
    return np.maximum(scale, least.astype(np.float32))
