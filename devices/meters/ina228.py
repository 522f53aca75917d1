"""
The INA228 over I2C, without a kernel driver: its energy accumulator, which misses nothing between two readings.

Linux's ina238 driver ignores that register, so boards.yaml names bus, address and shunt, and the chip is asked by the
SMBus ioctls of ``/dev/i2c-N``.  Nothing is written to it: with SHUNT_CAL as it is, whoever set it,
current LSB = SHUNT_CAL / (13107.2e6 x shunt) (by 4 with ADCRANGE), and energy = ENERGY x 16 x 3.2 x current LSB
(TI SLYS021, section 8.1.2).
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Protocol

from devices.meters import chips
from devices.meters.sysfs import origin
from devices.protocol.meter import Rail, Sample, Unreadable

_CONFIG, _ADC_CONFIG, _SHUNT_CAL, _VBUS, _ENERGY, _MAKER, _DEVICE = 0x00, 0x01, 0x02, 0x05, 0x09, 0x3E, 0x3F
_TI, _INA228 = 0x5449, 0x228
_WRAPS_AT = 1 << 40
_VBUS_LSB_MV = 0.1953125
_CONVERSION_US = (50, 84, 150, 280, 540, 1052, 2074, 4120)
_AVERAGES = (1, 4, 16, 64, 128, 256, 512, 1024)
_ENERGY_GAIN = 0.01  # of energy, over temperature; the data sheet allows current and voltage less

_I2C_SLAVE, _I2C_SMBUS = 0x0703, 0x0720
_READ, _BLOCK = 1, 8  # I2C_SMBUS_READ, I2C_SMBUS_I2C_BLOCK_DATA


class Bus(Protocol):
    def read(self, register: int, size: int) -> bytes:
        """`size` bytes from a register, the highest first."""
        ...


class _Request(ctypes.Structure):
    _fields_ = (
        ("read_write", ctypes.c_uint8),
        ("command", ctypes.c_uint8),
        ("size", ctypes.c_uint32),
        ("data", ctypes.c_void_p),
    )


class I2c:
    """One chip on ``/dev/i2c-N``."""

    def __init__(self, path: Path, address: int) -> None:
        """
        Raises:
            OSError: not there, not allowed, or a kernel driver has the chip (EBUSY).
        """
        import fcntl

        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(self._fd, _I2C_SLAVE, address)
        except OSError:
            os.close(self._fd)
            raise

    def read(self, register: int, size: int) -> bytes:
        import fcntl

        data = (ctypes.c_uint8 * 34)(size)  # its first byte is the length
        fcntl.ioctl(self._fd, _I2C_SMBUS, _Request(_READ, register, _BLOCK, ctypes.addressof(data)))
        return bytes(data[1 : 1 + size])


class Ina228:
    """One chip."""

    period_s = 0.0

    def __init__(self, bus: Bus, name: str, shunt_mohm: float, made: str = "measured") -> None:
        """
        Raises:
            OSError: it does not answer.
            ValueError: what answers is no INA228, or it is not set up to count.
        """
        maker, device = (_word(bus, register) for register in (_MAKER, _DEVICE))
        if maker != _TI or device >> 4 != _INA228:
            raise ValueError(f"no INA228 (manufacturer 0x{maker:04x}, device 0x{device:04x})")
        calibration = _word(bus, _SHUNT_CAL) & 0x7FFF
        mode = _word(bus, _ADC_CONFIG)
        if calibration == 0 or mode >> 12 not in (0xB, 0xF):
            raise ValueError("it does not convert current and voltage continuously, or SHUNT_CAL is 0")
        narrow = bool(_word(bus, _CONFIG) & 0x10)
        current_lsb_a = calibration / (13107.2e6 * shunt_mohm / 1000 * (4 if narrow else 1))
        self._unit_uj = 16 * 3.2 * current_lsb_a * 1e6
        conversions = (mode >> 9 & 7, mode >> 6 & 7, *([mode >> 3 & 7] if mode >> 12 == 0xF else []))
        period_s = sum(_CONVERSION_US[i] for i in conversions) * _AVERAGES[mode & 7] / 1e6
        bus_mv = (int.from_bytes(bus.read(_VBUS, 3), "big") >> 4) * _VBUS_LSB_MV
        rail = Rail(
            name, "ina228", "rail", "energy_uj", period_s, lsb=self._unit_uj, averaging="box",
            gain=(_ENERGY_GAIN**2 + chips.SHUNT_TOLERANCE**2) ** 0.5,
            offset_mw=chips.offset_mw("ina228", shunt_mohm * 1000, bus_mv), origin=made,
        )  # fmt: skip
        self.rails: Sequence[Rail] = [rail]
        self._bus = bus
        self._last = self._base = 0

    def read(self) -> list[Sample]:
        before = time.monotonic_ns()
        count = int.from_bytes(self._bus.read(_ENERGY, 5), "big")
        after = time.monotonic_ns()
        if count < self._last:
            self._base += _WRAPS_AT
        self._last = count
        return [Sample((before + after) // 2, 0, (self._base + count) * self._unit_uj)]


def open_bus(root: Path, bus: int, address: int) -> Bus:
    return I2c(root / f"dev/i2c-{bus}", address)


def find(
    root: Path, wired: list[Mapping[str, Any]], open_: Callable[[Path, int, int], Bus] = open_bus
) -> tuple[list[Ina228], list[Unreadable]]:
    """
    The chips that boards.yaml names.

    Args:
        wired: for each ``name``, ``i2c_bus``, ``i2c_address``, ``shunt_mohm``.
    """
    meters: list[Ina228] = []
    unreadable: list[Unreadable] = []
    for entry in wired:
        number, address = int(entry["i2c_bus"]), int(entry["i2c_address"])
        where = f"{root / f'dev/i2c-{number}'} at 0x{address:02x}"
        try:
            bus = open_(root, number, address)
            made = origin(root / f"sys/bus/i2c/devices/i2c-{number}")
            meters.append(Ina228(bus, str(entry["name"]), float(entry["shunt_mohm"]), made))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            unreadable.append(Unreadable("ina228", where, reason or str(error)))
    return meters, unreadable


def _word(bus: Bus, register: int) -> int:
    return int.from_bytes(bus.read(register, 2), "big")
