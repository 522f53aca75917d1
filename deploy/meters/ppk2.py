"""
Nordic's Power Profiler Kit II, over its serial port; nothing of Nordic's is needed.

It sends 100,000 words a second: 14 bits of ADC, 3 of its measuring range, 6 that count words, 8 logic inputs.  Current
follows from the calibration that the kit tells of itself.  It measures current alone: power is that times the voltage
it supplies or that boards.yaml states.

Settings: ``port``, ``voltage_mv`` (800 to 5000), and ``mode``: ``ampere`` (the board has its own supply, which goes
through the kit) or ``source`` (the kit supplies the board, and is switched on by this).  Up to 1 A: no Raspberry Pi 4
or 5, no Jetson.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.protocol.meter import Meter, Rail, Sample

RATE_HZ = 100_000
PERIOD_S = 0.01  # one sample of ours holds a thousand of the kit's
COUNTS = 64
MOST_UNALIGNED = 40_000  # bytes, a tenth of a second, in which words must be seen to count up
LOST = 1e-3  # of all words: more, and the energy is not known
_START, _STOP, _POWER, _REGULATOR, _MODE, _META = 0x06, 0x07, 0x0C, 0x0D, 0x11, 0x19
_AMPERE, _SOURCE = 1, 2
_ADC_VOLTS = 1.8 / 163840
_RANGES = 5
# Nominal, where the kit's own calibration lacks a value: shunt in ohm by range, gains 1, offsets 0.
_NOMINAL = {"R": (1031.64, 101.65, 10.15, 0.94, 0.043), "GS": (1.0,) * 5, "GI": (1.0,) * 5, "O": (0.0,) * 5,
            "S": (0.0,) * 5, "I": (0.0,) * 5, "UG": (1.0,) * 5}  # fmt: skip


class Calibration:
    """What the kit says of itself: for each of five ranges seven numbers."""

    def __init__(self, text: str) -> None:
        """
        Args:
            text: the answer to GET_META_DATA, lines such as ``R0: 1003.3506``.
        """
        said = {key: float(value) for key, value in re.findall(r"^(\w+): *(-?[\d.eE+-]+)\s*$", text, re.MULTILINE)}
        self._by_range = {
            key: np.array([said.get(f"{key}{i}", nominal[i]) for i in range(_RANGES)])
            for key, nominal in _NOMINAL.items()
        }

    def amperes(self, words: NDArray[np.uint32], volts: float) -> NDArray[np.float64]:
        """Current of each word."""
        c = {key: values[np.minimum(words >> 14 & 7, _RANGES - 1)] for key, values in self._by_range.items()}
        raw = ((words & 0x3FFF) * 4 - c["O"]) * _ADC_VOLTS / c["R"]
        found: NDArray[np.float64] = c["UG"] * (raw * (c["GS"] * raw + c["GI"]) + (c["S"] * volts + c["I"]))
        return found


class Ppk2:
    """A kit that is streaming; energy is summed up here, word by word."""

    period_s = PERIOD_S

    def __init__(self, port: Any, voltage_mv: int, mode: str, name: str, scope: str) -> None:
        """
        Args:
            port: an open `serial.Serial`, or what behaves like one.

        Raises:
            OSError: the kit does not answer.
            ValueError: the voltage or the mode is none.
        """
        if not 800 <= voltage_mv <= 5000:
            raise ValueError(f"voltage_mv {voltage_mv} is not in [800, 5000]")
        if mode not in ("ampere", "source"):
            raise ValueError(f"mode {mode!r} is neither ampere nor source")
        self.rails: Sequence[Rail] = [
            Rail(name, "ppk2", scope, "energy_uj", PERIOD_S, lsb=0.0, total=True, averaging="box")
        ]
        self._port = port
        self._volts = voltage_mv / 1000
        port.write(bytes([_STOP]))
        port.reset_input_buffer()
        port.write(bytes([_META]))
        self._calibration = Calibration(_until_end(port))
        port.write(bytes([_MODE, _SOURCE if mode == "source" else _AMPERE]))
        if mode == "source":
            port.write(bytes([_REGULATOR, *voltage_mv.to_bytes(2, "big"), _POWER, 1]))
        port.write(bytes([_START]))
        self._rest = b""
        self._next: int | None = None  # the count that the next word should have
        self._words = self._lost = 0
        self._energy_uj = 0.0
        self._began_ns: int | None = None

    def read(self) -> list[Sample]:
        """
        One sample: the energy so far, dated by how many words there were.

        Raises:
            OSError: the kit was unplugged, or says nothing any more.
            ValueError: too many words were lost.
        """
        data = self._rest + self._port.read(self._port.in_waiting or 4)
        now = time.monotonic_ns()
        if len(data) - len(self._rest) == 0:
            raise OSError(f"{self._port.name}: the kit sends nothing")
        if self._next is None:
            aligned = _aligned(data)
            if not aligned and len(data) > MOST_UNALIGNED:
                raise ValueError(f"{self._port.name}: what comes are no words of a Power Profiler Kit II")
            if not aligned:
                self._rest = data
                return []
            data = aligned
        whole = len(data) // 4 * 4
        self._rest = data[whole:]
        words = np.frombuffer(data[:whole], "<u4")
        if not len(words):
            return []
        counts = (words >> 18 & (COUNTS - 1)).astype(np.int64)
        first = counts[0] if self._next is None else self._next
        # What is missing before each word; a whole turn of the counter cannot be seen, and takes 640 us.
        gaps = np.mod(np.diff(np.concatenate(([first - 1], counts))) - 1, COUNTS)
        self._next = int(counts[-1] + 1) % COUNTS
        power_w = self._calibration.amperes(words, self._volts) * self._volts
        self._energy_uj += float((power_w * (1 + gaps)).sum()) * 1e6 / RATE_HZ  # a lost word drew what the next one did
        self._words += len(words) + int(gaps.sum())
        self._lost += int(gaps.sum())
        if self._lost > max(LOST * self._words, COUNTS):
            raise ValueError(f"{self._port.name}: {self._lost} of {self._words} words were lost on the way")
        # Words arrive in bunches, some late but none early: the earliest arrival tells when they began.
        began = now - self._words * 1_000_000_000 // RATE_HZ
        self._began_ns = began if self._began_ns is None else min(began, self._began_ns)
        return [Sample(self._began_ns + self._words * 1_000_000_000 // RATE_HZ, 0, self._energy_uj)]

    def close(self) -> None:
        """The kit stops sending; a board that it supplies stays on."""
        self._port.write(bytes([_STOP]))
        self._port.close()


def _until_end(port: Any) -> str:
    end = time.monotonic() + 2.0
    said = b""
    while b"END" not in said:
        if time.monotonic() > end:
            raise OSError(f"{port.name}: no Power Profiler Kit answers there")
        said += port.read(max(1, port.in_waiting))
    return said.decode("ascii", "replace")


def _aligned(data: bytes) -> bytes:
    """`data` from the first byte on at which words count up by one; nothing where too little is there to see that."""
    for start in range(4):
        words = np.frombuffer(data[start : start + (len(data) - start) // 4 * 4], "<u4")
        counts = words >> 18 & (COUNTS - 1)
        if len(words) >= 4 and bool((np.mod(np.diff(counts.astype(np.int64)), COUNTS) == 1)[:8].all()):
            return data[start:]
    return b""


def open_meter(name: str, scope: str, settings: Mapping[str, Any]) -> Meter:
    """
    Raises:
        OSError, ValueError: see `Ppk2`.
        KeyError: port or voltage_mv is missing.
    """
    import serial

    port = serial.serial_for_url(str(settings["port"]), baudrate=115200, timeout=1.0)
    try:
        return Ppk2(port, int(settings["voltage_mv"]), str(settings.get("mode", "ampere")), name, scope)
    except BaseException:
        port.close()
        raise
