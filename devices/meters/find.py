"""Which meters a board has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from devices.meters import hwmon, iio, ina228, pi5, powercap
from devices.protocol.meter import Meter, Unreadable


def find(root: Path = Path("/"), wired: Sequence[Mapping[str, Any]] = ()) -> tuple[list[Meter], list[Unreadable]]:
    """
    Every meter of this board, and those that are there and cannot be used.

    Args:
        root: where /sys, /proc and /dev are; ``/`` but for tests.
        wired: chips that no driver shows, as boards.yaml describes them, see `ina228.find`.
    """
    meters: list[Meter] = []
    unreadable: list[Unreadable] = []
    for source in (powercap, hwmon, iio, pi5):
        found, refused = source.find(root)
        meters += found
        unreadable += refused
    asked, refused = ina228.find(root, list(wired))
    meters += asked
    if (root / "proc/device-tree/deploy,virtual").exists():
        # Real drivers, and chips that are none: deploy's own virtual boards say so in their device tree.
        for meter in meters:
            meter.rails = [replace(rail, origin="stub") for rail in meter.rails]
    return meters, [*unreadable, *refused]
