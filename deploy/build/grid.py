"""
The integer grids of the file: ``real = scale * (q - zero_point)``, q an integer in [low, high].

Training, post-training quantization and the writer share these; the limits are those of TFLite's integer kernels.
Activations of 8 bits are asymmetric and per tensor, of 16 bits symmetric; weights are symmetric with one scale for each
output channel; biases are int32 (int64 where activations have 16 bits) on ``input scale * weight scale``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.build.graph import Floats
from deploy.errors import BuildError

WEIGHT_LIMITS = {"8": (-127, 127), "4": (-7, 7), "2": (-2, 1), "ternary": (-1, 1)}
"""Name of a weight grid -> its lowest and highest integer.  Ternary and 2 both take two bits."""
_BITS = {"8": 8, "4": 4, "2": 2, "ternary": 2}


@dataclass(frozen=True)
class Grid:
    """
    Attributes:
        scale: float32, [1] for a whole tensor or [C] per output channel, each > 0 and finite.
        zero_point: in [low, high].
        bits: of the integers as the file stores them: 2, 4, 8 or 16.
        low, high: what values may be.
    """

    scale: Floats
    zero_point: int
    bits: int
    low: int
    high: int

    def quantize(self, values: Floats) -> NDArray[np.int32]:
        """Nearest integers; values [..., C] where the grid is per channel."""
        steps = np.rint(values / self.scale) + self.zero_point
        return np.asarray(np.clip(steps, self.low, self.high), np.int32)

    def dequantize(self, integers: NDArray[np.signedinteger]) -> Floats:
        return np.asarray((integers.astype(np.float32) - np.float32(self.zero_point)) * self.scale, np.float32)

    def fake(self, values: Floats) -> Floats:
        """What is left of `values` once they have been on the grid."""
        steps = np.rint(values / self.scale)
        np.clip(steps, self.low - self.zero_point, self.high - self.zero_point, out=steps)
        return np.asarray(steps * self.scale, np.float32)

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest real value of a per-tensor grid."""
        scale = float(self.scale[0])
        return (self.low - self.zero_point) * scale, (self.high - self.zero_point) * scale


def activation_grid(low: float, high: float, bits: int = 8) -> Grid:
    """
    The grid for activations in [low, high]; real 0 always lies on it.

    Args:
        bits: 8, asymmetric, or 16, symmetric with zero point 0.

    Raises:
        BuildError: a limit is not finite, or low > high.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise BuildError(f"activations in [{low:.4g}, {high:.4g}] have no grid: NaN or infinite values in the model")
    low, high = min(low, 0.0), max(high, 0.0)
    if bits == 16:
        top = max(-low, high)
        return Grid(_scale(top / 32767), 0, 16, -32768, 32767)
    scale = _scale((high - low) / 255)
    zero_point = int(np.clip(np.rint(-128 - low / float(scale[0])), -128, 127))
    return Grid(scale, zero_point, 8, -128, 127)


SOFTMAX = Grid(np.array([1 / 256], np.float32), -128, 8, -128, 127)
SOFTMAX_16 = Grid(np.array([1 / 32768], np.float32), 0, 16, -32768, 32767)
"""Where TFLite's integer softmax puts its output, always."""


def weight_grid(scale: Floats, kind: str = "8") -> Grid:
    """
    Args:
        scale: [C], or [1] for a whole tensor.
        kind: one of `WEIGHT_LIMITS`.
    """
    low, high = WEIGHT_LIMITS[kind]
    return Grid(np.atleast_1d(np.asarray(scale, np.float32)), 0, _BITS[kind], low, high)


def weight_scale(matrix: Floats, kind: str = "8") -> Floats:
    """The scales [C] with which the largest weight of each column of [K, C] just fits; 1 for a column of zeros."""
    low, high = WEIGHT_LIMITS[kind]
    scale = np.maximum(matrix.max(axis=0) / high, matrix.min(axis=0) / low)
    return _positive(scale)


def _scale(value: float) -> Floats:
    return _positive(np.array([value]))


def _positive(scale: NDArray[np.floating]) -> Floats:
    """Any scale will do where there is nothing but zeros; denormal ones would lose their digits in arithmetic."""
    single = np.asarray(scale, np.float32)
    return np.where(single > np.finfo(np.float32).tiny, single, np.float32(1))
