"""What speaks against a window of energy; what the meters do; and a model where there is no meter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from deploy.boards import Rail as StatedRail
from deploy.results import modelled
from deploy.results.energy import EnergyReading, NoEnergy
from deploy.results.stats import summarize
from deploy.results.verdicts import CODES, with_meters
from deploy.results.windows import MeterEffect, meter_effect, objections, pause_s, sample_rate_hz
from devices.protocol.meter import Rail

FINE = {"governors": ["performance"], "cpu_max_khz": [1800000], "throttled": 0, "temperatures_mc": {"0:cpu": 50_000}}


@pytest.mark.parametrize(
    ("before", "after", "counted", "expected"),
    [
        ({}, {}, 100, ()),
        ({}, {}, 99, ("window-count",)),
        ({}, {"throttled": 0x4}, 100, ("window-throttled",)),  # now
        ({}, {"throttled": 0x20000}, 100, ("window-throttled",)),  # capped since boot, and not before
        ({"throttled": 0x20000}, {"throttled": 0x20000}, 100, ()),  # capped long ago
        ({}, {"governors": ["powersave"]}, 100, ("window-clocks",)),
        ({}, {"cpu_max_khz": [600000]}, 100, ("window-clocks",)),
        ({}, {"temperatures_mc": {"0:cpu": 52_000}}, 100, ()),
        ({}, {"temperatures_mc": {"0:cpu": 52_001}}, 100, ("window-warming",)),
        ({"temperatures_mc": {}}, {"temperatures_mc": {"0:cpu": 90_000}}, 100, ()),  # warmer than nothing
    ],
    ids=["fine", "lost", "throttled", "capped", "capped before", "governor", "clock", "2 degrees", "more", "unknown"],
)
def test_a_window_is_rejected_for_what_happened_to_the_board(
    before: dict[str, Any], after: dict[str, Any], counted: int, expected: tuple[str, ...]
) -> None:
    reply = {"invocations": 100, "state_before": {**FINE, **before}, "state_after": {**FINE, **after}}

    assert expected == objections(reply, counted)
    assert set(expected) <= set(CODES)


def turns(on: list[float], off: list[float]) -> list[tuple[bool, float]]:
    """On, off, off, on, ..., as the board takes them."""
    found: list[tuple[bool, float]] = []
    for i, (with_meter, without) in enumerate(zip(on, off, strict=True)):
        pair = [(False, with_meter), (True, without)]
        found += pair if i % 2 == 0 else pair[::-1]
    return found


def test_what_the_meters_do_is_the_mean_over_pairs_with_its_interval() -> None:
    """5, 6 and 7 %: 6 %, +- 4.303 standard errors of 0.577 %."""
    found = meter_effect(turns([1050, 1060, 1070], [1000, 1000, 1000]))

    assert found == MeterEffect(
        pytest.approx(0.06), pytest.approx(0.06 - 0.02484, abs=1e-4), pytest.approx(0.08484, abs=1e-4)
    )
    assert found.disturbs
    assert ("not-steady", "meter-disturbs") == with_meters(("not-steady",), found)
    assert ("meter-disturbs",) == with_meters(("ok",), found)


@pytest.mark.parametrize(
    ("on", "off"),
    [
        ([1010, 1010, 1010], [1000, 1000, 1000]),  # 1 %: too little
        ([1100, 900, 1100], [1000, 1000, 1000]),  # perhaps chance
        ([900, 910, 900], [1000, 1000, 1000]),  # faster with meters: no harm
    ],
    ids=["little", "chance", "faster"],
)
def test_meters_that_do_little_do_not_disturb(on: list[float], off: list[float]) -> None:
    found = meter_effect(turns(on, off))

    assert found is not None and not found.disturbs
    assert ("ok",) == with_meters(("ok",), found)


def test_two_pairs_say_nothing() -> None:
    assert meter_effect(turns([2000, 2000], [1000, 1000])) is None
    assert ("ok",) == with_meters(("ok",), None)


def test_the_board_rests_until_the_slowest_meter_has_forgotten() -> None:
    """An INA3221 with 512 averages: seven times 3.379 s, and twice two sampling periods of 10 ms."""
    slow = Rail("VDD_IN", "ina3221", "module", "power_mw", 3.3792, averaging="iir")
    quick = Rail("package-0", "rapl", "soc-rails", "energy_uj", 0.001, averaging="box")

    assert (pytest.approx(3 + 7 * 3.3792 + 0.04), 3) == (pause_s([quick, slow], 3.0), pause_s([], 3.0))


@pytest.mark.parametrize(
    ("rails", "stated", "expected"),
    [
        ([], (), 100),
        ([{"averaging": "box", "update_period_s": 0.001}], (), 100),
        ([{"averaging": "none", "update_period_s": 0.0066}], (), 300),  # twice in each period, and no more than that
        ([{"averaging": "none", "update_period_s": 0.016}], (), 125),
        ([{"averaging": "none", "update_period_s": None}], (), 100),
        ([{"averaging": "none", "update_period_s": 0.0066}], (StatedRail(name="a", sample_rate_hz=20),), 20),
    ],
)
def test_a_sensor_without_memory_is_read_more_often(
    rails: list[dict[str, Any]], stated: tuple[StatedRail, ...], expected: float
) -> None:
    assert expected == sample_rate_hz(rails, stated)


# Modelled

LATENCY = summarize([np.full(100, 10_000_000)])  # 10 ms


def test_a_model_says_that_it_is_one_and_how_far_it_may_be_off() -> None:
    """2.7 W idle and 0.9 W for a thread: 9 mJ in 10 ms.  Two points cannot show how good they are: 50 %."""
    found = modelled.reading(LATENCY, 1, "pi4", [(0, 2700.0), (1, 3600.0)])

    assert ("modelled:idle-busy@pi4", ("modelled",), 0) == (found.source, found.codes, found.windows)
    assert (pytest.approx(9000), pytest.approx(4500)) == (found.net_uj, found.net_u_uj)
    assert (pytest.approx(36_000), pytest.approx(18_000)) == (found.gross_uj, found.gross_u_uj)
    assert (pytest.approx(2700), pytest.approx(3600)) == (found.idle_mw, found.active_mw)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0, 2000.0), (1, 3000.0), (4, 6000.0)], 0.10),  # a straight line, and no better than the floor
        # Without the point of 4 threads the line has 1 W for each: 4 W, where 3 W were measured
        ([(0, 2000.0), (1, 3000.0), (4, 5000.0)], 1 / 3),
        ([(0, 2000.0), (1, 3000.0)], 0.50),
    ],
    ids=["straight", "bent", "two points"],
)
def test_a_models_error_is_that_of_predicting_a_point_from_the_others(
    points: list[tuple[int, float]], expected: float
) -> None:
    assert pytest.approx(expected) == modelled.error(points)


def reading(rail: str, *codes: str, primary: bool = False) -> EnergyReading:
    return EnergyReading(rail, f"measured:ina3221@{rail}", "module", 3.0, 1.0, 0.1, 0.1, 1.0, 2.0, 5, codes=codes,
                         primary=primary)  # fmt: skip


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        ((reading("VDD_IN", primary=True),), ("drifting",)),
        ((reading("VDD_IN", "aliased", "few-windows", primary=True),), ("drifting", "few-windows", "aliased")),
        # the primary one speaks for the board; where there is none, all do
        ((reading("VDD_IN", primary=True), reading("VDD_SOC", "aliased")), ("drifting",)),
        ((reading("GPU"), reading("CPU", "meter-gaps")), ("drifting", "meter-gaps")),
        ((NoEnergy("VDD_IN", "window-throttled"),), ("drifting", "no-energy")),
        ((reading("cpu", "modelled"),), ("drifting",)),  # asked for, and said beside the number
    ],
)
def test_what_speaks_against_the_energy_is_in_the_verdict(
    energy: tuple[EnergyReading | NoEnergy, ...], expected: tuple[str, ...]
) -> None:
    assert expected == with_meters(("drifting",), None, energy)
    assert (expected[1:] or ("ok",)) == with_meters(("ok",), None, energy)
