"""
Of PYNQ's API what the accelerator's backend uses, on a virtual PYNQ-Z2: Overlay, registers, allocate.

Nothing is configured by an overlay here: a process of the host (`deploy/virtual/window.py`) plays the programmable
logic behind the memory at 0x4000_0000.  Plain memory does nothing when it is written, so every write of a register
rings a bell, and waits until it was heard.  Reading is reading: the host writes there what the registers hold.

Runs in the guest, on Python 3.11 and NumPy 1.24.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
import weakref
from typing import Any

import numpy as np

__version__ = "0+deploy.virtual"
# PYNQ has no such name: what runs the programs, at which clock its cycles are meant, and what its bus does.
SIMULATED = {"source": "simulated:verilator", "clock_hz": 100_000_000, "bytes_per_cycle": 8, "latency_cycles": 40}

NAME = "accelerator_0"
REGISTERS, BUFFERS = "accelerator", "accelerator-buffer"  # of the UIO devices: board/pynq-z2.dts
BELL = 0x1000  # in the window: what follows, as words
SERVED, RUNG, HEARD, REGISTER, VALUE = range(5)
SIGN = 0x6465706C  # in SERVED: somebody hears
PATIENCE_S = 60.0  # the host may have much else to do
PAGE = 4096


class Window:
    """
    The registers, and the memory that the accelerator reaches.

    Args:
        registers: with the bell behind them.
        buffers: the memory for `allocate`; its first byte has the physical `address`.
    """

    def __init__(self, registers: mmap.mmap, buffers: mmap.mmap, address: int) -> None:
        self._words = memoryview(registers).cast("I")
        self._bell = self._words[BELL // 4 :]
        self._buffers = buffers
        self._address = address
        self._taken: list[tuple[int, int]] = []  # (start, end), in order
        if self._bell[SERVED] != SIGN:
            raise RuntimeError("nobody serves the accelerator's registers: the host has no model of it")

    def read(self, offset: int) -> int:
        return int(self._words[offset // 4])

    def write(self, offset: int, value: int) -> None:
        """Returns when the register has it."""
        bell = self._bell
        bell[REGISTER], bell[VALUE] = offset, value & 0xFFFF_FFFF
        rung = (bell[RUNG] + 1) & 0xFFFF_FFFF
        bell[RUNG] = rung
        until = time.monotonic() + PATIENCE_S
        while bell[HEARD] != rung:
            if time.monotonic() > until:
                raise RuntimeError(f"the accelerator's model has not taken a register in {PATIENCE_S:.0f} s")

    def take(self, size: int) -> int:
        """A free place of `size` bytes, at the beginning of a page."""
        size = -(-size // PAGE) * PAGE
        start = 0
        for index, (taken, end) in enumerate([*self._taken, (len(self._buffers), 0)]):
            if start + size <= taken:
                self._taken.insert(index, (start, start + size))
                return start
            start = end
        raise MemoryError(f"{size} bytes do not fit the accelerator's {len(self._buffers)} bytes of memory")

    def free(self, start: int) -> None:
        self._taken = [span for span in self._taken if span[0] != start]

    def allocate(self, shape: Any, dtype: Any) -> Buffer:
        start = self.take(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        buffer = np.ndarray.__new__(Buffer, shape, dtype, buffer=self._buffers, offset=start)
        buffer.device_address = self._address + start
        buffer._release = weakref.finalize(buffer, self.free, start)
        buffer[...] = 0
        return buffer


class Buffer(np.ndarray):
    """As pynq's PynqBuffer; QEMU has no caches, so there is nothing to flush."""

    device_address: int
    _release: Any = None

    def flush(self) -> None:
        pass

    invalidate = flush

    def freebuffer(self) -> None:
        """What is still seen of it may belong to the next."""
        if self._release is not None:
            self._release()

    close = freebuffer


class _Registers:
    def __init__(self, window: Window) -> None:
        self.read, self.write = window.read, window.write


class Overlay:
    """
    Args:
        bitfile: must be there, and is not read.
    """

    def __init__(self, bitfile: str, **_: Any) -> None:
        os.stat(bitfile)
        self.bitfile_name = bitfile
        self.ip_dict = {NAME: {"phys_addr": 0x4000_0000, "addr_range": BELL}}
        self.accelerator_0 = _Registers(window())


def allocate(shape: Any, dtype: Any = "u4", **_: Any) -> Buffer:
    return window().allocate(shape, dtype)


_window: Window | None = None


def window() -> Window:
    """This process's; the first waits until no other has the accelerator."""
    global _window
    if _window is None:
        registers, _ = _map(REGISTERS)
        buffers, address = _map(BUFFERS)
        _window = Window(registers, buffers, address)
    return _window


def _map(name: str) -> tuple[mmap.mmap, int]:
    """The memory of the UIO device called `name`, and its physical address."""
    base = "/sys/class/uio"
    for device in sorted(os.listdir(base)) if os.path.isdir(base) else ():
        if _text(f"{base}/{device}/name") == name:
            size, address = (int(_text(f"{base}/{device}/maps/map0/{what}"), 16) for what in ("size", "addr"))
            fd = os.open(f"/dev/{device}", os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)  # stays open, and with it the lock
            _lock(fd, name)
            return mmap.mmap(fd, size), address
    raise RuntimeError(f"this machine has no UIO device called {name}")


def _lock(fd: int, name: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise RuntimeError(f"another process has the {name}") from None
            time.sleep(0.05)


def _text(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
