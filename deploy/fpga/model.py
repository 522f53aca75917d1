"""
The accelerator in numpy: every memory, every instruction, bit for bit, and the cycles of the array.

It executes the encoded program as `kernels/rtl` does and knows nothing of networks.  Its cycles are those of the
computation alone, worked out by the array's rules; what the bus takes beside them only the RTL can tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from deploy.fpga import isa
from deploy.fpga.network import round_twice

#: To read and decode an instruction, and from a layer's last step until its last value is written.
CONV_OVERHEAD = 43
CONV_OVERHEAD_RESIDUAL = 49


@dataclass
class Machine:
    """
    Attributes:
        memory: uint8, what the bus reaches; `bases` says where MODEL, INPUT and OUTPUT lie in it.
    """

    memory: NDArray[np.uint8]
    bases: dict[isa.Base, int]
    cycles: int = 0
    activations: NDArray[np.int8] = field(
        default_factory=lambda: np.zeros((isa.ACTIVATION_ROWS, isa.BANKS, isa.CHANNELS), np.int8)
    )
    weights: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((isa.WEIGHT_WORDS, 32), np.uint8))
    taps: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(isa.TAPS, np.uint64))
    tables: NDArray[np.int64] = field(default_factory=lambda: np.zeros((isa.TABLE_SETS, 2, 256), np.int64))

    def run(self, offset: int, words: int) -> None:
        """Execute the program of `words` 64-bit words at MODEL + `offset`."""
        start = self.bases[isa.Base.MODEL] + offset
        for instruction in isa.decode(self.memory[start : start + words * isa.BEAT].tobytes()):
            if isinstance(instruction, isa.Store):
                self._store(instruction)
            elif isinstance(instruction, isa.Load):
                self._load(instruction)
            elif isinstance(instruction, isa.Conv):
                self._conv(instruction)
            else:
                return

    def _bytes(self, move: isa.Load) -> NDArray[np.uint8]:
        start = self.bases[isa.Base(move.base)] + move.offset
        return self.memory[start : start + move.beats * isa.BEAT]

    def _load(self, load: isa.Load) -> None:
        data = self._bytes(load)
        if load.memory == isa.Memory.WEIGHTS:
            self.weights.reshape(-1, isa.BEAT)[load.to : load.to + load.beats] = data.reshape(-1, isa.BEAT)
        elif load.memory == isa.Memory.TAPS:
            self.taps[load.to : load.to + load.beats] = data.view("<u8")
        elif load.memory == isa.Memory.TABLES:
            self.tables.reshape(-1)[load.to : load.to + load.beats] = data.view("<i8")
        else:
            row, bank = self._places(load)
            self.activations[row, bank] = data.view(np.int8).reshape(-1, isa.CHANNELS)

    def _store(self, store: isa.Store) -> None:
        row, bank = self._places(store)
        self._bytes(store)[:] = self.activations[row, bank].view(np.uint8).reshape(-1)

    @staticmethod
    def _places(move: isa.Load) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        group, position = np.divmod(np.arange(move.beats), move.positions)
        return move.to + group * move.rows + position // isa.BANKS, position % isa.BANKS

    def _at(self, row: int, positions: NDArray[np.int64]) -> NDArray[np.int8]:
        rows = (row + positions // isa.BANKS) % isa.ACTIVATION_ROWS
        values: NDArray[np.int8] = self.activations[rows, positions % isa.BANKS]
        return values

    def _conv(self, conv: isa.Conv) -> None:
        self.cycles += cycles(conv)
        walked = np.arange(conv.position_tiles * isa.PIXELS)
        y, x = np.divmod(walked, conv.width)
        written = (y < conv.out_height) & (x < conv.out_width)
        taps = [isa.Tap.decode(int(word)) for word in self.taps[conv.first_tap : conv.first_tap + conv.taps]]
        if conv.split:
            place = ((y & 1) * 2 + (x & 1)) * conv.out_plane + (y >> 1) * conv.out_pitch + (x >> 1)
        else:
            place = y * conv.out_pitch + x
        at = place[written]
        gathered = None if conv.diagonal else self._gather(conv, taps, walked, y, x, 0)
        for tile in range(conv.channel_tiles):
            start = conv.weights + tile * conv.tile_words
            words = self.weights[start : start + conv.tile_words]
            weights = _unpack(conv, words[isa.PARAMETER_WORDS :])
            if gathered is None:
                lanes = self._gather(conv, taps, walked, y, x, tile)  # [positions, steps, 8]
                products = lanes * weights.reshape(-1, isa.CHANNELS, isa.DEPTH).sum(axis=2)  # one of four is not zero
                acc = products.max(axis=1) if conv.maximum else products.sum(axis=1)
            else:
                acc = gathered @ weights.transpose(0, 2, 1).reshape(-1, isa.CHANNELS)
            out = self._finish(conv, acc.astype(np.int64), words, tile, walked)[written]
            if not conv.binarize:
                self.activations[conv.out_row + tile * conv.out_rows + (at >> 4), at % isa.BANKS] = out
                continue
            reached = out >= words[2, 16:].view("<i2")
            row, byte = conv.out_row + tile // 8 * conv.out_rows + (at >> 4), tile % 8
            if byte == 0:
                self.activations[row, at % isa.BANKS] = 0
            self.activations.view(np.uint8)[row, at % isa.BANKS, byte] = np.packbits(reached, 1, "little")[:, 0]

    def _gather(
        self,
        conv: isa.Conv,
        taps: list[isa.Tap],
        walked: NDArray[np.int64],
        y: NDArray[np.int64],
        x: NDArray[np.int64],
        tile: int,
    ) -> NDArray[np.float64]:
        """[positions, steps * depth], or [positions, steps, 8] where diagonal; sums are far below 2^53."""
        parts = []
        for tap in taps:
            inside = (y >= tap.first_y) & (y <= tap.last_y) & (x >= tap.first_x) & (x <= tap.last_x)
            if conv.diagonal:
                values = self._at(conv.in_row + tile * conv.in_rows, walked + tap.offset)
                parts.append(np.where(inside[:, None], values, conv.pad)[:, None, :])
                continue
            for step in range(conv.depth_steps):
                values = self._at(conv.in_row + (step >> 1) * conv.in_rows, walked + tap.offset)
                half = values[:, 4 * (step & 1) : 4 * (step & 1) + 4]
                if conv.binary:
                    parts.append(np.where(inside[:, None], _signs(half.view(np.uint8)), 0))
                else:
                    parts.append(np.where(inside[:, None], half, conv.pad))
        return np.concatenate(parts, axis=1).astype(np.float64)

    def _finish(
        self,
        conv: isa.Conv,
        acc: NDArray[np.int64],
        head: NDArray[np.uint8],
        tile: int,
        walked: NDArray[np.int64],
    ) -> NDArray[np.int8]:
        multiplier = head[0].view("<u4").astype(np.int64)
        bias = head[1].view("<i4").astype(np.int64)
        shift = -head[2, : isa.CHANNELS].astype(np.int64)
        factor = head[2, isa.CHANNELS : 2 * isa.CHANNELS].astype(np.int64)
        total = acc * factor + bias
        if conv.once:
            scaled = (total * multiplier + (np.int64(1) << (30 - shift))) >> (31 - shift)
        else:
            scaled = round_twice(total, multiplier, shift)
        own: NDArray[np.int64] = np.clip(scaled + conv.zero_point, conv.least, conv.most)
        if not conv.residual:
            return own.astype(np.int8)
        other = self._at(conv.residual_row + tile * conv.residual_rows, walked).astype(np.int64)
        tables = self.tables[conv.sum_set]
        product = tables[0][own + 128] + tables[1][other + 128]
        high = (product + (1 << 30)) >> 31
        summed = round_twice(high, 1 << 31, np.int64(-conv.sum_shift))
        limited: NDArray[np.int64] = np.clip(summed + conv.sum_zero_point, conv.sum_least, conv.sum_most)
        return limited.astype(np.int8)


def _unpack(conv: isa.Conv, words: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Weights [steps without the one that reads what is added, 8, depth]."""
    steps = conv.taps * conv.depth_steps
    if conv.binary:
        return _signs(words[:steps].reshape(steps, isa.CHANNELS, 4))
    values = words.reshape(-1).view(np.int8)
    if conv.nibbles:
        values = np.stack([values << 4, values], axis=-1).reshape(-1) >> 4
    return values.reshape(-1, isa.CHANNELS, isa.DEPTH)[:steps].astype(np.float64)


def _signs(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    """-1 for a bit of 0 and 1 for one of 1, the lowest first."""
    return np.unpackbits(values, axis=-1, bitorder="little").astype(np.float64) * 2 - 1


def cycles(conv: isa.Conv) -> int:
    """Cycles of the array for one instruction: a tile takes a cycle a step, but no less than its PIXELS to drain."""
    tile = max(conv.steps, isa.PIXELS)
    head = conv.steps + isa.PARAMETER_WORDS
    rest = (conv.position_tiles - 1) * tile
    overhead = CONV_OVERHEAD_RESIDUAL if conv.residual else CONV_OVERHEAD
    return overhead + head + rest + (conv.channel_tiles - 1) * (max(head, isa.PIXELS) + rest)
