"""Energy from samples whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.results.energy import EnergyReading, NoEnergy, RailSamples, Window, integrate, per_invocation

S = 1_000_000_000  # ns
Power = Callable[[np.ndarray[Any, Any]], Any]  # seconds -> mW


def sampled(power_mw: Power, seconds: float = 10.0, rate_hz: float = 100.0, jitter: bool = True) -> RailSamples:
    """A meter that is read as `devices.meters.sampler` does: with pauses of half to one and a half periods."""
    rng = np.random.default_rng(3)
    pauses = rng.uniform(0.5, 1.5, int(seconds * rate_hz * 2)) if jitter else np.ones(int(seconds * rate_hz) + 2)
    t = np.cumsum(pauses) / rate_hz
    t = t[t <= seconds]
    return rail(np.rint(t * S), np.asarray(power_mw(t), np.float64) + 0 * t)


def rail(t_ns: Any, values: Any, quantity: str = "power_mw") -> RailSamples:
    return RailSamples("VDD_IN", "ina3221", "module", quantity, np.asarray(t_ns, np.int64), np.asarray(values, float))


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

    assert (
        EnergyReading(
            rail="VDD_IN",
            source="measured:ina3221@VDD_IN",
            scope="module",
            gross_uj=pytest.approx(40_000),
            net_uj=None,
            gross_u_uj=pytest.approx(0, abs=1e-6),
            net_u_uj=None,
            idle_mw=None,
            active_mw=pytest.approx(2000),
            windows=3,
        )
        == found
    )


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


def test_a_net_below_zero_stays_below_zero() -> None:
    """A board that drew more when it was idle: worth seeing, and no reason to invent a zero."""
    found = reading(
        sampled(lambda t: np.where((t > 3) & (t < 7), 1000.0, 1200.0)), [window(4, 6, 100)], [window(0.5, 2.5)]
    )

    assert pytest.approx(-4000) == found.net_uj


def test_the_uncertainty_is_twice_the_standard_error_of_the_windows() -> None:
    """Three windows of 1, 2 and 3 W: standard deviation 1 W, over the root of 3, times 2."""
    found = reading(
        sampled(lambda t: 1000 * np.floor(t / 3 + 1)),
        [window(0.5, 2.5, 1000), window(3.5, 5.5, 1000), window(6.5, 8.5, 1000)],
        [window(0.5, 2.5)],
    )

    expected = 2 * 2000 / 3**0.5
    assert (pytest.approx(expected), pytest.approx(expected)) == (found.gross_u_uj, found.net_u_uj)


@pytest.mark.parametrize(("count", "there"), [(1, False), (2, False), (3, True)])
def test_fewer_than_three_windows_have_no_uncertainty(count: int, there: bool) -> None:
    found = reading(sampled(lambda t: 2000.0), [window(1 + i, 2 + i) for i in range(count)])

    assert there == (found.gross_u_uj is not None)


# No energy


@pytest.mark.parametrize(
    ("samples", "windows", "reason"),
    [
        (sampled(lambda t: 1.0, rate_hz=4, jitter=False), [window(1, 3)],
         "9 samples in a window of 2.00 s; 10 are needed"),
        (rail([], []), [window(1, 3)], "0 samples in a window of 2.00 s; 10 are needed"),
        (sampled(lambda t: 1.0, seconds=2.9), [window(1, 3)], "the samples do not cover the window"),
        (rail(np.arange(11, 40) * S // 10, np.ones(29)), [window(1, 3)], "the samples do not cover the window"),
        (rail(np.delete(np.arange(0, 100), range(15, 18)) * S // 10, np.ones(97)), [window(1, 3)],
         "no sample for 0.40 s of a window of 2.00 s"),
        # the gap may lie at an edge too: interpolation would cover it up
        (rail(np.delete(np.arange(0, 100), range(9, 13)) * S // 10, np.ones(96)), [window(1, 3)],
         "no sample for 0.30 s of a window of 2.00 s"),
        (sampled(lambda t: 1.0), [], "no window"),
    ],
    ids=["few", "none", "end", "start", "gap", "gap at the edge", "no window"],
)  # fmt: skip
def test_samples_that_do_not_support_a_number_give_the_reason(
    samples: RailSamples, windows: list[Window], reason: str
) -> None:
    assert NoEnergy("VDD_IN", reason) == per_invocation(samples, windows, [window(4, 6)])


def test_a_window_without_samples_is_left_out_and_the_others_count() -> None:
    samples = sampled(lambda t: 2000.0, seconds=5)

    found = reading(samples, [window(1, 2, 10), window(3, 4, 10), window(4.5, 5.5, 10)])

    assert (2, pytest.approx(200_000)) == (found.windows, found.gross_uj)


def test_an_idle_window_without_samples_gives_no_net() -> None:
    found = reading(sampled(lambda t: 2000.0, seconds=5), [window(1, 2, 10)], [window(6, 8)])

    assert (None, None) == (found.idle_mw, found.net_uj)
