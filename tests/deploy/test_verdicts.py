"""Verdicts: every code that speaks against a number, and no other."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.results.stats import LatencySummary
from deploy.results.verdicts import CODES, Circumstances, judge


def latency(n: int = 1000, *medians: float, **more: Any) -> LatencySummary:
    given = {"low_ns": 99.0, "high_ns": 101.0, "median_ns": 100.0, **more}
    return LatencySummary(
        n=n, min_ns=1, max_ns=1, mean_ns=1, p90_ns=None, p95_ns=None, p99_ns=None,
        restart_medians_ns=medians or (100.0, 100.0), **given,
    )  # fmt: skip


def verdict(summary: LatencySummary | None = None, second: dict[str, Any] | None = None, **seen: Any) -> Any:
    """Of two restarts, the second one is what the case is about; at most 1,000 invocations each were allowed."""
    fine = {"steady": True, "invocations": 500}
    given = {"before": {}, "after": {}, "cap": 1000, **seen}
    return judge(summary or latency(), Circumstances([fine, {**fine, **(second or {})}], **given))


@pytest.mark.parametrize(
    ("summary", "second", "expected"),
    [
        (latency(), {}, "ok"),
        (latency(), {"steady": False}, "not-steady"),
        (latency(), {"invocations": 999}, "ok"),
        (latency(), {"invocations": 1000}, "cut-short"),
        (latency(29), {}, "too-few-samples"),
        (latency(30), {}, "ok"),
        (latency(1000, 100, 105, 103), {}, "ok"),
        (latency(1000, 100, 106, 103), {}, "restarts-disagree"),
        (latency(1000, 100), {}, "ok"),
        (latency(drift=0.009), {}, "ok"),
        (latency(drift=-0.011), {}, "drifting"),
        (latency(drift=None), {}, "ok"),
        (latency(two_modes=True), {}, "two-modes"),
        # half of the invocations had a schedule: the share is of those
        (latency(), {"late_starts": 5}, "ok"),
        (latency(), {"late_starts": 6}, "late-starts"),
    ],
)  # fmt: skip
def test_latencies_and_restarts_speak_for_themselves(
    summary: LatencySummary, second: dict[str, Any], expected: str
) -> None:
    assert (expected,) == verdict(summary, second)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # bits 0..3 of the firmware's flags: now
        ({"throttled": 0}, {"throttled": 0x4}, "throttled"),
        ({"throttled": 0}, {"throttled": 0x1}, "undervolted"),
        # bits 16..19: since boot, so only what was clear before
        ({"throttled": 0x50000}, {"throttled": 0x50000}, "ok"),
        ({"throttled": 0x10000}, {"throttled": 0x50000}, "throttled"),
        ({"throttled": 0x40000}, {"throttled": 0x50000}, "undervolted"),
        ({"undervoltage_alarms": []}, {"undervoltage_alarms": ["rpi_volt/in0_lcrit_alarm"]}, "undervolted"),
        ({"cooling": {"0:cpufreq": 0}}, {"cooling": {"0:cpufreq": 2}}, "throttled"),
        ({"cooling": {"0:cpufreq": 2}}, {"cooling": {"0:cpufreq": 2}}, "ok"),
        # a fan that turns slows nothing down
        ({"cooling": {"0:pwm-fan": 0}}, {"cooling": {"0:pwm-fan": 3}}, "ok"),
        ({"throttle_counts": {"cpu0/x": 7}}, {"throttle_counts": {"cpu0/x": 8}}, "throttled"),
        ({"governors": ["a"]}, {"governors": ["b"]}, "governor-changed"),
        ({"cpu_max_khz": [1800000]}, {"cpu_max_khz": [600000]}, "clocks-changed"),
        ({"temperatures_mc": {"0:cpu": 40000}}, {"temperatures_mc": {"0:cpu": 50000}}, "ok"),
        ({"temperatures_mc": {"0:cpu": 40000}}, {"temperatures_mc": {"0:cpu": 50001}}, "warmed-up"),
        ({}, {"others": {"busy_cpus": 0.2, "stolen_cpus": 0.0}}, "ok"),
        ({}, {"others": {"busy_cpus": 0.2, "stolen_cpus": 0.1}}, "noisy-neighbour"),
        # a board that tells nothing is not suspected
        ({}, {}, "ok"),
    ],
)  # fmt: skip
def test_what_the_board_went_through_speaks_against_the_number(
    before: dict[str, Any], after: dict[str, Any], expected: str
) -> None:
    assert (expected,) == verdict(before=before, after=after)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ({"until": 0.01}, "ok"),  # the interval is 1 % to either side
        ({"until": 0.009}, "imprecise"),
        ({"lost": True}, "samples-lost"),
        ({"emulated": True}, "emulated-time"),
        ({"meter_failed": True}, "meter-failed"),
    ],
)
def test_circumstances_speak_too(seen: dict[str, Any], expected: str) -> None:
    assert (expected,) == verdict(**seen)


def test_a_precision_that_is_not_known_is_not_reached() -> None:
    assert ("imprecise",) == verdict(latency(low_ns=None, high_ns=None), until=0.5)


def test_a_verdict_names_all_that_speaks_against_the_number_in_the_order_of_the_table() -> None:
    found = verdict(
        latency(5, 1, 2), {"steady": False, "invocations": 1000},
        before={}, after={"throttled": 4, "governors": ["a"]}, meter_failed=True,
    )  # fmt: skip

    expected = ("not-steady", "too-few-samples", "restarts-disagree", "cut-short", "throttled", "governor-changed",
                "meter-failed")  # fmt: skip
    assert expected == found == tuple(code for code in CODES if code in found)


@pytest.mark.parametrize("code", CODES)
def test_every_code_says_what_it_means_and_what_to_do(code: str) -> None:
    entry = CODES[code]

    assert code == entry.code == code.lower()
    assert entry.meaning.endswith(".") and entry.remedy.endswith(".")


def test_nothing_of_this_machine_speaks_against_simulated_cycles() -> None:
    noisy = {"after": {"others": {"busy_cpus": 3.0}, "throttled": 0x4}, "emulated": True}

    assert ("simulated",) == verdict(latency(3), {"steady": False}, simulated=True, **noisy)
    assert ("samples-lost", "simulated") == verdict(lost=True, simulated=True)
    assert ("accelerator-failed",) == verdict(accelerator_failed=True)
    assert not CODES["simulated"].void
    assert CODES["accelerator-failed"].void
