"""Reading sysfs: whole small files, often."""

from __future__ import annotations

import errno
import functools
import os
from pathlib import Path

_OFF = (errno.ENODATA, errno.EAGAIN)  # the channel is switched off, or its conversion not done
# A bus may fail once; a chip that was unplugged fails each time.
_GLITCH = (errno.EIO, errno.EREMOTEIO, errno.ENXIO, errno.ETIMEDOUT, errno.EBUSY)
PATIENCE = 10  # glitches in a row


@functools.cache
def _sysfs_device() -> int:
    try:
        return os.stat("/sys/class").st_dev
    except OSError:
        return -1


class Value:
    """
    An integer in a file.  The file stays open, as opening costs several times what reading does; sysfs makes the value
    anew at each read from the start.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._fd = -1
        self._glitches = 0
        # A file that lost its name was taken away or replaced: never in sysfs, often in a tree of files.
        self._may_move = True

    def read(self) -> int | None:
        """
        What the file says now; None while it says nothing (ENODATA: the channel is off), or the bus failed.

        Raises:
            OSError: it is gone, and the driver with it; or the bus failed `PATIENCE` times in a row.
            ValueError: it says something that is no integer.
        """
        try:
            if self._fd < 0 or (self._may_move and os.fstat(self._fd).st_nlink == 0):
                self.close()
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                self._may_move = os.fstat(self._fd).st_dev != _sysfs_device()
            text = os.pread(self._fd, 64, 0)
        except OSError as error:
            if error.errno in _OFF:
                return None
            self._glitches += error.errno in _GLITCH
            if error.errno in _GLITCH and self._glitches < PATIENCE:
                return None
            raise OSError(error.errno, error.strerror, self.path) from None
        self._glitches = 0
        try:
            return int(text)
        except ValueError:
            shown = text.decode("ascii", "replace")
            raise ValueError(f"{self.path} says {shown!r}") from None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def text(path: Path) -> str | None:
    """The file's text without blanks at its ends; None if it cannot be read."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def number(path: Path) -> float | None:
    """The number in the file; None if there is none."""
    found = text(path)
    try:
        return float(found) if found else None
    except ValueError:
        return None


def integer(path: Path) -> int | None:
    """The integer in the file; None if there is none."""
    found = number(path)
    return int(found) if found is not None and found.is_integer() else None


def origin(device: Path) -> str:
    """
    ``stub`` if the chip behind `device` is one that the kernel's i2c-stub pretends, else ``measured``.

    Args:
        device: the I2C device's folder, or a link to it.
    """
    try:
        place = device.resolve()
    except OSError:
        return "measured"
    for folder in (place, *place.parents):
        if (text(folder / "name") or "").startswith("SMBus stub"):
            return "stub"
    return "measured"
