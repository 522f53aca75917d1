"""How values with a unit are written: four digits, and the unit that suits them."""

from __future__ import annotations

import math


def duration(ns: float) -> str:
    """``2.794 us``."""
    return _scaled(ns, (("s", 1e9), ("ms", 1e6), ("us", 1e3)), "ns")


def energy(uj: float) -> str:
    """``41.3 mJ``."""
    return _scaled(uj, (("J", 1e6), ("mJ", 1e3)), "uJ")


def size(count: float) -> str:
    """``1.2 KiB``; whole bytes below one."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def span(seconds: float) -> str:
    """``25 s``, ``4 min``, ``2 h 5 min``: how long a person has to wait, rounded up."""
    whole = math.ceil(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _scaled(value: float, units: tuple[tuple[str, float], ...], smallest: str) -> str:
    unit, scale = next(((u, s) for u, s in units if abs(value) >= s), (smallest, 1.0))
    return f"{value / scale:.4g} {unit}"
