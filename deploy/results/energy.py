"""
Energy from raw samples: the only place where power becomes energy.

A window is a span in which a model ran, with the board idle before and after.  Net energy is what the board drew more
than when idle, integrated over the window and a guard on both sides,

    E_net = integral from t0 - g0 to t1 + g1 of (P - P_idle) dt,

so that neither the sensor's lag nor a clock that is a little off can move energy out of sight: what arrives late still
arrives within the guard, and idle minus idle is nothing.  Gross energy is that plus the idle power over the window
itself.  Where no idle time borders on a window there is no guard: power is integrated over the window alone, and what
its edges may hide stands in the uncertainty.

Every reading carries its source, its scope, and an uncertainty budget (`_budget`).  Where the samples do not support a
number there is none, and the reason is said: never zero, never a guess, never clamped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from devices.protocol.meter import Rail
from devices.protocol.student import t_975

MIN_SAMPLES = 10  # in a window
MAX_GAP = 0.1  # of the window, without a sample; of a counter, at the window's edges
GAP_PERIODS = 5  # sampling periods without a sample of power
BORDERS_NS = 100_000_000  # idle time that ends or begins this near to a window borders on it
FEW_WINDOWS = 5
SHORT_S = 10.0  # a window that is shorter says little (MLPerf Tiny's rule, too)
DRIFTS = 0.03  # of the idle power, from before a window to after it
SETTLED = 7.0  # time constants that an IIR is given to forget: a thousandth is left
LOST = 1e-3  # of all readings
ALIASED = 0.02  # a sensor's period over an invocation's, this near to a simple ratio
DISAGREE, DISAGREE_GROSS = 0.05, 0.01  # of net and of gross energy, from the least window to the most

Array = NDArray[np.float64]
Times = NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """
    Invocations between two instants of the board's clock.

    Attributes:
        codes: why it must not count, see `deploy.results.windows.objections`.
    """

    start_ns: int
    end_ns: int
    invocations: int
    codes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class RailSamples:
    """
    What one rail's meter said.

    Attributes:
        t_ns: rising, on the board's clock.
        values: mW, or uJ of a counter that only grows.
        clock_bound_ns: `t_ns` may be off by so much; 0 where the board's own clock dated them.
        missing: share of the readings in which the rail gave nothing.
    """

    rail: Rail
    t_ns: Times
    values: Array
    clock_bound_ns: float = 0.0
    missing: float = 0.0

    @cached_property
    def curve(self) -> tuple[Times, Array] | None:
        """Times and uJ of a curve that only grows, where there is one better than trapezoids; see `_counted`."""
        return (self.t_ns, self.values) if self.rail.quantity == "energy_uj" else _counted(self)


@dataclass(frozen=True)
class EnergyReading:
    """
    Energy of one rail, or of several that add up, per invocation.

    Attributes:
        source: ``measured:<chip>@<rail>``; ``stub:``, ``modelled:`` or ``measured+corrected:`` instead where it is so.
        gross_uj, net_uj: mean over the windows; net may be negative, and is None without an idle baseline.
        gross_u_uj, net_u_uj: expanded uncertainty (k = 2), see `_budget`; None for fewer than 3 windows.
        idle_mw, active_mw: mean power.
        windows: how many were used.
        window_net_uj: of each of them, in order; empty without a baseline.
        budget: standard uncertainties of net (of gross where there is no net) in uJ, by cause.
        unstated: causes that nothing is known about, and that are therefore not in the budget.
        guarded: idle time bordered on every window.
        rejected: windows that did not count: number from 1, codes.
        codes: what else speaks against the number.
        primary: the one to look at first, among all rails of the board.
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
    window_net_uj: tuple[float, ...] = ()
    budget: dict[str, float] = field(default_factory=dict)
    unstated: tuple[str, ...] = ()
    guarded: bool = False
    rejected: tuple[tuple[int, tuple[str, ...]], ...] = ()
    codes: tuple[str, ...] = ()
    primary: bool = False


@dataclass(frozen=True)
class NoEnergy:
    """There is a meter, and no number."""

    rail: str
    reason: str
    rejected: tuple[tuple[int, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Guard:
    """Seconds before and after a window that belong to it for the sensor's sake."""

    before_s: float
    after_s: float


@dataclass(frozen=True)
class _Used:
    """One window as one rail saw it; uJ, for the whole window."""

    number: int
    window: Window
    gross: float
    net: float | None
    idle_mw: float | None
    idle_u_mw: float  # standard uncertainty of the baseline
    drift: float  # of the baseline, from before to after, as a share
    span_s: float  # over which the baseline was taken away
    idle_s: float  # on which it stands
    steps: int  # how often the value changed, so how often it was rounded anew


def guard(rail: Rail, clock_bound_s: float = 0.0, sample_s: float = 0.01) -> Guard:
    """
    How long a window reaches beyond its invocations, as a meter sees it.

    A box shows an instant for up to two periods: it may lie at the beginning of one, and is shown during the next.  An
    IIR never forgets.  It gets seven time constants, where four are often advised: what is left then also spoils the
    baseline that begins there, and that is taken away over the whole window (N = 64, 10 s: -0.3 % instead of -0.08 %).
    Nothing arrives early but by the clock and by interpolation between two samples.
    """
    memory_s = rail.update_period_s or 0.0
    early_s = clock_bound_s + 2 * sample_s
    lag_s = memory_s * (SETTLED if rail.averaging == "iir" else 2)
    return Guard(early_s, clock_bound_s + 2 * sample_s + lag_s)


def evaluate(
    rails: Sequence[RailSamples], windows: Sequence[Window], idle: Sequence[Window]
) -> tuple[EnergyReading | NoEnergy, ...]:
    """
    Energy per invocation of every rail, then of the sums of those that may be summed; one is marked as primary.

    Args:
        windows: in which the model ran.
        idle: in which the board did nothing.
    """
    every = [(samples, _seen(samples, windows, idle)) for samples in rails]
    found = [_reading([part], windows) for part in every]
    words = dict.fromkeys(samples.rail.adds for samples in rails if samples.rail.adds)
    for word in words:
        parts = [part for part in every if part[0].rail.adds == word]
        if len(parts) > 1:
            found.append(_reading(parts, windows, scope=word))
    totals = {samples.rail.name for samples in rails if samples.rail.total}
    readings = [entry for entry in found if isinstance(entry, EnergyReading)]
    first = next((r for r in readings if r.rail in totals), None)
    first = first or next((r for r in readings if "+" in r.rail), None)
    if first is None and len(found) == 1 and readings:
        first = readings[0]
    return tuple(replace(entry, primary=True) if entry is first else entry for entry in found)


def per_invocation(samples: RailSamples, windows: Sequence[Window], idle: Sequence[Window]) -> EnergyReading | NoEnergy:
    """Energy per invocation of one rail; see `evaluate`."""
    return _reading([(samples, _seen(samples, windows, idle))], windows)


# One rail


def _seen(
    samples: RailSamples, windows: Sequence[Window], idle: Sequence[Window]
) -> dict[int, _Used | tuple[str, ...]]:
    """What a rail saw of each window, by number from 1: energies, or why there is none."""
    found: dict[int, _Used | tuple[str, ...]] = {}
    for number, window in enumerate(windows, start=1):
        codes = list(window.codes)
        memory_ns = 1e9 * (samples.rail.update_period_s or 0.0)
        if samples.clock_bound_ns > max(memory_ns, 1e6):
            codes.append("window-clock")
        if codes:
            found[number] = tuple(codes)
            continue
        used = _guarded(samples, number, window, idle) or _plain(samples, number, window, idle)
        found[number] = used if isinstance(used, _Used) else (used,)
    return found


def _guarded(samples: RailSamples, number: int, window: Window, idle: Sequence[Window]) -> _Used | str | None:
    """By the superset window; None where no idle time borders on both sides, or the guards leave nothing of it."""
    before = next((i for i in idle if 0 <= window.start_ns - i.end_ns < BORDERS_NS), None)
    after = next((i for i in idle if 0 <= i.start_ns - window.end_ns < BORDERS_NS), None)
    if before is None or after is None or len(samples.t_ns) < 2:
        return None
    sample_s = float(np.median(np.diff(samples.t_ns))) / 1e9
    margin = guard(samples.rail, samples.clock_bound_ns / 1e9, sample_s)
    early_ns, late_ns = int(margin.before_s * 1e9), int(margin.after_s * 1e9)
    # What is left of an idle time once an earlier window has faded from the sensor, and before this one begins.
    quiet = [
        Window(before.start_ns + late_ns, window.start_ns - early_ns, 0),
        Window(window.end_ns + late_ns, after.end_ns - early_ns, 0),
    ]
    if number == 1 and before.end_ns - before.start_ns > 2 * early_ns:
        quiet[0] = Window(before.start_ns + early_ns, window.start_ns - early_ns, 0)
    if any(q.end_ns - q.start_ns <= 0 for q in quiet):
        return None
    whole = Window(quiet[0].end_ns, quiet[1].start_ns, window.invocations)
    energy = integrate(samples, whole)
    if isinstance(energy, str):
        return energy
    levels = [_level(samples, q) for q in quiet]
    if any(level is None for level in levels):
        return None
    (mw0, u0), (mw1, u1) = (level for level in levels if level is not None)
    middle = [(q.start_ns + q.end_ns) / 2 for q in quiet]
    at = ((whole.start_ns + whole.end_ns) / 2 - middle[0]) / (middle[1] - middle[0])
    idle_mw = mw0 + (mw1 - mw0) * at
    net = energy - idle_mw * 1000 * whole.seconds
    return _Used(
        number=number,
        window=window,
        gross=net + idle_mw * 1000 * window.seconds,
        net=net,
        idle_mw=idle_mw,
        idle_u_mw=float(np.hypot(u0 * (1 - at), u1 * at)),
        drift=abs(mw1 - mw0) / max(abs(idle_mw), 1e-9),
        span_s=whole.seconds,
        idle_s=sum(q.seconds for q in quiet) / 2,
        steps=_steps(samples, window),
    )


def _plain(samples: RailSamples, number: int, window: Window, idle: Sequence[Window]) -> _Used | str:
    """By the window alone, and the idle power wherever it was seen."""
    energy = integrate(samples, window)
    if isinstance(energy, str):
        return energy
    seen = [(span, level) for span in idle if (level := _level(samples, span)) is not None]
    idle_s = sum(span.seconds for span, _ in seen)
    idle_mw = sum(level[0] * span.seconds for span, level in seen) / idle_s if seen else None
    return _Used(
        number=number,
        window=window,
        gross=energy,
        net=None if idle_mw is None else energy - idle_mw * 1000 * window.seconds,
        idle_mw=idle_mw,
        idle_u_mw=float(np.sqrt(sum((u * span.seconds) ** 2 for span, (_, u) in seen))) / idle_s if seen else 0.0,
        drift=abs(seen[-1][1][0] - seen[0][1][0]) / max(abs(idle_mw), 1e-9) if idle_mw is not None else 0.0,
        span_s=window.seconds,
        idle_s=idle_s,
        steps=_steps(samples, window),
    )


def integrate(samples: RailSamples, window: Window) -> float | str:
    """
    Energy of `window` in uJ, or the code of why there is none.

    Power is integrated by trapezoids over the samples' own times, its value at the edges interpolated; a counter, and
    what `_counted` makes into one, is read off at the edges.
    """
    t, values = samples.t_ns, samples.values
    first, last = np.searchsorted(t, [window.start_ns, window.end_ns + 1])
    inside = t[first:last]
    if len(inside) < MIN_SAMPLES:
        return "window-few-samples"
    if t[0] > window.start_ns or t[-1] < window.end_ns:
        return "window-uncovered"
    edges = np.array([window.start_ns, window.end_ns])
    if samples.rail.quantity == "energy_uj":  # a counter goes on while nobody looks: only the edges matter
        gap_s, longest_s = max(inside[0] - edges[0], edges[1] - inside[-1]) / 1e9, MAX_GAP * window.seconds
    else:
        gap_s = float(np.diff(np.concatenate((edges[:1], inside, edges[1:]))).max()) / 1e9
        longest_s = _longest_gap_s(samples, window)
    if gap_s > longest_s:
        return "window-gap"
    if samples.curve is not None:
        at_edges = np.interp(edges, *samples.curve)
        return float(at_edges[1] - at_edges[0])
    at_edges = np.interp(edges, t, values)
    times = np.concatenate((edges[:1], inside, edges[1:]))
    power_mw = np.concatenate((at_edges[:1], values[first:last], at_edges[1:]))
    return float(np.trapezoid(power_mw, times) / 1e6)  # mW x ns = 1e-6 uJ


def _counted(samples: RailSamples) -> tuple[Times, Array] | None:
    """
    The energy of a box that is read more often than it changes, as a curve over time; None for any other sensor.

    Its value stands still and then jumps, and between two reads nobody sees when: trapezoids would guess anew at each
    jump (INA226 read at 100 Hz, load of 100 ms: 0.7 % of a window).  But the jumps keep the sensor's own clock, so a
    loop locks to them: each is predicted, whole periods after the one before, and moved a tenth of the way to where it
    was seen.
    """
    period_ns = 1e9 * (samples.rail.update_period_s or 0.0)
    if samples.rail.averaging != "box" or len(samples.t_ns) < 2 * MIN_SAMPLES:
        return None
    step_ns = float(np.median(np.diff(samples.t_ns)))
    jumps = np.flatnonzero(np.diff(samples.values))
    if period_ns < 2.5 * step_ns or len(jumps) < MIN_SAMPLES:
        return None
    seen = (samples.t_ns[jumps] + samples.t_ns[jumps + 1]) / 2
    at = np.empty(len(seen))
    at[0], missed = seen[0], 0.0
    for i, when in enumerate(seen[1:].tolist(), start=1):
        periods = max(1, round((when - at[i - 1]) / period_ns))
        expected = at[i - 1] + periods * period_ns
        error = when - expected
        missed += error**2
        at[i] = expected + error / 10
        period_ns += error / periods / 100
    if (missed / len(seen)) ** 0.5 > step_ns or (np.diff(at) <= 0).any():
        return None  # it does not keep the period that it says
    nodes = np.concatenate(([samples.t_ns[0]], at, [samples.t_ns[-1]])) if at[-1] < samples.t_ns[-1] else None
    if nodes is None or at[0] <= samples.t_ns[0]:
        return None
    held = np.concatenate((samples.values[jumps], samples.values[-1:]))
    return nodes.astype(np.int64), np.concatenate(([0.0], np.cumsum(held * np.diff(nodes) / 1e6)))


def _longest_gap_s(samples: RailSamples, window: Window) -> float:
    """
    Five sampling periods; or what the sensor itself remembers, as its average goes on while nobody looks.  Never more
    than a tenth of the window.
    """
    period_s = float(np.median(np.diff(samples.t_ns))) / 1e9
    memory_s = (samples.rail.update_period_s or 0.0) if samples.rail.averaging in ("box", "iir") else 0.0
    return min(max(GAP_PERIODS * period_s, memory_s), MAX_GAP * window.seconds)


def _level(samples: RailSamples, span: Window) -> tuple[float, float] | None:
    """
    Mean power (mW) in a span and its standard uncertainty; None where the samples do not give it.

    From the means of up to eight stretches, each at least two of the sensor's periods long: samples that follow each
    other resemble each other.
    """
    energy = integrate(samples, span)
    if isinstance(energy, str):
        return None
    memory_s = samples.rail.update_period_s or 0.0
    first, last = np.searchsorted(samples.t_ns, [span.start_ns, span.end_ns + 1])
    independent = span.seconds / (2 * memory_s) if memory_s else float("inf")
    count = int(min(8, independent, (last - first) // MIN_SAMPLES))
    edges = np.linspace(span.start_ns, span.end_ns, max(count, 1) + 1).astype(np.int64)
    parts = [integrate(samples, Window(int(a), int(b), 0)) for a, b in pairwise(edges)]
    means = [part / (span.seconds / len(parts)) / 1000 for part in parts if not isinstance(part, str)]
    if len(means) > 1:
        u_mw = float(np.std(means, ddof=1) / len(means) ** 0.5)
    elif samples.rail.quantity == "power_mw":
        u_mw = float(np.std(samples.values[first:last]) / max(1.0, min(independent, last - first)) ** 0.5)
    else:
        u_mw = 0.0  # a counter has no noise but its steps, and those are in the budget
    return energy / span.seconds / 1000, u_mw


def _steps(samples: RailSamples, window: Window) -> int:
    """
    How often the value was rounded anew: each time it turned round.  One that only rises, as an IIR does for seconds,
    and one that stands still are rounded the same way all the time.
    """
    first, last = np.searchsorted(samples.t_ns, [window.start_ns, window.end_ns + 1])
    moves = np.diff(samples.values[first:last])
    moves = moves[moves != 0]
    return int(np.count_nonzero(moves[1:] * moves[:-1] < 0)) + 1


# Readings


Part = tuple[RailSamples, dict[int, _Used | tuple[str, ...]]]

_REASONS = {
    "window-few-samples": f"fewer than {MIN_SAMPLES} samples in a window",
    "window-uncovered": "the samples do not cover the window",
    "window-gap": "no sample for too long within the window",
}


def _reading(parts: Sequence[Part], windows: Sequence[Window], scope: str | None = None) -> EnergyReading | NoEnergy:
    """The reading of one rail, or of the sum of several: only windows count that every one of them saw."""
    rails = [samples.rail for samples, _ in parts]
    name = "+".join(rail.name for rail in rails)
    rejected: list[tuple[int, tuple[str, ...]]] = []
    used: list[list[_Used]] = []
    for number in range(1, len(windows) + 1):
        seen = [by_number[number] for _, by_number in parts]
        codes = dict.fromkeys(code for entry in seen if isinstance(entry, tuple) for code in entry)
        if codes:
            rejected.append((number, tuple(codes)))
        else:
            used.append([entry for entry in seen if isinstance(entry, _Used)])
    if not used:
        codes = dict.fromkeys(code for _, because in rejected for code in because)
        reason = "; ".join(_REASONS.get(code, code) for code in codes) or "no window"
        return NoEnergy(name, reason, tuple(rejected))
    counts = np.array([row[0].window.invocations for row in used], float)
    gross = np.array([sum(entry.gross for entry in row) for row in used]) / counts
    with_net = all(entry.net is not None for row in used for entry in row)
    net = np.array([sum(entry.net or 0.0 for entry in row) for row in used]) / counts if with_net else None
    seconds = sum(row[0].window.seconds for row in used)
    idle = [
        sum(entry.idle_mw or 0.0 for entry in row) * row[0].window.seconds for row in used
    ] if with_net else []  # fmt: skip
    guarded = all(entry.idle_mw is not None and entry.span_s > entry.window.seconds for row in used for entry in row)
    gross_budget, unstated = _budget(parts, used, gross, net, guarded, of_net=False)
    budget, _ = _budget(parts, used, gross, net, guarded, of_net=True) if net is not None else (gross_budget, ())
    chips = "+".join(dict.fromkeys(rail.chip for rail in rails))
    origins = "+".join(dict.fromkeys(rail.origin for rail in rails))
    enough = len(used) >= 3
    return EnergyReading(
        rail=name,
        source=f"{origins}:{chips}@{name}",
        scope=scope or rails[0].scope,
        gross_uj=float(gross.mean()),
        net_uj=None if net is None else float(net.mean()),
        gross_u_uj=_expanded(gross_budget) if enough else None,
        net_u_uj=_expanded(budget) if enough and net is not None else None,
        idle_mw=sum(idle) / seconds if with_net else None,
        active_mw=float((gross * counts).sum()) / seconds / 1000,
        windows=len(used),
        window_net_uj=() if net is None else tuple(float(value) for value in net),
        budget=budget,
        unstated=unstated,
        guarded=guarded,
        rejected=tuple(rejected),
        codes=_codes(parts, used, gross, net),
    )


def _budget(
    parts: Sequence[Part],
    used: Sequence[Sequence[_Used]],
    gross: Array,
    net: Array | None,
    guarded: bool,
    of_net: bool,
) -> tuple[dict[str, float], tuple[str, ...]]:
    """
    Standard uncertainties per invocation in uJ by cause, and the causes of which nothing is known.

    * repetition: spread of the windows over the root of their number, times t(97.5 %, n - 1) / 2, so that twice it is
      a 95 % interval for few windows, too.
    * gain: a bound, so its width over the root of 3; the same for all windows, and added up over rails.
    * offset: the same, in power times time; cancels in net.
    * resolution: one step over the root of 12, once for the window and once for idle; a value that does not move is
      rounded the same way all the time, so only moves average it out.
    * lag: what the sensor still holds when the guard ends; without guards, its period times the change of power over
      the root of 6.
    * clock: 2 (bound x change of power)^2 / 3; cancels with guards.
    * baseline: of the idle power, over the time for which it was taken away.
    """
    n = len(used)
    values = net if of_net and net is not None else gross
    invocations = float(np.mean([row[0].window.invocations for row in used]))
    found: dict[str, float] = {}
    unstated: set[str] = set()
    if n >= 2:
        found["repetition"] = float(values.std(ddof=1)) / n**0.5 * t_975(n - 1) / 2
    for k, (samples, _) in enumerate(parts):
        rail = samples.rail
        mine = [row[k] for row in used]
        seconds = float(np.mean([entry.window.seconds for entry in mine]))
        energy = float(np.mean([(entry.net if of_net else entry.gross) or 0.0 for entry in mine])) / invocations
        change_mw = abs(float(np.mean([(entry.net or 0.0) / entry.window.seconds for entry in mine]))) / 1000
        per_mw = seconds * 1000 / invocations  # uJ per invocation for a power of 1 mW
        if rail.gain is None:
            unstated.add("gain")
        else:
            _add(found, "gain", rail.gain * abs(energy) / 3**0.5)
        if not of_net:
            if rail.offset_mw is None:
                unstated.add("offset")
            else:
                _add(found, "offset", rail.offset_mw * per_mw / 3**0.5)
        if rail.lsb is None:
            unstated.add("resolution")
        elif rail.quantity == "energy_uj":
            _add(found, "resolution", rail.lsb * (2 / 12) ** 0.5 / invocations)
        else:
            steps = float(np.mean([entry.steps for entry in mine]))
            # The baseline is rounded too, and taken away for as long as the value differs from it.
            away = min(float(np.mean([e.span_s for e in mine])), seconds + 3 * (rail.update_period_s or 0.0)) / seconds
            _add(found, "resolution", rail.lsb * per_mw * ((1 / steps + of_net * away**2) / 12) ** 0.5)
        if rail.update_period_s is None:
            unstated.add("lag")
        elif not guarded:
            _add(found, "lag", rail.update_period_s * change_mw * 1000 / invocations / 6**0.5)
        elif rail.averaging == "iir":
            # In the energy, and in the baseline, which is taken away over a time longer than its own.
            span_s = float(np.mean([entry.span_s / max(entry.idle_s, 1e-9) for entry in mine]))
            left = rail.update_period_s * float(np.exp(-SETTLED)) * (1 + span_s / 2)
            _add(found, "lag", left * change_mw * 1000 / invocations / 3**0.5)
        if samples.clock_bound_ns and not guarded:
            moved = samples.clock_bound_ns / 1e9 * change_mw * 1000 / invocations
            _add(found, "clock", float(moved * (2 / 3) ** 0.5))
        if of_net or guarded:
            # For gross the baseline is taken away over the window and guards, and given back over the window.
            spans = [entry.span_s - (0.0 if of_net else entry.window.seconds) for entry in mine]
            u_uj = [entry.idle_u_mw * 1000 * span for entry, span in zip(mine, spans, strict=True)]
            _add(found, "baseline", float(np.sqrt(np.mean(np.square(u_uj)) / n)) / invocations)
    return found, tuple(sorted(unstated))


def _add(found: dict[str, float], cause: str, value: float) -> None:
    """Rails that add up share their maker, so their errors may share a sign: linearly, not in squares."""
    found[cause] = found.get(cause, 0.0) + value


def _expanded(budget: dict[str, float]) -> float:
    return 2 * float(np.sqrt(sum(u**2 for u in budget.values())))


def _codes(parts: Sequence[Part], used: Sequence[Sequence[_Used]], gross: Array, net: Array | None) -> tuple[str, ...]:
    """What speaks against a reading whose windows are sound, one by one."""
    codes = []
    if len(used) < FEW_WINDOWS:
        codes.append("few-windows")
    if any(row[0].window.seconds < SHORT_S * 0.99 for row in used):
        codes.append("short-windows")
    if any(entry.drift > DRIFTS for row in used for entry in row):
        codes.append("idle-drifts")
    # A model that adds next to nothing to the idle power is lost in its noise: that is no disagreement.
    if net is not None and np.ptp(net) > max(DISAGREE * abs(net.mean()), DISAGREE_GROSS * abs(gross.mean())):
        codes.append("windows-disagree")
    window = used[0][0].window
    each_s = window.seconds / max(window.invocations, 1)
    if any(is_aliased(samples.rail, each_s) for samples, _ in parts):
        codes.append("aliased")
    if any(samples.missing > LOST for samples, _ in parts):
        codes.append("meter-gaps")
    return tuple(codes)


def is_aliased(rail: Rail, invocation_s: float) -> bool:
    """
    Whether a sensor that looks at points in time, at a period of its own, meets the same phases of each invocation
    again and again; jittered reading does not cure that.

    Its period over an invocation's is then k/m for a small m.  Larger m cannot be told from the sensor's nominal
    period: there each window begins at another phase, and what they differ by is in the uncertainty.  Invocations much
    shorter than the period (a sixth: of 6.6 ms an ina3221 looks for 1.1 ms) are averaged by the look itself.
    """
    if rail.averaging != "none" or not rail.update_period_s or invocation_s < rail.update_period_s / 6:
        return False
    ratio = rail.update_period_s / invocation_s
    return any(abs(ratio - round(ratio * m) / m) < ALIASED for m in (1, 2, 3) if round(ratio * m))
