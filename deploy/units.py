"""How values with a unit are written: four digits, and the unit that suits them."""

from __future__ import annotations


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


def _scaled(value: float, units: tuple[tuple[str, float], ...], smallest: str) -> str:
    unit, scale = next(((u, s) for u, s in units if abs(value) >= s), (smallest, 1.0))
    return f"{value / scale:.4g} {unit}"
