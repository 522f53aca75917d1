"""
Energy from raw samples: the only place where power becomes energy.

Gross energy is the integral of power over the window in which the invocations ran; net energy takes away what the
board draws when idle, seen before and after.  Both are per invocation.  Where the samples do not support a number there
is none, and the reason is said: never zero, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_SAMPLES = 10  # in a window
MAX_GAP = 0.1  # of the window, without a sample


@dataclass(frozen=True)
class Window:
    """Invocations between two instants of the board's clock."""

    start_ns: int
    end_ns: int
    invocations: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class RailSamples:
    """
    What one rail's meter said.

    Attributes:
        name, chip, scope, quantity: see `devices.meters.base.Rail`.
        t_ns: rising, on the board's clock.
        values: mW, or uJ of a counter that only grows.
    """

    name: str
    chip: str
    scope: str
    quantity: str
    t_ns: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class EnergyReading:
    """
    Energy of one rail, per invocation.

    Attributes:
        source: ``measured:<chip>@<rail>``.
        gross_uj, net_uj: mean over the windows; net may be negative, and is None without an idle baseline.
        gross_u_uj, net_u_uj: expanded uncertainty (k = 2) of the repetition alone; None for fewer than 3 windows.
        idle_mw, active_mw: mean power.
        windows: how many were used.
    """

    rail: str
    source: str
    scope: str
    gross_uj: float
    net_uj: float | None
    gross_u_uj: float | None
    net_u_uj: float | None
    idle_mw: float | None
    active_mw: float
    windows: int


@dataclass(frozen=True)
class NoEnergy:
    """There is a meter, and no number."""

    rail: str
    reason: str


def per_invocation(rail: RailSamples, windows: Sequence[Window], idle: Sequence[Window]) -> EnergyReading | NoEnergy:
    """
    Energy per invocation of one rail.

    Args:
        windows: in which the model ran.
        idle: in which it did not, before and after.
    """
    used, reasons = [], []
    for window in windows:
        energy = integrate(rail, window)
        if isinstance(energy, str):
            reasons.append(energy)
        else:
            used.append((window, energy))
    if not used:
        return NoEnergy(rail.name, reasons[0] if reasons else "no window")
    idle_uj = [(w, e) for w in idle if not isinstance(e := integrate(rail, w), str)]
    idle_seconds = sum(w.seconds for w, _ in idle_uj)
    idle_mw = sum(e for _, e in idle_uj) / idle_seconds / 1000 if idle_uj else None
    gross = np.array([energy / window.invocations for window, energy in used])
    net = None
    if idle_mw is not None:
        net = np.array([(e - idle_mw * 1000 * w.seconds) / w.invocations for w, e in used])
    seconds = sum(window.seconds for window, _ in used)
    return EnergyReading(
        rail=rail.name,
        source=f"measured:{rail.chip}@{rail.name}",
        scope=rail.scope,
        gross_uj=float(gross.mean()),
        net_uj=None if net is None else float(net.mean()),
        gross_u_uj=_repetition(gross),
        net_u_uj=None if net is None else _repetition(net),
        idle_mw=idle_mw,
        active_mw=sum(energy for _, energy in used) / seconds / 1000,
        windows=len(used),
    )


def integrate(rail: RailSamples, window: Window) -> float | str:
    """
    Energy of `window` in uJ, or the reason why there is none.

    Power is integrated by trapezoids over the samples' own times, its value at the edges interpolated; a counter is
    read off at the edges.
    """
    inside = rail.t_ns[(rail.t_ns >= window.start_ns) & (rail.t_ns <= window.end_ns)]
    if len(inside) < MIN_SAMPLES:
        return f"{len(inside)} samples in a window of {window.seconds:.2f} s; {MIN_SAMPLES} are needed"
    if rail.t_ns[0] > window.start_ns or rail.t_ns[-1] < window.end_ns:
        return "the samples do not cover the window"
    gap = float(np.diff(np.concatenate(([window.start_ns], inside, [window.end_ns]))).max()) / 1e9
    if gap > MAX_GAP * window.seconds:
        return f"no sample for {gap:.2f} s of a window of {window.seconds:.2f} s"
    edges = np.array([window.start_ns, window.end_ns])
    at_edges = np.interp(edges, rail.t_ns, rail.values)
    if rail.quantity == "energy_uj":
        return float(at_edges[1] - at_edges[0])
    t = np.concatenate((edges[:1], inside, edges[1:]))
    power_mw = np.interp(t, rail.t_ns, rail.values)
    return float(np.trapezoid(power_mw, t) / 1e6)  # mW x ns = 1e-6 uJ


def _repetition(values: NDArray[np.float64]) -> float | None:
    return float(2 * values.std(ddof=1) / len(values) ** 0.5) if len(values) >= 3 else None
