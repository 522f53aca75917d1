"""
Power through Linux's industrial I/O: the INA3221 of JetPack 4 (Nano, TX2, AGX Xavier), and INA2xx by ina2xx-adc.

IIO's power is in mW, raw times scale.  NVIDIA's driver ``ina3221x`` of Linux 4.9 gives ``in_power{n}_input`` ready in
mW, with ``rail_name_{n}``; its I2C bus has another number on each board and each release, so it is looked for.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

from devices.meters import chips, hwmon, jetson
from devices.meters.sysfs import Value, number, origin, text
from devices.protocol.meter import Rail, Sample, Unreadable

_CHIP = re.compile(r"(ina2\d\d)(_.*)?")


class Iio:
    """The rails of one chip, each a file and what its number is multiplied with to be mW."""

    period_s = 0.0

    def __init__(self, rails: Sequence[tuple[Rail, Value, float]]) -> None:
        self.rails: Sequence[Rail] = [rail for rail, _, _ in rails]
        self._files = [(value, scale) for _, value, scale in rails]

    def read(self) -> list[Sample]:
        samples = []
        for i, (value, scale) in enumerate(self._files):
            before = time.monotonic_ns()
            raw = value.read()
            after = time.monotonic_ns()
            if raw is not None:
                samples.append(Sample((before + after) // 2, i, raw * scale))
        return samples


def find(root: Path) -> tuple[list[Iio], list[Unreadable]]:
    """The chips that measure power; below `root`, which is ``/`` but for tests."""
    meters: list[Iio] = []
    unreadable: list[Unreadable] = []
    for folder in sorted((root / "sys/bus/i2c/drivers/ina3221x").glob("*/iio*")):
        rails = _ina3221x(folder, unreadable)
        if rails:
            meters.append(Iio(rails))
    shown = _through_hwmon(root)
    for folder in sorted((root / "sys/bus/iio/devices").glob("iio:device*")):
        match = _CHIP.fullmatch(text(folder / "name") or "")
        if match is None:
            continue
        if match[1] in shown:
            shown.remove(match[1])  # one chip, seen twice: iio-hwmon stands for it
            continue
        rails = _ina2xx(folder, match[1], unreadable)
        if rails:
            meters.append(Iio(rails))
    return meters, unreadable


def _through_hwmon(root: Path) -> list[str]:
    """The chips that iio-hwmon shows with their power, by name."""
    names = []
    for folder in (root / "sys/class/hwmon").glob("hwmon*"):
        match = _CHIP.fullmatch(text(folder / "name") or "")
        if match and hwmon.is_iio(folder) and any(folder.glob("power*_input")):
            names.append(match[1])
    return names


def _ina3221x(folder: Path, unreadable: list[Unreadable]) -> list[tuple[Rail, Value, float]]:
    rails: list[tuple[Rail, Value, float]] = []
    made = origin(folder)
    for n in range(3):
        power = folder / f"in_power{n}_input"
        name = text(folder / f"rail_name_{n}")
        if name is None or name.upper() in ("", "NC", "UNUSED") or not power.exists():
            continue
        if refused := _refused("ina3221", power):
            unreadable.append(refused)
            continue
        bus_mv = number(folder / f"in_voltage{n}_input")
        scope, total, adds = jetson.scope(name)
        rail = Rail(
            name, "ina3221", scope, "power_mw", lsb=None, total=total, gain=chips.gain("ina3221"),
            offset_mw=chips.offset_mw("ina3221", _shunt_uohm(folder, n), bus_mv), adds=adds, origin=made,
        )  # fmt: skip
        rails.append((rail, Value(power), 1.0))
    return rails


def _shunt_uohm(folder: Path, n: int) -> float | None:
    """Not a file of the driver: some releases show it, in mOhm."""
    milliohm = number(folder / f"shunt_resistor_{n}")
    return milliohm * 1000 if milliohm else None


def _ina2xx(folder: Path, chip: str, unreadable: list[Unreadable]) -> list[tuple[Rail, Value, float]]:
    rails: list[tuple[Rail, Value, float]] = []
    made = origin(folder)
    known = chips.CHIPS.get(chip)
    for power in sorted(folder.glob("in_power*_raw")):
        scale = number(power.with_name(power.name.replace("_raw", "_scale"))) or number(folder / "in_power_scale")
        if not scale:
            unreadable.append(Unreadable(chip, str(power), "nothing says what its unit is"))
            continue
        if refused := _refused(chip, power):
            unreadable.append(refused)
            continue
        shunt_ohm = number(folder / "in_shunt_resistor")
        bus_mv = _bus_mv(folder)
        period_s = _period_s(folder)
        rail = Rail(
            f"{chip}-{power.name[3:-4]}", chip, "rail", "power_mw", period_s, lsb=scale,
            averaging=known.averaging if known and period_s else None, gain=chips.gain(chip),
            offset_mw=chips.offset_mw(chip, shunt_ohm * 1e6 if shunt_ohm else None, bus_mv), origin=made,
        )  # fmt: skip
        rails.append((rail, Value(power), scale))
    return rails


def _bus_mv(folder: Path) -> float | None:
    """Channel 0 is the shunt, channel 1 the bus."""
    raw, scale = number(folder / "in_voltage1_raw"), number(folder / "in_voltage1_scale")
    return raw * scale if raw is not None and scale is not None else None


def _period_s(folder: Path) -> float | None:
    """Both conversions, as often as they are averaged."""
    times = [number(folder / f"in_voltage{n}_integration_time") for n in (0, 1)]
    known = [t for t in times if t]
    averaged = number(folder / "in_oversampling_ratio") or 1
    return sum(known) * averaged if len(known) == 2 else None


def _refused(chip: str, path: Path) -> Unreadable | None:
    try:
        path.read_text()
    except PermissionError as error:
        return Unreadable(chip, str(path), error.strerror or str(error))
    except OSError:
        pass  # off just now
    return None
