"""
The accelerator's instruction stream: what an instruction holds, and how it lies in memory.

An instruction is 64 bytes, eight little-endian 64-bit words; `kernels/rtl/README.md` explains the fields and
`kernels/rtl/isa.sv` names the same bits.  A change of any of them raises `VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, TypeVar

VERSION = 2
PIXELS, CHANNELS, DEPTH = 12, 8, 4  # output positions, output channels and products of one output, in one cycle
BINARY_DEPTH = 32  # products of one output in one cycle, where inputs and weights are bits
BITS = 64  # channels in a word of the activation memory, where they are bits
BANKS = 16  # of the activation memory; a power of two, at least PIXELS
BEAT = 8  # bytes that the bus moves in one cycle
BURST = 16  # beats; the PS7's ports are AXI3 and take no longer ones
ALIGNMENT = BEAT * BURST  # of everything that is loaded or stored, so that no burst crosses 4 KiB

ACTIVATION_ROWS = 1024  # words of 8 channels in each bank
WEIGHT_WORDS = 9216  # words of CHANNELS x DEPTH weights
TAPS = 1024
TABLE_SETS = 2  # pairs of 256 entries for the residual addition
PROGRAM_WORDS = 1024
WORDS = 8  # of 64 bits in an instruction

ACCUMULATOR_BITS = 25  # signed; with the bias 32
PARAMETER_WORDS = 3  # of a channel tile, before its weights: multipliers, biases; right shifts, factors, thresholds


class Op(IntEnum):
    END = 0
    LOAD = 1
    STORE = 2
    CONV = 3


class Memory(IntEnum):
    """Where a LOAD goes; `to` counts 64-bit words there, and rows of the banks for ACTIVATIONS."""

    WEIGHTS = 0
    TAPS = 1
    TABLES = 2
    ACTIVATIONS = 3


class Base(IntEnum):
    """Which address register an offset is added to."""

    MODEL = 0
    INPUT = 1
    OUTPUT = 2


# Where each field lies: name -> (word, lowest bit, bits, signed).
_Layout = dict[str, tuple[int, int, int, bool]]
_I = TypeVar("_I", bound="Instruction")


@dataclass(frozen=True)
class Instruction:
    """
    Attributes:
        wait_loads: how many LOADs of this program must have ended before this instruction starts.
    """

    op: ClassVar[Op] = Op.END
    layout: ClassVar[_Layout] = {"wait_loads": (0, 8, 16, False)}
    wait_loads: int = 0

    def encode(self) -> bytes:
        """
        64 bytes.

        Raises:
            ValueError: a field does not fit its bits.
        """
        words = [int(self.op)] + [0] * (WORDS - 1)
        for name, (word, low, bits, signed) in self.layout.items():
            value = int(getattr(self, name))
            least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            if not least <= value <= most:
                raise ValueError(f"{type(self).__name__}.{name} = {value} is outside [{least}, {most}]")
            words[word] |= (value & ((1 << bits) - 1)) << low
        return b"".join(word.to_bytes(8, "little") for word in words)

    @classmethod
    def decode(cls: type[_I], data: bytes) -> _I:
        words = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(WORDS)]
        values = {}
        for name, (word, low, bits, signed) in cls.layout.items():
            value = words[word] >> low & ((1 << bits) - 1)
            values[name] = value - (1 << bits) if signed and value >> (bits - 1) else value
        return cls(**values)


@dataclass(frozen=True)
class End(Instruction):
    pass


@dataclass(frozen=True)
class Load(Instruction):
    """
    Bring `beats` times 8 bytes from memory, beside whatever comes next.

    Attributes:
        offset: bytes from `base`, a multiple of ALIGNMENT.
        rows, positions: for ACTIVATIONS: bank rows from one group of 8 channels to the next, positions in a group.
    """

    op: ClassVar[Op] = Op.LOAD
    layout: ClassVar[_Layout] = {
        **Instruction.layout,
        "memory": (0, 24, 2, False),
        "base": (0, 26, 2, False),
        "offset": (1, 0, 32, False),
        "beats": (1, 32, 24, False),
        "to": (2, 0, 16, False),
        "rows": (2, 16, 16, False),
        "positions": (2, 32, 16, False),
    }
    memory: int = 0
    base: int = 0
    offset: int = 0
    beats: int = 0
    to: int = 0
    rows: int = 0
    positions: int = 0


@dataclass(frozen=True)
class Store(Load):
    """Write a tensor of the activation memory to memory; `to` is its first bank row, `memory` is not used."""

    op: ClassVar[Op] = Op.STORE


@dataclass(frozen=True)
class Conv(Instruction):
    """
    One layer: for each group of CHANNELS outputs, for each PIXELS positions, over all taps and groups of DEPTH inputs.

    Attributes:
        once: round once (FULLY_CONNECTED, pooling), not twice (CONV_2D, DEPTHWISE_CONV_2D).
        diagonal: output channel c reads input channel c alone (depthwise, pooling): one step a tap.
        maximum: keep the largest product, not their sum.
        residual: add a tensor, in the last step of each tile; its weight word must be zero.
        split: write the output in four planes, by the parity of row and column.
        nibbles: weights have 4 bits, two steps in a word.
        binary: inputs and weights are bits, 1 for 1 and 0 for -1, and padding adds nothing.
        binarize: write a bit for each channel: whether it reaches its threshold.
        channel_tiles, position_tiles: how many groups of CHANNELS and of PIXELS.
        in_row, in_rows: first bank row of the input; rows from one group of 8 channels to the next.
        first_tap, taps: in the memory of taps.
        depth_steps: groups of DEPTH (binary: BINARY_DEPTH) input channels a tap; 1 where diagonal.
        weights: first word; each channel tile has `tile_words`.
        width: of the grid of positions that is walked; tile_rows, tile_columns: PIXELS // width, PIXELS % width.
        out_row, out_rows: as in_row, in_rows; where `binarize`, a group has BITS channels.
        out_pitch: positions from one output row to the next.
        out_plane: positions in one plane, where split.
        out_height, out_width: of what is written; the rest of the grid is left out.
        pad: value outside the input.
        zero_point, least, most: of the output (of the layer itself, where a residual is added).
        residual_row, residual_rows: as in_row, in_rows.
        sum_set, sum_shift, sum_zero_point, sum_least, sum_most: of the addition: its pair of tables, its right shift.
    """

    op: ClassVar[Op] = Op.CONV
    layout: ClassVar[_Layout] = {
        **Instruction.layout,
        "once": (0, 24, 1, False),
        "diagonal": (0, 25, 1, False),
        "maximum": (0, 26, 1, False),
        "residual": (0, 27, 1, False),
        "split": (0, 28, 1, False),
        "nibbles": (0, 29, 1, False),
        "binary": (0, 30, 1, False),
        "binarize": (0, 31, 1, False),
        "channel_tiles": (0, 32, 16, False),
        "position_tiles": (0, 48, 16, False),
        "in_row": (1, 0, 16, False),
        "in_rows": (1, 16, 16, False),
        "first_tap": (1, 32, 16, False),
        "taps": (1, 48, 16, False),
        "depth_steps": (2, 0, 16, False),
        "weights": (2, 16, 16, False),
        "width": (2, 32, 16, False),
        "tile_rows": (2, 48, 8, False),
        "tile_columns": (2, 56, 8, False),
        "out_row": (3, 0, 16, False),
        "out_rows": (3, 16, 16, False),
        "out_pitch": (3, 32, 16, False),
        "out_plane": (3, 48, 16, False),
        "out_height": (4, 0, 16, False),
        "out_width": (4, 16, 16, False),
        "pad": (4, 32, 8, True),
        "zero_point": (4, 40, 8, True),
        "least": (4, 48, 8, True),
        "most": (4, 56, 8, True),
        "residual_row": (5, 0, 16, False),
        "residual_rows": (5, 16, 16, False),
        "sum_set": (5, 32, 1, False),
        "sum_shift": (5, 33, 5, False),
        "sum_zero_point": (5, 40, 8, True),
        "sum_least": (5, 48, 8, True),
        "sum_most": (5, 56, 8, True),
    }
    once: int = 0
    diagonal: int = 0
    maximum: int = 0
    residual: int = 0
    split: int = 0
    nibbles: int = 0
    binary: int = 0
    binarize: int = 0
    channel_tiles: int = 1
    position_tiles: int = 1
    in_row: int = 0
    in_rows: int = 0
    first_tap: int = 0
    taps: int = 1
    depth_steps: int = 1
    weights: int = 0
    width: int = 1
    tile_rows: int = 0
    tile_columns: int = 0
    out_row: int = 0
    out_rows: int = 0
    out_pitch: int = 0
    out_plane: int = 0
    out_height: int = 1
    out_width: int = 1
    pad: int = 0
    zero_point: int = 0
    least: int = -128
    most: int = 127
    residual_row: int = 0
    residual_rows: int = 0
    sum_set: int = 0
    sum_shift: int = 0
    sum_zero_point: int = 0
    sum_least: int = -128
    sum_most: int = 127

    @property
    def steps(self) -> int:
        """Of one tile."""
        return self.taps * self.depth_steps + self.residual

    @property
    def tile_words(self) -> int:
        """Of the weight memory, for one channel tile."""
        return PARAMETER_WORDS + (-(-self.steps // 2) if self.nibbles else self.steps)


@dataclass(frozen=True)
class Tap:
    """
    One kernel position: which input an output position reads, and for which ones there is an input at all.

    Attributes:
        offset: position of the input less position of the output, in [-2^15, 2^15).
        first_y, last_y, first_x, last_x: output rows and columns (closed) whose input is no padding, in [0, 255].
    """

    offset: int
    first_y: int
    last_y: int
    first_x: int
    last_x: int

    def encode(self) -> int:
        """64 bits.  A tap that lies in the padding everywhere has first_y 1 and last_y 0."""
        spans = (self.first_y, self.last_y, self.first_x, self.last_x)
        if not -(1 << 15) <= self.offset < 1 << 15 or not all(0 <= span <= 255 for span in spans):
            raise ValueError(f"{self} does not fit")
        value = self.offset & 0xFFFF
        for i, span in enumerate(spans):
            value |= span << (16 + 8 * i)
        return value

    @classmethod
    def decode(cls, value: int) -> Tap:
        offset = (value & 0xFFFF) - (value >> 15 & 1) * (1 << 16)
        return cls(offset, *(value >> (16 + 8 * i) & 255 for i in range(4)))


_BY_OP: dict[int, type[Instruction]] = {kind.op: kind for kind in (End, Load, Store, Conv)}


def encode(program: Iterable[Instruction]) -> bytes:
    """A program as it lies in memory."""
    return b"".join(instruction.encode() for instruction in program)


def decode(data: bytes) -> list[Instruction]:
    """
    The program that `encode` made.

    Raises:
        ValueError: an operation that does not exist.
    """
    size = WORDS * BEAT
    program = []
    for start in range(0, len(data), size):
        op = data[start]
        if op not in _BY_OP:
            raise ValueError(f"instruction {start // size}: no operation {op}")
        program.append(_BY_OP[op].decode(data[start : start + size]))
    return program
