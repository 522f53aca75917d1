"""
Sensors that are simulated, and the truth that they look at.

What they do is what the data sheets say: a box averages over a period and shows it during the next one; an INA3221
looks at its channel for 1.1 ms of every cycle, and y += (x - y) / N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.results.energy import EnergyReading, RailSamples, Window, evaluate, guard
from devices.protocol.meter import Rail

Array = NDArray[np.float64]
CYCLE_S, LOOK_S = 0.0066, 0.0011  # of an INA3221 as its driver sets it up


@dataclass(frozen=True)
class Sensor:
    """
    Attributes:
        kind: ``box`` of `period_s`; ``iir`` over `averages` cycles of an INA3221.
        lsb_mw: 0 for one that does not round.
        noise_mw: standard deviation of each of its conversions.
        cycle_error: how far its own clock may be off, as a share.
    """

    name: str
    kind: str
    period_s: float
    averages: int = 1
    lsb_mw: float = 0.0
    noise_mw: float = 0.0
    gain: float = 0.0
    offset_mw: float = 0.0
    cycle_error: float = 0.01

    @property
    def rail(self) -> Rail:
        memory_s = self.period_s * self.averages
        averaging = "none" if self.kind == "iir" and self.averages == 1 else self.kind
        return Rail(
            "VDD_IN", self.name, "module", "power_mw", memory_s, lsb=self.lsb_mw, total=True, averaging=averaging,
            gain=self.gain, offset_mw=self.offset_mw,
        )  # fmt: skip


SENSORS = (
    Sensor("ina226", "box", 0.035),
    Sensor("ina3221 N=1", "iir", CYCLE_S),
    Sensor("ina3221 N=64", "iir", CYCLE_S, 64),
    Sensor("ina3221 N=512", "iir", CYCLE_S, 512),
    Sensor("smart plug", "box", 1.0),
)


class Load:
    """
    A board that draws `idle_mw`, and in its windows `idle_mw` and `busy_mw` in turn, half of each `period_s`.

    Args:
        creep: the idle power at the end over that at the beginning, less 1.
    """

    def __init__(self, windows: list[tuple[float, float]], period_s: float, idle_mw: float = 2000.0,
                 busy_mw: float = 6000.0, phase: float = 0.0, creep: float = 0.0) -> None:  # fmt: skip
        self.windows = windows
        self._period_s, self._phase = period_s, phase
        self._idle_mw, self._extra_mw, self._creep = idle_mw, busy_mw - idle_mw, creep / windows[-1][1]

    def net_mj(self, t: Any) -> Array:
        """What the windows took up to `t`, beyond idle."""
        t = np.asarray(t, float)
        done = np.zeros_like(t)
        for start, end in self.windows:
            inside = np.clip(t, start, end)
            done += self._pulses(inside - start) - self._pulses(np.zeros_like(t))
        return done * self._extra_mw

    def _pulses(self, t: Array) -> Array:
        periods, rest = np.divmod(t + self._phase * self._period_s, self._period_s)
        return periods * self._period_s / 2 + np.minimum(rest, self._period_s / 2)

    def total_mj(self, t: Any) -> Array:
        t = np.asarray(t, float)
        return self.net_mj(t) + self._idle_mw * (t + self._creep * t**2 / 2)


def schedule(sensor: Sensor, count: int, window_s: float, idle_s: float) -> tuple[list[Window], list[Window]]:
    """Windows and the idle times between them, as the board keeps them."""
    margin = guard(sensor.rail)
    pause_s = margin.before_s + margin.after_s + idle_s
    windows, idle, t = [], [], 0.0
    for _ in range(count):
        idle.append(Window(int(t * 1e9), int((t + pause_s) * 1e9), 0))
        t += pause_s
        windows.append(Window(int(t * 1e9), int((t + window_s) * 1e9), 100))
        t += window_s
    return windows, [*idle, Window(int(t * 1e9), int((t + pause_s) * 1e9), 0)]


def look(sensor: Sensor, load: Load, end_s: float, rng: np.random.Generator, rate_hz: float = 100.0) -> RailSamples:
    """What a sampler with jitter reads from the sensor between 0 and `end_s`."""
    cycle_s = sensor.period_s * (1 + sensor.cycle_error * rng.uniform(-1, 1))
    ends = np.arange(-20.0 * max(1.0, sensor.averages * cycle_s), end_s + cycle_s, cycle_s) + rng.uniform(0, cycle_s)
    shown = (load.total_mj(ends) - load.total_mj(ends - cycle_s)) / cycle_s
    if sensor.kind == "iir":
        shown = (load.total_mj(ends) - load.total_mj(ends - LOOK_S)) / LOOK_S
    shown = shown + rng.normal(0, sensor.noise_mw, len(shown)) if sensor.noise_mw else shown
    if sensor.averages > 1:
        shown = _iir(shown, sensor.averages)
    shown = shown * (1 + sensor.gain * rng.uniform(-1, 1)) + sensor.offset_mw * rng.uniform(-1, 1)
    if sensor.lsb_mw:
        shown = np.round(shown / sensor.lsb_mw) * sensor.lsb_mw
    pauses = rng.uniform(0.5, 1.5, int(end_s * rate_hz * 1.2) + 10) / rate_hz
    t = np.cumsum(pauses)
    t = t[t < end_s]
    values = shown[np.searchsorted(ends, t, side="right") - 1]
    return RailSamples(sensor.rail, np.rint(t * 1e9).astype(np.int64), values)


def _iir(values: Array, averages: int) -> Array:
    out = np.empty_like(values)
    y = values[0]
    for i, x in enumerate(values.tolist()):
        y += (x - y) / averages
        out[i] = y
    return out


def trial(
    sensor: Sensor, rng: np.random.Generator, period_s: float, creep: float = 0.0, rate_hz: float = 100.0,
    window_s: float = 10.0,
) -> tuple[EnergyReading, float]:  # fmt: skip
    """Five windows of a load of `period_s`: the reading, and the true net energy of an invocation in uJ."""
    windows, idle = schedule(sensor, 5, window_s, 3.0)
    spans = [(w.start_ns / 1e9, w.end_ns / 1e9) for w in windows]
    load = Load(spans, period_s, phase=rng.uniform(0, 1), creep=creep)
    samples = look(sensor, load, idle[-1].end_ns / 1e9, rng, rate_hz)
    (found,) = evaluate([samples], windows, idle)
    assert isinstance(found, EnergyReading)
    truth = [float(load.net_mj(end) - load.net_mj(start)) * 1000 / windows[0].invocations for start, end in spans]
    return found, float(np.mean(truth))
