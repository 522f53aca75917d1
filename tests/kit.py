"""Instruments that are none: a Power Profiler Kit II behind a pty, a Joulescope's driver, one that speaks SCPI."""

from __future__ import annotations

import os
import pty
import struct
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What a kit tells of itself; the gains and offsets of range 0 are not the nominal ones.
META = """\
Calibrated: 1
R0: 1000.0
R1: 100.0
R2: 10.0
R3: 1.0
R4: 0.05
GS0: 0.0
GI0: 0.5
O0: 100.0
S0: 0.000001
I0: 0.000002
UG0: 2.0
GS1: 0.0
GS2: 0.0
GS3: 0.0
GS4: 0.0
HW: 9173
IA: 56
END
"""


def word(adc: int, range_: int, count: int, logic: int = 0) -> bytes:
    """One sample as the kit sends it."""
    return struct.pack("<I", adc | range_ << 14 | (count & 63) << 18 | logic << 24)


class Kit:
    """
    Sends 100,000 words a second, in bunches of 10 ms, as soon as it is told to start.

    Args:
        adc: 14 bits, of the word with this number.
        lose: these words are counted and not sent.
    """

    def __init__(
        self, adc: Callable[[int], int] = lambda i: 1000, range_: int = 3, lose: range = range(0), limit: int = 10**9
    ) -> None:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.path = os.ttyname(self._slave)
        self.commands = bytearray()
        self._adc, self._range, self._lose, self._limit = adc, range_, lose, limit
        self._running = threading.Event()
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._listen, self._send)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        while not self._ends.is_set():
            try:
                got = os.read(self._master, 64)
            except OSError:
                return
            self.commands += got
            if b"\x19" in got:
                os.write(self._master, META.encode())
            if b"\x06" in got:
                self._running.set()

    def _send(self) -> None:
        self._running.wait()
        began, sent = time.monotonic(), 0
        while not self._ends.is_set() and sent < self._limit:
            due = min(self._limit, int((time.monotonic() - began) * 100_000))
            bunch = [word(self._adc(i), self._range, i) for i in range(sent, due) if i not in self._lose]
            sent = due
            try:
                os.write(self._master, b"".join(bunch))
            except OSError:
                return
            time.sleep(0.01)

    def unplug(self) -> None:
        self._ends.set()
        self._running.set()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


class JoulescopeDriver:
    """What is used of `pyjoulescope_driver.Driver`: topics in, statistics out."""

    def __init__(self, *paths: str) -> None:
        self.paths = list(paths)
        self.published: dict[str, Any] = {}
        self.listeners: dict[str, Callable[[str, Any], None]] = {}
        self.opened: list[str] = []

    def device_paths(self) -> list[str]:
        return self.paths

    def open(self, device: str) -> None:
        self.opened.append(device)

    def close(self, device: str) -> None:
        self.opened.remove(device)

    def publish(self, topic: str, value: Any) -> None:
        self.published[topic] = value

    def subscribe(self, topic: str, flags: str, fn: Callable[[str, Any], None]) -> None:
        assert "pub" == flags
        self.listeners[topic] = fn

    def unsubscribe(self, topic: str, fn: Callable[[str, Any], None]) -> None:
        assert fn == self.listeners.pop(topic)

    def measure(self, topic: str, joules: float) -> None:
        """The statistics of another twentieth of a second."""
        value = {"accumulators": {"energy": {"value": joules, "units": "J"}, "charge": {"value": 0.0, "units": "C"}}}
        self.listeners[topic](topic, value)


SCPI = """\
spec: "1.1"
devices:
  supply:
    eom:
      ASRL INSTR: {q: "\\n", r: "\\n"}
    error: ERROR
    dialogues:
      - {q: "*IDN?", r: "Keysight,E36312A,MY1,2.1"}
      - {q: "MEAS:VOLT?", r: "+5.00000000E+00"}
      - {q: "MEAS:CURR?", r: "+8.00000000E-01"}
      - {q: "MEAS:POW?", r: "+4.10000000E+00"}
      - {q: "MEAS:TEMP?", r: "warm"}
resources:
  ASRL1::INSTR: {device: supply}
"""


def scpi_backend(folder: Path) -> str:
    """A pyvisa backend with one instrument: 5 V, 0.8 A, 4.1 W."""
    path = folder / "supply.yaml"
    path.write_text(SCPI)
    return f"{path}@sim"
