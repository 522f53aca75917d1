"""
The Raspberry Pi 5's power management chip, asked through the firmware's mailbox.

``vcgencmd pmic_read_adc`` prints current and voltage of twelve rails; this asks the same by the ioctl that the program
uses, as starting a program for each sample would load the very board that is measured.  Words of the message, each 32
bits: its bytes, 0, the tag GET_GENCMD_RESULT, 4096 (the room for the answer), 0, 0 (the error), then the command's text
and an end tag (raspberrypi/utils, vcgencmd.c).  The user must be in the group ``video``.

The sum of the rails is what the processor and its memory take: USB, HATs and NVMe hang on 5 V before the chip.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from devices.protocol.meter import Rail, Sample, Unreadable

_TAG = 0x00030080
_ROOM = 4096
_HEAD = struct.Struct("=6I")
_DEVICES = ("dev/vcio_gencmd", "dev/vcio")
_LINE = re.compile(r"^\s*(\w+?)_([AV])\s+(current|volt)\(\d+\)=(-?[\d.]+)([AV])\s*$", re.MULTILINE)
PERIOD_S = 0.05  # an answer takes the firmware a millisecond or two, which the model does not get

Ask = Callable[[str], str]


class Pmic:
    """All rails at once, as the firmware tells of them."""

    period_s = PERIOD_S

    def __init__(self, ask: Ask) -> None:
        """
        Raises:
            OSError, ValueError: as `read`.
        """
        self._ask = ask
        names = sorted(decode(ask("pmic_read_adc")))
        if not names:
            raise ValueError("pmic_read_adc tells of no rail")
        self.rails: Sequence[Rail] = [Rail(name, "pmic", "soc-rails", "power_mw", adds="soc-rails") for name in names]
        self._number = {name: i for i, name in enumerate(names)}

    def read(self) -> list[Sample]:
        before = time.monotonic_ns()
        answer = self._ask("pmic_read_adc")
        t_ns = (before + time.monotonic_ns()) // 2
        return [Sample(t_ns, self._number[name], mw) for name, mw in decode(answer).items() if name in self._number]


def decode(answer: str) -> dict[str, float]:
    """
    Power in mW of each rail that has a current and a voltage in the answer; paired by name, never by order.

    EXT5V and BATT have a voltage alone: what they carry is not known.
    """
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for name, kind, _, value, unit in _LINE.findall(answer):
        if kind == unit:
            values[kind][name] = float(value)
    return {name: amps * values["V"][name] * 1000 for name, amps in values["A"].items() if name in values["V"]}


def encode(command: str) -> bytes:
    """The message that asks for `command`; ASCII."""
    size = _HEAD.size + _ROOM + 4
    head = _HEAD.pack(size, 0, _TAG, _ROOM, 0, 0)
    return (head + command.encode("ascii") + b"\0").ljust(size, b"\0")


def answer_of(message: bytes) -> str:
    """
    The text in an answered message.

    Raises:
        ValueError: the firmware says that the command failed, or does not know it.
    """
    error = _HEAD.unpack_from(message)[5]
    said = message[_HEAD.size :].split(b"\0", 1)[0].decode("ascii", "replace")
    if error or said.startswith("error="):
        raise ValueError(f"the firmware answers error {error}: {said[:80]!r}")
    return said


class Mailbox:
    """``/dev/vcio``, open."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: not there, or not allowed.
        """
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def ask(self, command: str) -> str:
        import fcntl

        message = bytearray(encode(command))
        # _IOWR(100, 0, char *): the size in it is that of a pointer.
        fcntl.ioctl(self._fd, 0xC0000000 | struct.calcsize("P") << 16 | 100 << 8, message)
        return answer_of(bytes(message))


def find(root: Path, open_: Callable[[Path], Ask] = lambda path: Mailbox(path).ask) -> tuple[
    list[Pmic], list[Unreadable]
]:  # fmt: skip
    """
    The chip, on a Raspberry Pi 5; below `root`, which is ``/`` but for tests.

    Args:
        open_: gives what asks the firmware.
    """
    try:
        model = (root / "proc/device-tree/model").read_text(errors="replace")
    except OSError:
        return [], []
    if not re.match(r"Raspberry Pi (5|500|Compute Module 5)\b", model):
        return [], []
    path = next((root / name for name in _DEVICES if (root / name).exists()), None)
    if path is None:
        return [], [Unreadable("pmic", "/dev/vcio", "is not there")]
    try:
        return [Pmic(open_(path))], []
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        return [], [Unreadable("pmic", str(path), reason or str(error))]
