"""
The part of pynq's API that `devices/backends/pynq.py` uses, with the verilated accelerator behind it.

An overlay is a JSON file instead of a bitstream, and says how the simulation behaves::

    clock_mhz        the clock that times are given at; the RTL is simulated, its clock is assumed
    latency_cycles   until memory answers; cycles_a_beat: from one 8-byte word to the next
    hangs_after      a fault: memory stops answering when so many programs have run
    identity         a fault: what the accelerator says it is, in hexadecimal
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.fpga.fabric import Buffer, Fabric
from deploy.fpga.simulator import Bus, Register

SIMULATED: dict[str, Any] = {"source": "simulated:verilator"}  # complete once an overlay is open
_SETTINGS = {"clock_mhz": 100, "latency_cycles": 40, "cycles_a_beat": 1, "hangs_after": None, "identity": None}
_BEAT_BYTES = 8
_START = 1  # of CONTROL

_fabric: Fabric | None = None


class _Ip:
    """The accelerator as pynq shows an IP that it has no driver for."""

    def __init__(self, fabric: Fabric, identity: str | None, programs: int | None) -> None:
        self._fabric = fabric
        self._identity = identity
        self._programs = programs  # that end; None: all

    def read(self, offset: int = 0) -> int:
        if offset == Register.IDENTITY and self._identity is not None:
            return int(self._identity, 16)
        return self._fabric.read(offset)

    def write(self, offset: int, value: int) -> None:
        if offset == Register.CONTROL and value & _START and self._programs is not None:
            self._programs -= 1
            if self._programs < 0:
                self._fabric.simulation.use(Bus(hangs=True))
        self._fabric.write(offset, value)


class Overlay:
    """
    Args:
        bitfile_name: path of the JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else.
        KernelsMissing: the accelerator cannot be simulated here.
    """

    def __init__(self, bitfile_name: str) -> None:
        global _fabric
        given = json.loads(Path(bitfile_name).read_text())
        settings = {**_SETTINGS, **given}
        if set(settings) != set(_SETTINGS):
            raise ValueError(f"settings are {', '.join(_SETTINGS)}")
        latency, interval = int(settings["latency_cycles"]), int(settings["cycles_a_beat"])
        _fabric = Fabric(bus=Bus(latency=latency, interval=interval))
        SIMULATED.update(
            clock_hz=round(settings["clock_mhz"] * 1e6), latency_cycles=latency,
            bytes_per_cycle=_BEAT_BYTES / interval,
        )  # fmt: skip
        self.accelerator_0 = _Ip(_fabric, settings["identity"], settings["hangs_after"])
        self.ip_dict = {"accelerator_0": {"type": "deploy:user:accelerator:1.0"}}


class _Array(np.ndarray[Any, np.dtype[Any]]):
    """What `allocate` gives: `device_address`, `flush` and `invalidate`."""

    _buffer: Buffer
    _fabric: Fabric

    @property
    def device_address(self) -> int:
        return self._buffer.start

    def flush(self) -> None:
        self._fabric.flush(self._buffer)

    def invalidate(self) -> None:
        self._fabric.invalidate(self._buffer)


def allocate(shape: Any, dtype: Any = "u4", **_: Any) -> NDArray[Any]:
    """
    An array that both sides reach.

    Raises:
        MemoryError: there is no room.
        RuntimeError: no overlay is open.
    """
    if _fabric is None:
        raise RuntimeError("no overlay is open")
    buffer = _fabric.allocate(shape, dtype)
    array: _Array = buffer.host.view(dtype).reshape(shape).view(_Array)
    array._buffer, array._fabric = buffer, _fabric
    return array
