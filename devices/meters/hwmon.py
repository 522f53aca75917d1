"""
Power through Linux's hwmon class: INA3221 (Jetsons), INA2xx and INA238 (HATs), INA260 (Kria), PMBus regulators.

The ABI's units: voltage mV, current mA, power uW.  Quirks that matter:

* ina3221 has no power file: power is in{n} times curr{n}, for n in 1..3 only.  in4..in7 are shunt voltages in uV,
  curr4 is the sum.  A channel that is switched off still has its files; reading them fails with ENODATA.
* ina3221 reports ``update_interval`` without the averaging it does (Linux 5.8 and later), so it is multiplied by
  ``samples``.  The averaging is an IIR, y += (x - y) / samples, and that product its time constant.
* Through iio-hwmon a chip has the name of its device-tree node, often ``ina226``, and then in1 is the *shunt*, where
  the driver ina2xx of the same name has it in in0.  A native driver always has in0; voltages are used for checks only.
* PMBus drivers of kernels before 5.10 give the same values for a second.
* A regulator that is off may report 10 A at 0.1 V: a rail below `OFF_MV` is off, and gives nothing.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Callable

from devices.meters import chips, jetson
from devices.meters.sysfs import Value, number, origin, text
from devices.protocol.meter import Rail, Sample, Unreadable

OFF_MV = 500
PMBUS_CACHE_S = 1.0
_PMBUS_UNCACHED = (5, 10)  # the first kernel whose PMBus drivers ask the chip each time
# hwmon also carries the power estimates of graphics cards and batteries: not supply lines of a board.
_POWER_CHIPS = re.compile(r"(ina2\d\d|irps5401|pmbus|ltc\d+|max\d+|tps\d+|isl\d+|adm\d+)(_.*)?")
_DISAGREE = 0.5  # power, and voltage times current, read one after the other under a changing load

Read = Callable[[], "float | None"]


class Hwmon:
    """The rails of one chip.  Each rail is a function that gives its power in mW, or None while it is off."""

    period_s = 0.0

    def __init__(self, rails: Sequence[tuple[Rail, Read]]) -> None:
        self.rails: Sequence[Rail] = [rail for rail, _ in rails]
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
    meters: list[Hwmon] = []
    places: list[str] = []
    unreadable: list[Unreadable] = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*"), key=_by_number):
        name = text(folder / "name")
        if name is None:
            continue
        if name == "ina3221":
            rails = _ina3221(folder, unreadable)
        elif match := _POWER_CHIPS.fullmatch(name):
            rails = _power_files(folder, match[1], unreadable, _kernel(root) < _PMBUS_UNCACHED)
        else:
            continue
        if rails:
            meters.append(Hwmon(rails))
            places.append((folder / "device").resolve().name)
    names = Counter(rail.name for meter in meters for rail in meter.rails)
    for meter, place in zip(meters, places):
        # Two chips of a kind call their rails the same: bus and address tell them apart.
        meter.rails = [
            replace(rail, name=f"{rail.name}@{place}") if names[rail.name] > 1 else rail for rail in meter.rails
        ]
    return meters, unreadable


def is_iio(folder: Path) -> bool:
    """Whether iio-hwmon stands between: the same chip is an IIO device, too."""
    return text(folder / "device/of_node/compatible") == "iio-hwmon"


def _ina3221(folder: Path, unreadable: list[Unreadable]) -> list[tuple[Rail, Read]]:
    interval_ms = number(folder / "update_interval")
    averaged = number(folder / "samples") or 1
    period_s = interval_ms * averaged / 1000 if interval_ms else None
    made = origin(folder / "device")
    rails: list[tuple[Rail, Read]] = []
    for n in (1, 2, 3):
        voltage, current = folder / f"in{n}_input", folder / f"curr{n}_input"
        if not (voltage.exists() and current.exists()) or text(folder / f"in{n}_enable") == "0":
            continue
        if refused := _refused(voltage, current):
            unreadable.append(Unreadable("ina3221", *refused))
            continue
        name = text(folder / f"in{n}_label") or f"channel{n}"
        shunt_uohm, bus_mv = number(folder / f"shunt{n}_resistor"), number(voltage)
        scope, total, adds = jetson.scope(name)
        rail = Rail(
            name, "ina3221", scope, "power_mw", period_s,
            lsb=chips.lsb_mw("ina3221", shunt_uohm, bus_mv), total=total,
            averaging="iir" if averaged > 1 else "none", gain=chips.gain("ina3221"),
            offset_mw=chips.offset_mw("ina3221", shunt_uohm, bus_mv), adds=adds, origin=made,
        )  # fmt: skip
        rails.append((rail, _product(Value(voltage), Value(current))))
    return rails


def _product(voltage: Value, current: Value) -> Read:
    def read() -> float | None:
        ma = current.read()
        if ma is None:
            return None
        mv = voltage.read()
        return None if mv is None else mv * ma / 1000

    return read


def _kernel(root: Path) -> tuple[int, ...]:
    """Version and patch level of the kernel; of one that does not say, the newest there can be."""
    match = re.match(r"(\d+)\.(\d+)", text(root / "proc/sys/kernel/osrelease") or "")
    return (int(match[1]), int(match[2])) if match else (99,)


def _power_files(folder: Path, chip: str, unreadable: list[Unreadable], cached_pmbus: bool) -> list[tuple[Rail, Read]]:
    interval_ms = number(folder / "update_interval")
    shunt_uohm = number(folder / "shunt_resistor")
    through_iio = is_iio(folder)
    made = origin(folder / "device")
    known = chips.CHIPS.get(chip)
    rails: list[tuple[Rail, Read]] = []
    for path in sorted(folder.glob("power*_input"), key=_by_number):
        if refused := _refused(path):
            unreadable.append(Unreadable(chip, *refused))
            continue
        label = text(folder / path.name.replace("_input", "_label"))
        volts, amps = _companions(folder, path.name, label, through_iio)
        if volts is not None and amps is not None and (why := _nonsense(path, volts, amps)):
            unreadable.append(Unreadable(chip, str(path), why))
            continue
        bus_mv = number(volts) if volts is not None else None
        period_s = interval_ms / 1000 if interval_ms else None
        averaging = known.averaging if known and interval_ms else None
        if cached_pmbus and _is_pmbus(label):
            period_s, averaging = PMBUS_CACHE_S, "none"
        rail = Rail(
            label or f"{chip}-{path.name.split('_')[0]}", chip, "rail", "power_mw", period_s,
            lsb=chips.lsb_mw(chip, shunt_uohm, bus_mv), averaging=averaging, gain=chips.gain(chip),
            offset_mw=chips.offset_mw(chip, shunt_uohm, bus_mv), origin=made,
        )  # fmt: skip
        # A regulator's outputs go off and on; the supply that an INA watches is the board's own.
        rails.append((rail, _microwatts(Value(path), Value(volts) if label and volts else None)))
    return rails


def _is_pmbus(label: str | None) -> bool:
    return label is not None and re.fullmatch(r"p(in|out)\d*", label) is not None


def _companions(folder: Path, power: str, label: str | None, through_iio: bool) -> tuple[Path | None, Path | None]:
    """Voltage and current files of the line that a power file is of; None where it is not certain which they are."""
    if label and _is_pmbus(label):  # pin, pout1, ... beside vin, vout1, ... and iin, iout1, ...
        files = {text(path): path for path in folder.glob("*_label")}
        found = [files.get(kind + label[1:]) for kind in ("v", "i")]
        inputs = [p.with_name(p.name.replace("_label", "_input")) if p else None for p in found]
        return inputs[0], inputs[1]
    if power != "power1_input":
        return None, None
    # A native driver's in0 is the shunt; iio-hwmon counts from 1, and its in1 is.
    native = (folder / "in0_input").exists() and not through_iio
    volts = folder / ("in1_input" if native else "in2_input")
    amps = folder / "curr1_input"
    return (volts if volts.exists() else None), (amps if amps.exists() else None)


def _nonsense(power: Path, volts: Path, amps: Path) -> str | None:
    """Why the power cannot be believed; None if it is about voltage times current, or one of them says nothing."""
    uw, mv, ma = number(power), number(volts), number(amps)
    if uw is None or mv is None or ma is None or mv < OFF_MV:
        return None
    product_mw = mv * ma / 1000
    if abs(uw / 1000 - product_mw) <= 100 + _DISAGREE * max(abs(product_mw), abs(uw / 1000)):
        return None
    return f"it says {uw / 1e6:g} W for {mv / 1000:g} V and {ma / 1000:g} A"


def _microwatts(power: Value, volts: Value | None) -> Read:
    def read() -> float | None:
        if volts is not None:
            mv = volts.read()
            if mv is None or mv < OFF_MV:
                return None
        uw = power.read()
        return None if uw is None else uw / 1000

    return read


def _refused(*paths: Path) -> tuple[str, str] | None:
    """The first file that may not be read, and why; a rail that is off just now is no reason."""
    for path in paths:
        try:
            path.read_text()
        except PermissionError as error:
            return str(path), error.strerror or str(error)
        except OSError:
            pass
    return None


def _by_number(path: Path) -> tuple[str, int]:
    """hwmon10 comes after hwmon9."""
    match = re.match(r"(\D+)(\d+)", path.name)
    return (match[1], int(match[2])) if match else (path.name, 0)
