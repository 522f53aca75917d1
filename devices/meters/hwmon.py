"""
Power through Linux's hwmon class: INA3221 (Jetsons), INA2xx and INA238 (HATs), INA260 (Kria), PMBus regulators.

The ABI's units: voltage mV, current mA, power uW.  Quirks that matter:

* ina3221 has no power file: power is in{n} times curr{n}, for n in 1..3 only.  in4..in7 are shunt voltages in uV,
  curr4 is the sum.  A channel that is switched off still has its files; reading them fails with ENODATA.
* ina3221 reports ``update_interval`` without the averaging it does, so it is multiplied by ``samples``.
* Through iio-hwmon a chip has the name of its device-tree node, often ``ina226``, and then in1 is the *shunt*.
  Only chips with a power file are taken besides ina3221, so the clash cannot bite.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from devices.meters.base import Rail, Sample, Unreadable

_SHUNT_LSB_UV = 40.0  # ina3221, TI SBOS576
_MODULE_TOTALS = ("VDD_IN", "POM_5V_IN")
# hwmon also carries the power estimates of graphics cards and batteries: not supply lines of a board.
_POWER_CHIPS = re.compile(r"ina2\d\d.*|ina238|irps5401|pmbus|ltc\d+|max\d+|tps\d+|isl\d+|adm\d+")


class Hwmon:
    """The rails of one chip.  Each rail is a function that gives its power in mW, or None while it is off."""

    def __init__(self, rails: Sequence[tuple[Rail, Callable[[], float | None]]]) -> None:
        self.rails = [rail for rail, _ in rails]
        self._read = [read for _, read in rails]

    def read(self) -> list[Sample]:
        samples = []
        for i, read in enumerate(self._read):
            before = time.monotonic_ns()
            power_mw = read()
            after = time.monotonic_ns()
            if power_mw is not None:
                samples.append(Sample((before + after) // 2, i, power_mw))
        return samples


def find(root: Path) -> tuple[list[Hwmon], list[Unreadable]]:
    """The chips that measure power; below `root`, which is ``/`` but for tests."""
    meters = []
    unreadable: list[Unreadable] = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = _text(folder / "name")
        if chip is None:
            continue
        if chip == "ina3221":
            rails = _ina3221(folder)
        elif _POWER_CHIPS.fullmatch(chip):
            rails = _power_files(folder, chip, unreadable)
        else:
            continue
        if rails:
            meters.append(Hwmon(rails))
    return meters, unreadable


def _ina3221(folder: Path) -> list[tuple[Rail, Callable[[], float | None]]]:
    period = _period(folder)
    rails = []
    for n in (1, 2, 3):
        voltage, current = folder / f"in{n}_input", folder / f"curr{n}_input"
        if not (voltage.exists() and current.exists()) or _text(folder / f"in{n}_enable") == "0":
            continue
        name = _text(folder / f"in{n}_label") or f"channel{n}"
        shunt_uohm = _number(folder / f"shunt{n}_resistor")
        bus_mv = _number(voltage)
        lsb = _SHUNT_LSB_UV / shunt_uohm * 1000 * bus_mv / 1000 if shunt_uohm and bus_mv else None
        total = name in _MODULE_TOTALS
        rail = Rail(name, "ina3221", "module" if total else "rail", "power_mw", period, lsb, total)
        rails.append((rail, _product(voltage, current)))
    return rails


def _product(voltage: Path, current: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        mv, ma = _reading(voltage), _reading(current)
        return None if mv is None or ma is None else mv * ma / 1000

    return read


def _power_files(
    folder: Path, chip: str, unreadable: list[Unreadable]
) -> list[tuple[Rail, Callable[[], float | None]]]:
    rails = []
    for path in sorted(folder.glob("power*_input")):
        try:
            path.read_text()
        except PermissionError as error:
            unreadable.append(Unreadable(chip, str(path), error.strerror or str(error)))
            continue
        except OSError:
            pass  # off just now; `read` will leave it out until it is on
        name = _text(folder / path.name.replace("_input", "_label")) or f"{chip}-{path.name.split('_')[0]}"
        rails.append((Rail(name, chip, "rail", "power_mw", _period(folder)), _microwatts(path)))
    return rails


def _microwatts(path: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        uw = _reading(path)
        return None if uw is None else uw / 1000

    return read


def _reading(path: Path) -> int | None:
    """What the chip says now; None while it says nothing.  Raises when the file is gone, and the driver with it."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError):
        return None


def _period(folder: Path) -> float | None:
    interval_ms = _number(folder / "update_interval")
    averaged = _number(folder / "samples") or 1
    return interval_ms * averaged / 1000 if interval_ms else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return int(text) if text else None
    except ValueError:
        return None
