"""What lies where in the memory that the accelerator's master reaches, and how tensors get in and out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.fpga.compiler import Port, Segment
from deploy.fpga.isa import Base
from deploy.fpga.layout import NOWHERE
from deploy.fpga.network import Network

_PAGE = 4096


@dataclass(frozen=True)
class Placed:
    """
    A segment with addresses.

    Attributes:
        bases: byte address of MODEL, INPUT and OUTPUT.
        size: of a memory that begins at 0 and holds them all.
    """

    segment: Segment
    network: Network
    bases: dict[Base, int]
    size: int

    def install(self, memory: NDArray[np.uint8]) -> None:
        """Write the weights and programs."""
        start = self.bases[Base.MODEL]
        memory[start : start + len(self.segment.image)] = np.frombuffer(self.segment.image, np.uint8)

    def put(self, memory: NDArray[np.uint8], values: Mapping[int, NDArray[np.int8]]) -> None:
        """Write the inputs; `values`: tensor -> int8 of any shape with its number of elements."""
        for port in self.segment.inputs:
            gather = port.layout.gather()
            flat = np.asarray(values[port.tensor], np.int8).reshape(-1)
            self._span(memory, port, Base.INPUT)[:] = np.where(gather == NOWHERE, np.int8(port.pad), flat[gather]).view(
                np.uint8
            )

    def get(self, memory: NDArray[np.uint8]) -> dict[int, NDArray[np.int8]]:
        """Read the outputs: tensor -> int8 in its shape."""
        values = {}
        for port in self.segment.outputs:
            gather = port.layout.gather()
            shape = self.network.tensors[port.tensor].shape
            out = np.empty(int(np.prod(shape)), np.int8)
            inside = gather != NOWHERE
            out[gather[inside]] = self._span(memory, port, Base.OUTPUT).view(np.int8)[inside]
            values[port.tensor] = out.reshape(shape)
        return values

    def _span(self, memory: NDArray[np.uint8], port: Port, base: Base) -> NDArray[np.uint8]:
        start = self.bases[base] + port.offset
        return memory[start : start + port.layout.groups * port.layout.positions * 8]


def place(segment: Segment, network: Network, start: int = _PAGE) -> Placed:
    """Give a segment addresses, each part on a page of its own."""
    bases, at = {}, start
    sizes = ((Base.MODEL, len(segment.image)), (Base.INPUT, segment.input_bytes), (Base.OUTPUT, segment.output_bytes))
    for base, size in sizes:
        bases[base] = at
        at = -(-(at + size) // _PAGE) * _PAGE
    return Placed(segment, network, bases, at)
