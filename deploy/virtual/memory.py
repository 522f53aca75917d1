"""
The file that a Zynq's memory is, and what of it belongs to a snapshot.

QEMU would write all of that memory into a snapshot, and read a gigabyte anew each time for a guest that uses a tenth of
it.  So it is told to leave shared memory alone, and what is not zero is kept in a file beside the disk.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from deploy.errors import VirtualError
from deploy.virtual.qmp import Qmp

FILE = Path("memory")  # in the board's folder
CLEAN = Path("memory.clean")  # as it was when the snapshot was written: each block behind its number, 8 bytes
_BLOCK = 65536
_ZEROS = bytes(_BLOCK)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


def leave_alone(qmp: Qmp) -> None:
    """Snapshots are without the memory from now on."""
    qmp.run("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])


def save() -> None:
    """Keep the memory as it is in `CLEAN`.  Nobody may write to it meanwhile."""
    staging = CLEAN.with_suffix(".new")
    with FILE.open("rb") as memory, staging.open("wb") as kept:
        fd, end, at = memory.fileno(), os.fstat(memory.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) // _BLOCK * _BLOCK
            except OSError:
                break  # a hole to the end
            block = os.pread(fd, _BLOCK, at)
            if block != _ZEROS[: len(block)]:
                kept.write((at // _BLOCK).to_bytes(8, "little") + block)
            at += _BLOCK
    staging.replace(CLEAN)


def restore() -> None:
    """
    Make the memory what it is in `CLEAN`; whoever maps it sees that.

    Raises:
        VirtualError: the file system cannot.
    """
    with FILE.open("rb+") as memory, CLEAN.open("rb") as kept:
        fd = memory.fileno()
        size = ctypes.c_int64(os.fstat(fd).st_size)
        if _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(0), size):
            raise VirtualError(f"{FILE.absolute()}: {os.strerror(ctypes.get_errno())}")
        while number := kept.read(8):
            os.pwrite(fd, kept.read(_BLOCK), int.from_bytes(number, "little") * _BLOCK)
