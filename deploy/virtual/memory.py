"""The file that a Zynq's memory is: what only reading has filled with zeros is given back."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

FILE = Path("memory")  # in the board's folder
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


def trim(path: Path) -> None:
    """
    Let go of the pages of zeros that lie over holes of the file.

    A snapshot reads all of the memory, and each page that it reads is one of this machine's memory from then on, for
    each who maps the file: 1 GB for a guest that uses 100 MB.  Nobody may write meanwhile.  Where the file system
    cannot tell, nothing happens.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        end = os.fstat(fd).st_size
        at = os.lseek(fd, 0, os.SEEK_HOLE)
        while at < end:
            try:
                data = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                data = end  # a hole to the end
            _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, ctypes.c_int64(at), ctypes.c_int64(data - at))
            at = os.lseek(fd, data, os.SEEK_HOLE) if data < end else end
    finally:
        os.close(fd)
