"""
The file that a Zynq's memory is, and what of it belongs to a snapshot.

QEMU would write all of that memory into a snapshot, and read a gigabyte anew each time for a guest that uses a tenth of
it.  So it is told to leave shared memory alone, and what is not zero is kept in a file beside the disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def saved() -> Iterator[None]:
    """
    Keep the memory as it is in `CLEAN`, if the body, which writes the rest of the snapshot, ends well.  Nobody may
    write to the memory meanwhile.

    Raises:
        VirtualError: the disk is full, or fails.
    """
    staging = CLEAN.with_suffix(".new")
    try:
        with _told(), staging.open("wb") as kept:
            for number, block in _blocks():
                kept.write(number.to_bytes(8, "little") + block)
        yield
        with _told():
            staging.replace(CLEAN)
    finally:
        staging.unlink(missing_ok=True)


def _blocks() -> Iterator[tuple[int, bytes]]:
    """Those that are not zero, with their numbers."""
    with FILE.open("rb") as memory:
        fd, end, at = memory.fileno(), os.fstat(memory.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA) // _BLOCK * _BLOCK
            except OSError as error:
                if error.errno != errno.ENXIO:  # a hole to the end
                    raise
                return
            block = os.pread(fd, _BLOCK, at)
            if block != _ZEROS[: len(block)]:
                yield at // _BLOCK, block
            at += _BLOCK


def restore() -> None:
    """
    Make the memory what it is in `CLEAN`; whoever maps it sees that.

    Raises:
        VirtualError: there is none, the disk is full, or the file system cannot.
    """
    with _told(), FILE.open("rb+", buffering=0) as memory, CLEAN.open("rb") as kept:
        size = ctypes.c_int64(os.fstat(memory.fileno()).st_size)
        if _libc.fallocate(memory.fileno(), _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(0), size):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        while number := kept.read(8):
            block = kept.read(_BLOCK)
            if os.pwrite(memory.fileno(), block, int.from_bytes(number, "little") * _BLOCK) < len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VirtualError(f"{FILE.absolute()}: {error.strerror}") from None
