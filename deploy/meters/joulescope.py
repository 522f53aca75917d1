"""
A Joulescope JS220, through its maker's driver: the instrument integrates energy itself, at 1 MS/s.

It sends its accumulators some 20 times a second.  Settings: ``device``, a part of its path such as the serial number,
where more than one is plugged in.  The JS110 sends them twice a second, and no faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from devices.protocol.meter import Meter, Rail, Sample

RATE_HZ = 20
_JS220_HZ = 1_000_000


class Driver(Protocol):
    """What we use of `pyjoulescope_driver.Driver`."""

    def device_paths(self) -> list[str]: ...
    def open(self, device: str) -> Any: ...
    def close(self, device: str) -> Any: ...
    def publish(self, topic: str, value: Any) -> Any: ...
    def subscribe(self, topic: str, flags: str, fn: Callable[[str, Any], None]) -> Any: ...
    def unsubscribe(self, topic: str, fn: Callable[[str, Any], None]) -> Any: ...


class Joulescope:
    """One instrument; its driver's thread puts samples down, and `read` picks them up."""

    period_s = 0.5 / RATE_HZ

    def __init__(self, driver: Driver, device: str, name: str, scope: str) -> None:
        js220 = "js220" in device
        chip = "js220" if js220 else "js110"
        period_s = 1 / RATE_HZ if js220 else 0.5
        self.rails: Sequence[Rail] = [
            Rail(name, chip, scope, "energy_uj", period_s, lsb=0.001, total=True, averaging="box")
        ]
        self._driver, self._device = driver, device
        self._topic = f"{device}/s/stats/value" if js220 else f"{device}/s/sstats/value"
        self._lock = threading.Lock()
        self._waiting: list[Sample] = []
        driver.open(device)
        if js220:
            driver.publish(f"{device}/s/i/range/mode", "auto")
            driver.publish(f"{device}/s/stats/scnt", _JS220_HZ // RATE_HZ)
            driver.publish(f"{device}/s/stats/ctrl", 1)
        else:
            driver.publish(f"{device}/s/i/range/select", "auto")
        driver.subscribe(self._topic, "pub", self._take)

    def _take(self, topic: str, value: Any) -> None:
        entry = value["accumulators"]["energy"]
        unit_uj = {"J": 1e6, "mJ": 1e3, "uJ": 1.0}[entry.get("units", "J")]
        with self._lock:
            self._waiting.append(Sample(time.monotonic_ns(), 0, float(entry["value"]) * unit_uj))

    def read(self) -> list[Sample]:
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken

    def close(self) -> None:
        self._driver.unsubscribe(self._topic, self._take)
        self._driver.close(self._device)


def open_meter(name: str, scope: str, settings: Mapping[str, Any]) -> Meter:
    """
    Raises:
        OSError: none is plugged in, or several and `device` does not tell which.
    """
    import pyjoulescope_driver

    return choose(pyjoulescope_driver.Driver(), name, scope, settings)


def choose(driver: Driver, name: str, scope: str, settings: Mapping[str, Any]) -> Meter:
    """The instrument that `device` names, or the only one; OSError as `open_meter`."""
    wanted = str(settings.get("device", ""))
    there = driver.device_paths()
    found = [path for path in there if wanted in path]
    if len(found) != 1:
        which = f"{wanted!r} names {len(found)} of" if wanted else "`device` must name one of"
        raise OSError(f"{which} the instruments that are plugged in: {', '.join(there) or 'none'}")
    return Joulescope(driver, found[0], name, scope)
