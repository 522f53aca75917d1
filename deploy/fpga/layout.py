"""Where a tensor's values lie in the activation memory, and what the taps of a layer read there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.fpga.isa import BANKS, BITS, CHANNELS, Tap

NOWHERE = -1  # in `Layout.gather`: a byte that holds no value


@dataclass(frozen=True)
class Layout:
    """
    Positions of a grid, in groups of 8 channels; in groups of 64, where each is a bit.

    Position p of a group lies in bank p % 16, so that any 12 positions in a row are read at once.  A tensor that is
    read with stride 2 is `split` in four planes by the parity of row and column: then its reader's positions lie in a
    row as well.

    Attributes:
        height, width, channels: of the tensor.
    """

    height: int
    width: int
    channels: int
    split: bool = False
    bits: bool = False

    @property
    def pitch(self) -> int:
        """Positions from one row to the next."""
        return (self.width + 1) // 2 if self.split else self.width

    @property
    def plane(self) -> int:
        """Positions of one plane."""
        return self.pitch * ((self.height + 1) // 2 if self.split else self.height)

    @property
    def positions(self) -> int:
        return self.plane * (4 if self.split else 1)

    @property
    def groups(self) -> int:
        return -(-self.channels // (BITS if self.bits else CHANNELS))

    @property
    def rows(self) -> int:
        """Rows of all banks that a group takes."""
        return -(-self.positions // BANKS)

    def position(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.split:
            return y * self.pitch + x
        place: NDArray[np.int64] = ((y & 1) * 2 + (x & 1)) * self.plane + (y >> 1) * self.pitch + (x >> 1)
        return place

    def gather(self) -> NDArray[np.int32]:
        """
        int32 [groups * positions * 8]: which value of the tensor (row by row, channels last) each byte of a LOAD or
        STORE holds, or NOWHERE.  Bits never leave the chip.
        """
        out = np.full((self.groups, self.positions, CHANNELS), NOWHERE, np.int32)
        y, x, c = np.meshgrid(
            np.arange(self.height), np.arange(self.width), np.arange(self.channels), indexing="ij", sparse=False
        )
        out[c // CHANNELS, self.position(y, x), c % CHANNELS] = (y * self.width + x) * self.channels + c
        return out.reshape(-1)

    def tap(self, dy: int, dx: int, stride: int, out_height: int, out_width: int) -> Tap:
        """The tap that reads row ``stride * y + dy`` and column ``stride * x + dx``."""
        if self.split:
            plane = ((dy & 1) * 2 + (dx & 1)) * self.plane
            offset = plane + (dy >> 1) * self.pitch + (dx >> 1)
        else:
            offset = dy * self.pitch + dx
        rows, columns = _span(dy, stride, self.height, out_height), _span(dx, stride, self.width, out_width)
        if rows is None or columns is None:
            return Tap(offset, 1, 0, 1, 0)
        return Tap(offset, *rows, *columns)


def _span(shift: int, stride: int, extent: int, count: int) -> tuple[int, int] | None:
    """First and last of `count` outputs for which ``stride * i + shift`` lies in [0, extent); None if there is none."""
    first = max(0, -(shift // stride))
    last = min(count - 1, (extent - 1 - shift) // stride)
    return (first, last) if first <= last else None
