"""Energy from samples whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.results.energy import (
    EnergyReading,
    Guard,
    NoEnergy,
    RailSamples,
    Window,
    evaluate,
    guard,
    integrate,
    is_aliased,
    per_invocation,
)
from devices.protocol.meter import Rail
from tests.sensors import SENSORS, Load, Sensor, look, schedule, trial

S = 1_000_000_000  # ns
Power = Callable[[np.ndarray[Any, Any]], Any]  # seconds -> mW


def sampled(power_mw: Power, seconds: float = 10.0, rate_hz: float = 100.0, jitter: bool = True) -> RailSamples:
    """A meter that is read as `devices.protocol.sampling` does: with pauses of half to one and a half periods."""
    rng = np.random.default_rng(3)
    pauses = rng.uniform(0.5, 1.5, int(seconds * rate_hz * 2)) if jitter else np.ones(int(seconds * rate_hz) + 2)
    t = np.cumsum(pauses) / rate_hz
    t = t[t <= seconds]
    return rail(np.rint(t * S), np.asarray(power_mw(t), np.float64) + 0 * t)


def rail(t_ns: Any, values: Any, quantity: str = "power_mw") -> RailSamples:
    known = Rail("VDD_IN", "ina3221", "module", quantity)
    return RailSamples(known, np.asarray(t_ns, np.int64), np.asarray(values, float))


def window(start_s: float, end_s: float, invocations: int = 1) -> Window:
    return Window(int(start_s * S), int(end_s * S), invocations)


def reading(samples: RailSamples, windows: list[Window], idle: list[Window] | None = None) -> EnergyReading:
    found = per_invocation(samples, windows, idle or [])
    assert isinstance(found, EnergyReading)
    return found


# Integration


@pytest.mark.parametrize(
    ("power_mw", "start_s", "end_s", "expected_uj"),
    [
        (lambda t: 2000.0, 1.0, 3.0, 4e6),  # 2 W for 2 s
        (lambda t: 1000 * t, 1.0, 3.0, 4e6),  # a ramp: mean 2 W; trapezoids are exact
        (lambda t: 1000 * t, 1.2345, 3.4567, 500e3 * (3.4567**2 - 1.2345**2)),  # edges between two samples
        (lambda t: np.where(t < 2, 1000.0, 3000.0), 1.0, 3.0, 4e6),  # a step, half way
        (lambda t: 2000 + 1000 * np.sin(2 * np.pi * t), 1.0, 3.0, 4e6),  # whole periods
        (lambda t: 0.0, 1.0, 3.0, 0.0),  # measured, and nothing: a zero that is true
    ],
    ids=["constant", "ramp", "edges", "step", "sine", "nothing"],
)
def test_energy_is_the_integral_of_power(power_mw: Power, start_s: float, end_s: float, expected_uj: float) -> None:
    """A step falls between two samples 10 ms apart: up to 5 ms times 2 W are not seen, 0.25 %."""
    assert pytest.approx(expected_uj, rel=0.003, abs=1) == integrate(sampled(power_mw), window(start_s, end_s))


@given(
    powers=st.lists(st.floats(0, 1e5), min_size=30, max_size=30),
    cut=st.integers(11, 18),
)
@settings(deadline=None, database=None, max_examples=60)
def test_the_energy_of_two_windows_end_to_end_is_that_of_both(powers: list[float], cut: int) -> None:
    samples = rail(np.arange(30) * S, powers)
    at = cut * S + S // 3

    parts = [integrate(samples, Window(0, at, 1)), integrate(samples, Window(at, 29 * S, 1))]

    whole = integrate(samples, Window(0, 29 * S, 1))
    assert isinstance(whole, float)
    assert pytest.approx(whole, rel=1e-9, abs=1e-3) == sum(part for part in parts if isinstance(part, float))
    assert all(isinstance(part, float) for part in parts)


def test_a_counter_is_read_off_at_the_windows_edges() -> None:
    """How it got from one edge to the other does not matter; between two readings it is interpolated."""
    t = np.arange(0, 101) * S // 10
    wild = rail(t, 1000 + np.cumsum(np.random.default_rng(1).integers(0, 50, 101)), "energy_uj")
    steady = rail(t, t * 3e-9, "energy_uj")

    assert wild.values[70] - wild.values[20] == integrate(wild, window(2, 7))
    assert pytest.approx(3 * (7.777 - 2.345)) == integrate(steady, window(2.345, 7.777))


def test_a_counter_goes_on_while_nobody_looks() -> None:
    """Only at the edges of a window must it be read; power must be looked at all the while."""
    t = np.concatenate((np.arange(0, 25), np.arange(75, 100))) * S // 10
    counter, power = rail(t, t * 3e-9, "energy_uj"), rail(t, np.full(50, 3.0))

    assert pytest.approx(18) == integrate(counter, window(2, 8))
    assert ("window-gap", "window-gap") == (integrate(power, window(2, 8)), integrate(counter, window(3, 9.5)))


def test_a_counters_energy_equals_that_of_the_power_it_counts() -> None:
    power = sampled(lambda t: 1500 + 500 * np.sin(t), rate_hz=1000)
    seconds = power.t_ns / S
    counter = rail(power.t_ns, 1e3 * (1500 * seconds - 500 * np.cos(seconds)), "energy_uj")

    by_power, by_counter = integrate(power, window(1, 9)), integrate(counter, window(1, 9))

    assert pytest.approx(by_counter, rel=1e-5) == by_power


def test_a_load_that_switches_every_50_ms_is_seen_by_jittered_sampling() -> None:
    """Measured elsewhere: sampling at a fixed period that divides the load's is off by up to 73 %."""

    def square(t: np.ndarray[Any, Any]) -> Any:
        return np.where((t * 10) % 1 < 0.5, 4000.0, 1000.0)

    truth_uj = 2500e3 * 8

    aliased = sampled(square, rate_hz=10, jitter=False)
    found = [integrate(sampled(square, rate_hz=rate), window(1, 9)) for rate in (20, 100)]

    assert pytest.approx(truth_uj, rel=0.05) == found[0]
    assert pytest.approx(truth_uj, rel=0.02) == found[1]
    assert pytest.approx(truth_uj, rel=0.3) != integrate(aliased, window(1, 9))


# Per invocation


def test_energy_is_the_mean_over_the_windows_and_per_invocation() -> None:
    found = reading(sampled(lambda t: 2000.0), [window(1, 3, 100), window(4, 5, 50), window(6, 8, 100)])

    assert ("VDD_IN", "measured:ina3221@VDD_IN", "module", 3) == (
        found.rail, found.source, found.scope, found.windows
    )  # fmt: skip
    assert (pytest.approx(40_000), pytest.approx(2000)) == (found.gross_uj, found.active_mw)
    assert (None, None, None) == (found.net_uj, found.net_u_uj, found.idle_mw)
    assert pytest.approx(0, abs=1e-6) == found.gross_u_uj


def test_net_is_what_the_board_draws_more_than_when_idle() -> None:
    def power(t: np.ndarray[Any, Any]) -> Any:
        return np.where((t > 3) & (t < 7), 3500.0, 1500.0)

    found = reading(sampled(power), [window(4, 6, 100)], [window(0.5, 2.5), window(7.5, 9.5)])

    assert (1500, 3500, 70_000, 40_000) == tuple(
        pytest.approx(value) for value in (found.idle_mw, found.active_mw, found.gross_uj, found.net_uj)
    )


def test_idle_power_is_weighed_by_the_time_it_was_seen() -> None:
    """One second at 1 W and three at 2 W are 1.75 W, also where the board warmed up between."""
    found = reading(
        sampled(lambda t: np.where(t < 5, 1000.0, 2000.0)), [window(6, 8, 10)], [window(1, 2), window(6, 9)]
    )

    assert pytest.approx(1750) == found.idle_mw


def test_windows_that_differ_say_so_unless_the_model_takes_next_to_nothing() -> None:
    """Windows of 4 W and 4.5 W over 2 W of idle; then of 2.00 W and 2.01 W."""

    def codes(*powers_mw: float) -> tuple[str, ...]:
        t = np.arange(0, 40_000, 10) * 1_000_000
        values = np.full(len(t), 2000.0)
        windows = [Window(int(s * 1e9), int((s + 5) * 1e9), 10) for s in (5, 15, 25)]
        for window, power_mw in zip(windows, powers_mw, strict=True):
            values[(t >= window.start_ns) & (t <= window.end_ns)] = power_mw
        idle = [Window(int(s * 1e9), int((s + 5) * 1e9), 0) for s in (0, 10, 20, 30)]
        rail = Rail("VDD_IN", "ina226", "module", "power_mw", 0.035)
        found = per_invocation(RailSamples(rail, t, values), windows, idle)
        assert isinstance(found, EnergyReading)
        return found.codes

    assert "windows-disagree" in codes(4000, 4500, 4000)
    assert "windows-disagree" not in codes(4000, 4050, 4000)
    assert "windows-disagree" not in codes(2000, 2010, 2000)


def test_a_net_below_zero_stays_below_zero() -> None:
    """A board that drew more when it was idle: worth seeing, and no reason to invent a zero."""
    found = reading(
        sampled(lambda t: np.where((t > 3) & (t < 7), 1000.0, 1200.0)), [window(4, 6, 100)], [window(0.5, 2.5)]
    )

    assert pytest.approx(-4000) == found.net_uj


def test_the_uncertainty_of_repetition_is_that_of_a_mean_of_few_windows() -> None:
    """
    Three windows of 1, 2 and 3 W: standard deviation 1 W, over the root of 3, times Student's 4.303 and not 2: a 95 %
    interval for three values, too.
    """
    found = reading(
        sampled(lambda t: 1000 * np.floor(t / 3 + 1)),
        [window(0.5, 2.5, 1000), window(3.5, 5.5, 1000), window(6.5, 8.5, 1000)],
    )

    assert pytest.approx(4.303 * 2000 / 3**0.5, rel=1e-3) == found.gross_u_uj


@pytest.mark.parametrize(("count", "there"), [(1, False), (2, False), (3, True)])
def test_fewer_than_three_windows_have_no_uncertainty(count: int, there: bool) -> None:
    found = reading(sampled(lambda t: 2000.0), [window(1 + i, 2 + i) for i in range(count)])

    assert there == (found.gross_u_uj is not None)


# The budget


def steady(rail: Rail, active_mw: float, count: int = 3) -> EnergyReading:
    """Windows of 2 s and 1000 invocations at `active_mw`, 1 W before, between and after."""
    t = np.arange(0, count * 4 + 2, 0.01) + 0.005
    values = np.where((t % 4 > 2) & (t < count * 4), active_mw, 1000.0)
    if rail.quantity == "energy_uj":
        values = np.cumsum(values) * 10
    windows = [window(4 * i + 2, 4 * i + 4, 1000) for i in range(count)]
    idle = [window(4 * i, 4 * i + 2) for i in range(count + 1)]
    (found,) = evaluate([RailSamples(rail, np.rint(t * S).astype(np.int64), values)], windows, idle)
    assert isinstance(found, EnergyReading)
    return found


def rail_with(**known: Any) -> Rail:
    return Rail("VDD_IN", "ina3221", "module", "power_mw", **known)


def test_gain_is_a_bound_and_counts_by_the_root_of_three() -> None:
    """3 W for 2 s less 1 W idle is 4 mJ for each of 1,000 invocations; 1 % of it over 1.732 is 23.1 uJ."""
    found = steady(rail_with(gain=0.01), 3000)

    assert pytest.approx(4000, rel=0.01) == found.net_uj
    assert pytest.approx(40 / 3**0.5, rel=0.01) == found.budget["gain"]


def test_an_offset_cancels_in_net_and_not_in_gross() -> None:
    """50 mW for 2 ms is 100 uJ."""
    with_offset, without = steady(rail_with(offset_mw=50.0), 3000), steady(rail_with(offset_mw=0.0), 3000)

    assert "offset" not in with_offset.budget and with_offset.net_u_uj == without.net_u_uj
    assert with_offset.gross_u_uj is not None and without.gross_u_uj is not None
    assert pytest.approx(4 * (100 / 3**0.5) ** 2) == with_offset.gross_u_uj**2 - without.gross_u_uj**2


def test_a_value_that_never_moves_is_rounded_the_same_way_all_the_time() -> None:
    """40 mW over 2 ms is 80 uJ; over the root of 12, once for the window and once for idle."""
    assert pytest.approx(80 * (2 / 12) ** 0.5) == steady(rail_with(lsb=40.0), 3000).budget["resolution"]


def test_what_nothing_is_known_of_is_named_and_not_in_the_error() -> None:
    nothing = steady(rail_with(), 3000)
    everything = steady(rail_with(update_period_s=0.007, averaging="none", gain=0.01, offset_mw=1.0, lsb=1.0), 3000)

    assert (("gain", "lag", "offset", "resolution"), ()) == (nothing.unstated, everything.unstated)


def test_without_idle_time_at_its_borders_a_window_has_the_sensors_lag_in_its_error() -> None:
    """35 ms of 2 W, over the root of 6, is 28.6 mJ of a window."""
    samples = replace(sampled(lambda t: np.where(t > 3, 3000.0, 1000.0)), rail=rail_with(update_period_s=0.035))
    found = reading(samples, [window(4 + i, 5 + i, 1000) for i in range(3)], [window(0.5, 2.5)])

    assert not found.guarded
    assert pytest.approx(0.035 * 2000 * 1000 / 6**0.5 / 1000, rel=0.01) == found.budget["lag"]


def test_the_clocks_bound_counts_only_without_guards() -> None:
    """2/3 of (2 ms x 2 W) squared, in a window of 1,000 invocations."""
    samples = replace(sampled(lambda t: np.where(t > 3, 3000.0, 1000.0)), rail=rail_with(update_period_s=0.035),
                      clock_bound_ns=2e6)  # fmt: skip
    found = reading(samples, [window(4 + i, 5 + i, 1000) for i in range(3)], [window(0.5, 2.5)])

    assert pytest.approx((2 / 3) ** 0.5 * 0.002 * 2000 * 1000 / 1000, rel=0.01) == found.budget["clock"]


# Guards


@pytest.mark.parametrize(
    ("rail", "before_s", "after_s"),
    [
        (rail_with(), 0.02, 0.02),  # two sampling periods, for the interpolation
        (rail_with(update_period_s=0.0066, averaging="none"), 0.02, 0.0332),
        (rail_with(update_period_s=0.035, averaging="box"), 0.02, 0.09),  # averaged over one, shown during another
        (rail_with(update_period_s=0.4224, averaging="iir"), 0.02, 2.9768),  # seven time constants
    ],
    ids=["unknown", "point", "box", "iir"],
)
def test_a_guard_is_as_long_as_the_sensor_remembers(rail: Rail, before_s: float, after_s: float) -> None:
    assert Guard(pytest.approx(before_s), pytest.approx(after_s)) == guard(rail)


def test_the_bound_of_the_clock_widens_a_guard_on_both_sides() -> None:
    assert Guard(pytest.approx(0.023), pytest.approx(0.093)) == guard(
        rail_with(update_period_s=0.035, averaging="box"), clock_bound_s=0.003
    )


def test_net_does_not_mind_a_clock_that_is_off_by_less_than_its_bound() -> None:
    windows, idle = [window(5, 10, 1000)], [window(0, 5), window(10, 15)]
    found = []
    for off_s in (-0.003, 0.0, 0.003):
        t = np.arange(0, 15, 0.001)
        values = np.where((t + off_s > 5) & (t + off_s < 10), 3000.0, 1000.0)
        known = replace(rail(t * S, values), rail=rail_with(update_period_s=0.01), clock_bound_ns=3e6)
        found.append(reading(known, windows, idle).net_uj)

    assert pytest.approx(10_000, rel=1e-3) == found[0] == pytest.approx(found[1], rel=1e-4)
    assert pytest.approx(found[2], rel=1e-4) == found[1]


def test_an_idle_power_that_drifts_is_interpolated_and_said() -> None:
    """From 1 W to 1.5 W in a straight line, and 2 W more in the window: net is 2 W all the same."""

    def power(t: np.ndarray[Any, Any]) -> Any:
        return 1000 + 500 * t / 10 + np.where((t > 4) & (t < 6), 2000, 0)

    found = reading(sampled(power), [window(4, 6, 1000)], [window(0, 4), window(6, 10)])

    assert pytest.approx(4000, rel=0.005) == found.net_uj
    assert "idle-drifts" in found.codes


# Which windows count, which rails add up


def test_a_window_that_must_not_count_is_rejected_with_its_codes_and_the_others_count() -> None:
    samples = sampled(lambda t: 2000.0)
    windows = [window(1, 2, 10), replace(window(3, 4, 10), codes=("window-throttled",)), window(5, 6, 10)]

    found = reading(samples, windows)

    assert (2, ((2, ("window-throttled",)),)) == (found.windows, found.rejected)


def test_a_clock_that_is_worse_than_the_sensors_memory_rejects_every_window() -> None:
    samples = replace(sampled(lambda t: 2000.0), rail=rail_with(update_period_s=0.001), clock_bound_ns=2e6)

    found = per_invocation(samples, [window(1, 3)], [])

    assert NoEnergy("VDD_IN", "window-clock", ((1, ("window-clock",)),)) == found


def test_rails_that_may_be_summed_are_and_the_sum_comes_first() -> None:
    """AGX Orin: three rails make the module, and one that may hang on another of them is left out."""
    added = [Rail(name, "ina3221", "soc-rails", "power_mw", adds="module", gain=0.01) for name in ("GPU", "CPU")]
    other = Rail("VDDQ", "ina3221", "rail", "power_mw")
    t = np.arange(0, 10, 0.01)
    samples = [RailSamples(known, np.rint(t * S).astype(np.int64), np.full(len(t), mw)) for known, mw in
               ((added[0], 1000.0), (added[1], 500.0), (other, 250.0))]  # fmt: skip

    found = evaluate(samples, [window(1 + i, 2 + i, 1000) for i in range(3)], [])

    assert all(isinstance(entry, EnergyReading) for entry in found)
    total = found[-1]
    assert isinstance(total, EnergyReading)
    assert ("GPU+CPU", "measured:ina3221@GPU+CPU", "module") == (total.rail, total.source, total.scope)
    assert pytest.approx(1500) == total.gross_uj
    assert pytest.approx(15 / 3**0.5) == total.budget["gain"]  # one maker, perhaps one sign: added, not in squares
    assert ["GPU+CPU"] == [entry.rail for entry in found if isinstance(entry, EnergyReading) and entry.primary]


@pytest.mark.parametrize(
    ("period_s", "averaging", "invocation_s", "expected"),
    [
        (0.0066, "none", 0.0066, True),  # one look in each invocation, always at the same place
        (0.0066, "none", 0.0132, True),
        (0.0066, "none", 0.0099, True),  # 2/3
        (0.0066, "none", 0.0081, False),
        (0.0066, "none", 0.0001, False),  # a look is as long as eleven invocations
        (0.0066, "box", 0.0066, False),  # a box misses nothing
        (None, None, 0.0066, False),
    ],
)
def test_a_sensor_that_looks_at_the_same_places_again_and_again_is_aliased(
    period_s: float | None, averaging: str | None, invocation_s: float, expected: bool
) -> None:
    assert expected == is_aliased(rail_with(update_period_s=period_s, averaging=averaging), invocation_s)


# Through simulated sensors; the figures are in tests/benchmarks/energy.py


@pytest.mark.parametrize("sensor", SENSORS, ids=lambda sensor: sensor.name)
def test_net_energy_through_a_sensor_is_the_truth_within_half_a_percent(sensor: Sensor) -> None:
    """A load of 100 ms, 2 W and 6 W in turns; without guards, an IIR of 512 would lose a third."""
    rate_hz = 300.0 if sensor.name.endswith("N=1") else 100.0
    found, truth_uj = trial(sensor, np.random.default_rng(5), 0.1, rate_hz=rate_hz)

    assert found.guarded
    assert pytest.approx(truth_uj, rel=0.005) == found.net_uj


def test_a_box_that_is_read_more_often_than_it_changes_is_locked_to_its_own_clock() -> None:
    """The same samples by trapezoids, as of a sensor that does not tell its period, scatter ten times as wide."""
    locked, free = [], []
    for seed in range(6):
        sensor = SENSORS[0]
        windows, idle = schedule(sensor, 1, 10.0, 3.0)
        load = Load([(windows[0].start_ns / 1e9, windows[0].end_ns / 1e9)], 0.1)
        samples = look(sensor, load, idle[-1].end_ns / 1e9, np.random.default_rng(seed))
        truth = float(load.net_mj(1e9)) * 1000 / 100
        locked.append(abs((reading(samples, windows, idle).net_uj or 0) / truth - 1))
        blind = replace(samples, rail=replace(samples.rail, averaging="none"))
        free.append(abs((reading(blind, windows, idle).net_uj or 0) / truth - 1))

    assert max(locked) < 0.002 and np.mean(free) > 5 * np.mean(locked)


# No energy


@pytest.mark.parametrize(
    ("samples", "windows", "reason"),
    [
        (sampled(lambda t: 1.0, rate_hz=4, jitter=False), [window(1, 3)],
         "fewer than 10 samples in a window"),
        (rail([], []), [window(1, 3)], "fewer than 10 samples in a window"),
        (sampled(lambda t: 1.0, seconds=2.9), [window(1, 3)], "the samples do not cover the window"),
        (rail(np.arange(11, 40) * S // 10, np.ones(29)), [window(1, 3)], "the samples do not cover the window"),
        (rail(np.delete(np.arange(0, 100), range(15, 18)) * S // 10, np.ones(97)), [window(1, 3)],
         "no sample for too long within the window"),
        # the gap may lie at an edge too: interpolation would cover it up
        (rail(np.delete(np.arange(0, 100), range(9, 13)) * S // 10, np.ones(96)), [window(1, 3)],
         "no sample for too long within the window"),
        (sampled(lambda t: 1.0), [], "no window"),
    ],
    ids=["few", "none", "end", "start", "gap", "gap at the edge", "no window"],
)  # fmt: skip
def test_samples_that_do_not_support_a_number_give_the_reason(
    samples: RailSamples, windows: list[Window], reason: str
) -> None:
    found = per_invocation(samples, windows, [window(4, 6)])

    assert isinstance(found, NoEnergy)
    assert ("VDD_IN", reason) == (found.rail, found.reason)


def test_a_window_without_samples_is_left_out_and_the_others_count() -> None:
    samples = sampled(lambda t: 2000.0, seconds=5)

    found = reading(samples, [window(1, 2, 10), window(3, 4, 10), window(4.5, 5.5, 10)])

    assert (2, pytest.approx(200_000)) == (found.windows, found.gross_uj)


def test_an_idle_window_without_samples_gives_no_net() -> None:
    found = reading(sampled(lambda t: 2000.0, seconds=5), [window(1, 2, 10)], [window(6, 8)])

    assert (None, None) == (found.idle_mw, found.net_uj)
