"""How weights and tables are packed for the array, and when and where they come onto the chip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.fpga import isa
from deploy.fpga.network import Layer

AHEAD = 3  # layers whose weights may be on their way before they are needed
NEVER = 128  # a threshold that no int8 reaches


def pack_weights(layer: Layer) -> NDArray[np.uint8]:
    """uint8 [channel tiles, words, 32]: the words of parameters, then those of the steps, in the order of the array."""
    channels, taps, depth = layer.weights.shape
    tiles = -(-channels // isa.CHANNELS)
    products = isa.BINARY_DEPTH if layer.binary else isa.DEPTH
    full = np.zeros((tiles * isa.CHANNELS, taps, -(-depth // products) * products), np.int8)
    full[:channels, :, :depth] = layer.weights
    if layer.binary:
        full[:, :, depth::2] = 1  # channels that are not there are 0 bits: half of them agree, and nothing is added
        bits = np.packbits(full > 0, axis=2, bitorder="little").reshape(tiles, isa.CHANNELS, taps, -1, 4)
        steps = bits.transpose(0, 2, 3, 1, 4).reshape(tiles, -1, 32)
    elif layer.diagonal:
        lanes = np.zeros((tiles, taps, isa.CHANNELS, isa.DEPTH), np.int8)
        by_tile = full[:, :, 0].reshape(tiles, isa.CHANNELS, taps)
        for lane in range(isa.CHANNELS):
            lanes[:, :, lane, lane % isa.DEPTH] = by_tile[:, lane]
        steps = lanes.reshape(tiles, taps, 32).view(np.uint8)
    else:
        groups = full.reshape(tiles, isa.CHANNELS, taps, -1, isa.DEPTH)
        steps = groups.transpose(0, 2, 3, 1, 4).reshape(tiles, -1, 32).view(np.uint8)
    tail = np.zeros((tiles, 1 if layer.sum else 0, 32), np.uint8)  # the step that reads what is added
    steps = np.concatenate([steps, tail], axis=1)
    if layer.nibbles:
        steps = np.pad(steps, ((0, 0), (0, steps.shape[1] % 2), (0, 0)))
        steps = (steps[:, :, ::2] & np.uint8(15) | steps[:, :, 1::2] << np.uint8(4)).reshape(tiles, -1, 32)
    return np.concatenate([_parameters(layer, tiles), steps], axis=1)


def _parameters(layer: Layer, tiles: int) -> NDArray[np.uint8]:
    """uint8 [tiles, PARAMETER_WORDS, 32].  A channel that is not there reaches no threshold."""
    channels = len(layer.weights)

    def each(values: NDArray[np.int64] | None, otherwise: int, kind: str) -> NDArray[np.uint8]:
        padded = np.full(tiles * isa.CHANNELS, otherwise, np.int64)
        padded[:channels] = otherwise if values is None else values
        return padded.astype(kind).reshape(tiles, isa.CHANNELS).view(np.uint8)

    finals = [each(-layer.shift, 0, "u1"), each(layer.factor, 1, "u1"), each(layer.thresholds, NEVER, "<i2")]
    return np.stack(
        [each(layer.multiplier, 0, "<u4"), each(layer.bias, 0, "<i4"), np.concatenate(finals, axis=1)], axis=1
    )


def parts_of(packed: NDArray[np.uint8], binarized: bool = False) -> list[tuple[int, NDArray[np.uint8]]]:
    """
    Channel tiles that go together: half of the memory at most, so that the next ones may come meanwhile.

    Args:
        binarized: they write bits, so that those of one word belong together.
    """
    unit = isa.BITS // isa.CHANNELS if binarized else 1
    most = max(1, isa.WEIGHT_WORDS // 2 // packed.shape[1] // unit) * unit
    if packed.shape[0] * packed.shape[1] <= isa.WEIGHT_WORDS // 2:
        most = packed.shape[0]
    return [(start, packed[start : start + most]) for start in range(0, len(packed), most)]


def pack_tables(layer: Layer) -> bytes:
    """Both tables of the addition that the layer ends in."""
    assert layer.sum is not None
    return layer.sum.tables.astype("<i8").tobytes()


@dataclass(frozen=True)
class Due:
    """A load that belongs right before the layer number `before`, for the layer number `conv`."""

    before: int
    conv: int
    load: isa.Load


def last_of(owners: list[int], layer: int) -> int:
    """The last instruction that is a part of `layer`."""
    return max(i for i, owner in enumerate(owners) if owner == layer)


def ring(sizes: list[int], offsets: list[int]) -> tuple[list[int], list[Due]]:
    """
    Places of the weights, and before which layer each is loaded.

    A layer's weights may come as soon as the layers have ended whose words they overwrite.
    """
    places: list[int] = []
    due: list[Due] = []
    at = 0
    for i, size in enumerate(sizes):
        if at + size > isa.WEIGHT_WORDS:
            at = 0
        before = max(0, i - AHEAD, due[-1].before if due else 0)
        for j in range(i - 1, before - 1, -1):
            if places[j] < at + size and at < places[j] + sizes[j]:
                before = j + 1
                break
        slices = 32 // isa.BEAT
        load = isa.Load(memory=isa.Memory.WEIGHTS, beats=size * slices, offset=offsets[i], to=at * slices)
        places.append(at)
        due.append(Due(before, i, load))
        at += size
    return places, due
