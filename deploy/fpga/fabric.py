"""The programmable logic of a board, simulated: the accelerator's registers, and buffers with a copy on each side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.fpga.simulator import Bus, Register, Simulation

MEMORY = 1 << 26  # bytes that all buffers share
_PAGE = 4096
_LOOK = 5_000  # cycles that pass while software looks at the status of a running program


@dataclass(frozen=True)
class Buffer:
    """
    Attributes:
        start: address, as the accelerator sees it.
        host: uint8 [size], as software sees it: what is not flushed or invalidated is old on the other side.
    """

    start: int
    host: NDArray[np.uint8]


class Fabric:
    """
    Args:
        memory: bytes for all buffers together.

    Attributes:
        simulation: the accelerator.

    Raises:
        KernelsMissing: as `simulator.library`.
    """

    def __init__(self, memory: int = MEMORY, bus: Bus | None = None) -> None:
        self.simulation = Simulation(memory, bus or Bus())
        self._free = _PAGE

    def read(self, register: int) -> int:
        """A register; looking at the status lets a running program go on."""
        if register == Register.STATUS:
            self.simulation.wait(_LOOK if self.simulation.read(register) & 1 else 0)
        return self.simulation.read(register)

    def write(self, register: int, value: int) -> None:
        self.simulation.write(register, value)

    def allocate(self, shape: Any, dtype: Any) -> Buffer:
        """
        Memory for an array.

        Raises:
            MemoryError: there is no room left.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start, self._free = self._free, -(-(self._free + size) // _PAGE) * _PAGE
        if self._free > len(self.simulation.memory):
            raise MemoryError(f"{size} bytes do not fit the simulated memory")
        return Buffer(start, np.zeros(size, np.uint8))

    def flush(self, buffer: Buffer, offset: int = 0, size: int | None = None) -> None:
        """Let the accelerator see what software wrote."""
        end = offset + (len(buffer.host) - offset if size is None else size)
        self.simulation.memory[buffer.start + offset : buffer.start + end] = buffer.host[offset:end]

    def invalidate(self, buffer: Buffer, offset: int = 0, size: int | None = None) -> None:
        """Let software see what the accelerator wrote."""
        end = offset + (len(buffer.host) - offset if size is None else size)
        buffer.host[offset:end] = self.simulation.memory[buffer.start + offset : buffer.start + end]
