"""
RAPL through Linux's powercap class: the energy counters of x86 packages and their memory.

The counters are in microjoules, advance about every millisecond and wrap at ``max_energy_range_uj``.  Since
CVE-2020-8694 only root may read them.  A package already contains its cores and uncore, so those sub-zones are
left out; ``psys`` contains the package and is left out too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from devices.meters.sysfs import Value
from devices.protocol.meter import Rail, Sample, Unreadable

_UPDATE_S = 0.001


class Powercap:
    """
    The package and memory zones of one machine.

    The counter is unwrapped here, which is right as long as it is read at least once per wrap (some 20 minutes at
    200 W).
    """

    period_s = 0.0

    def __init__(self, zones: Sequence[tuple[str, Path, int]]) -> None:
        self.rails: Sequence[Rail] = [
            Rail(name, "rapl", "soc-rails", "energy_uj", _UPDATE_S, 1.0, averaging="box", adds="soc-rails")
            for name, _, _ in zones
        ]
        self._zones = [(Value(path / "energy_uj"), wraps_at) for _, path, wraps_at in zones]
        self._last = [0] * len(zones)
        self._base = [0] * len(zones)
        self._started = [False] * len(zones)

    def read(self) -> list[Sample]:
        samples = []
        for i, (counter, wraps_at) in enumerate(self._zones):
            before = time.monotonic_ns()
            value = counter.read()
            after = time.monotonic_ns()
            if value is None:
                continue
            if self._started[i] and value < self._last[i]:
                self._base[i] += wraps_at
            self._started[i] = True
            self._last[i] = value
            samples.append(Sample((before + after) // 2, i, self._base[i] + value))
        return samples


def find(root: Path) -> tuple[list[Powercap], list[Unreadable]]:
    """The meter of this machine, if it has one; below `root`, which is ``/`` but for tests."""
    zones = []
    unreadable = []
    for path in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        try:
            name = (path / "name").read_text().strip()
            if not (name.startswith("package-") or name == "dram"):
                continue
            wraps_at = int((path / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        try:
            (path / "energy_uj").read_text()
        except OSError as error:
            unreadable.append(Unreadable("rapl", str(path / "energy_uj"), error.strerror or str(error)))
            continue
        label = f"{name}:{path.name.split(':')[1]}" if name == "dram" else name
        zones.append((label, path, wraps_at))
    return ([Powercap(zones)] if zones else []), unreadable
