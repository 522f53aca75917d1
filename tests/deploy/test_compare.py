"""Comparing: what changed, how sure that is, and what must not be compared; and the gate that decides on it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as oracle

from deploy.errors import StoreError
from deploy.kernels import Kernels
from deploy.results.compare import ALIKE, Effect, are_paired, effect, energy_effects, latency_effect, unlike
from deploy.results.gate import Check, check, check_energy, check_verdict, junit, outcome
from deploy.results.store import Run, Store

A = np.array([100.0, 104.0, 98.0, 103.0, 101.0])
B = np.array([103.0, 107.0, 101.0, 106.5, 103.5])
ENERGY = {"rail": "VDD_IN", "source": "measured:ina3221@VDD_IN", "scope": "module", "windows": 5,
          "gross_uj": 100.0, "gross_u_uj": 2.0}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def run(store: Store, medians: Any = A, **record: Any) -> Run:
    known = {"board": {"name": "pi"}, "bundle": {"name": "net", "digest": "ab"}}
    with store.writer("measure", {**known, **record}) as writer:
        for number, median in enumerate(medians, start=1):
            writer.append(f"latency_ns.{number}", np.full(11, int(median * 1000)), "ns")
        writer.set(latency={"restart_medians_ns": [median * 1000 for median in medians]})
    return store.get(writer.id)


# The effect


def test_pairs_are_compared_pair_by_pair() -> None:
    """The oracle: scipy's paired t interval of the logarithms."""
    found = effect("latency", A, B, paired=True)

    interval = oracle.ttest_rel(np.log(B), np.log(A)).confidence_interval(0.95)
    assert pytest.approx((np.exp(interval.low), np.exp(interval.high)), rel=1e-3) == (found.low, found.high)
    assert (True, 5, True) == (found.paired, found.n, found.certain)


def test_runs_that_did_not_take_turns_are_compared_by_their_restarts() -> None:
    """The oracle: scipy's Welch interval; ours rounds its degrees of freedom down, so it is a little wider."""
    found = effect("latency", A, B, paired=False)

    interval = oracle.ttest_ind(np.log(B), np.log(A), equal_var=False).confidence_interval(0.95)
    assert found.low is not None and found.high is not None
    assert np.exp(interval.low) * 0.99 < found.low <= np.exp(interval.low)
    assert np.exp(interval.high) <= found.high < np.exp(interval.high) * 1.01
    assert not found.certain  # what the pairs tell is lost


def test_one_restart_gives_a_ratio_and_no_interval() -> None:
    found = effect("latency", A[:1], B[:1], paired=False)

    assert (pytest.approx(1.03), None, None, False) == (found.ratio, found.low, found.high, found.certain)


def test_runs_of_one_pairing_are_pairs(store: Store) -> None:
    first, second = (run(store, m, pairing={"id": "p", "position": i}) for i, m in enumerate((A, B)))
    stranger = run(store, B, pairing={"id": "q", "position": 1})

    assert (True, False, False) == (
        are_paired(first, second), are_paired(first, stranger), are_paired(first, first)
    )  # fmt: skip
    assert latency_effect(first, second) == effect("latency", A * 1000, B * 1000, paired=True)


def test_a_run_without_latencies_cannot_be_compared(store: Store) -> None:
    with pytest.raises(StoreError, match="has no latencies"):
        latency_effect(run(store), run(store, []))


# Energy


def test_energy_is_compared_rail_by_rail(store: Store) -> None:
    first = run(store, energy=[ENERGY])
    second = run(store, energy=[{**ENERGY, "gross_uj": 110.0}, {**ENERGY, "rail": "other"}])

    (found,) = energy_effects(first, second)

    assert ("energy VDD_IN", pytest.approx(1.1)) == (found.quantity, found.ratio)
    spread = np.hypot(0.02, 2 / 110)
    assert pytest.approx((1.1 * np.exp(-spread), 1.1 * np.exp(spread))) == (found.low, found.high)


def test_modelled_energy_and_none_at_all_are_no_evidence(store: Store) -> None:
    first = run(store, energy=[ENERGY])
    modelled = run(store, energy=[{**ENERGY, "source": "modelled:pi4"}])
    none = run(store, energy=[{"rail": "VDD_IN", "reason": "no sample"}])

    assert [] == energy_effects(first, modelled) == energy_effects(first, none)


# What must be alike

RECORD = {
    "board": {"name": "pi", "identity": {"machine": "aarch64", "hostname": "pi5"}},
    "state_before": {"governors": ["performance"], "cpu_max_khz": [1800000]},
    "plan": {"threads": 1, "pin": None, "rate": None},
    "runtime": "ai-edge-litert 2.3.0",
    "kernels": vars(Kernels()),
    "energy": [ENERGY],
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"bundle": {"name": "other"}}, []),
        ({"board": {"name": "pi", "identity": {"machine": "aarch64", "hostname": "pi4"}}}, ["boards"]),
        ({"state_before": {"governors": ["powersave"], "cpu_max_khz": [1800000]}}, ["clocks"]),
        ({"state_before": {"governors": ["performance"], "cpu_max_khz": [600000]}}, ["clocks"]),
        ({"plan": {"threads": 4}}, ["threads"]),
        ({"plan": {"threads": 1, "pin": [2]}}, ["threads"]),
        ({"plan": {"threads": 1, "rate": 10.0}}, ["schedules"]),
        ({"runtime": "tflite-runtime 2.14.0"}, ["runtimes"]),
        ({"kernels": vars(Kernels("auto", library="ab"))}, ["runtimes"]),
        ({"kernels": vars(Kernels(library="cd"))}, ["runtimes"]),
        ({"energy": [{**ENERGY, "scope": "wall-ac"}]}, ["scopes"]),
        ({"energy": []}, []),
        ({"accelerator": {"why": None, "simulated": {"source": "simulated:x", "clock_hz": 100_000_000}}}, ["times"]),
        ({"accelerator": {"why": "it failed", "simulated": {"source": "simulated:x", "clock_hz": 1}}}, []),  # the CPU's
        ({"accelerator": {"why": None, "simulated": None}}, []),  # a real board's clock
    ],
)  # fmt: skip
def test_runs_that_differ_in_more_than_their_bundle_are_told_apart(change: dict[str, Any], expected: list[str]) -> None:
    assert expected == list(unlike(RECORD, {**RECORD, **change}))
    assert set(expected) <= set(ALIKE)


# The gate


def seen(ratio: float, low: float | None, high: float | None) -> Effect:
    return Effect("latency", ratio, low, high, True, 9, 1.0, ratio)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (seen(1.00, 0.99, 1.01), "passed"),
        (seen(1.02, 1.01, 1.029), "passed"),  # certainly slower, and as certainly by less than the limit
        (seen(1.02, 1.01, 1.031), "failed"),
        (seen(1.05, 1.04, 1.06), "failed"),
        (seen(1.02, 0.99, 1.05), "undecided"),
        (seen(1.00, 0.90, 1.10), "undecided"),
        (seen(0.50, 0.49, 0.51), "passed"),
        (seen(1.00, None, None), "undecided"),
    ],
)
def test_a_limit_is_kept_when_that_is_shown_and_broken_when_it_is_worse_and_not_shown(
    found: Effect, expected: str
) -> None:
    assert expected == check(found, 0.03).outcome


@pytest.mark.parametrize(
    ("entry", "verdict", "expected", "text"),
    [
        ({}, [], "passed", None),
        ({"gross_uj": 150.0}, [], "failed", None),
        # a window that was rejected is said, even where the others suffice
        ({"rejected": [[2, ["window-throttled"]]]}, [], "passed", "window 2 rejected (window-throttled)"),
        ({"codes": ["few-windows"]}, [], "undecided", "few-windows"),
        ({"codes": ["short-windows"]}, [], "passed", None),
        ({}, ["meter-failed"], "undecided", "meter-failed"),
        ({"reason": "window-throttled", "gross_uj": None}, [], "undecided", "window-throttled"),
        ({"rail": "other"}, [], "undecided", "not measured"),  # each rail in one of the runs alone
        ({"source": "stub:ina3221@VDD_IN"}, [], "undecided", "modelled, or read from a stub"),
    ],
)  # fmt: skip
def test_energy_passes_only_where_both_runs_measured_it_soundly(
    store: Store, entry: dict[str, Any], verdict: list[str], expected: str, text: str | None
) -> None:
    first = run(store, energy=[ENERGY])
    second = run(store, energy=[{**ENERGY, **entry}], verdict=verdict)

    checks = check_energy(energy_effects(first, second), first, second, 0.1)

    assert {expected} == {check.outcome for check in checks}
    assert [(text or "limit") in check.text for check in checks] == [True] * len(checks)


def test_runs_without_energy_decide_nothing_about_it(store: Store) -> None:
    runs = run(store), run(store)

    assert [Check("energy", "undecided", "no rail was measured in either run")] == check_energy([], *runs, 0.1)


def test_one_failure_fails_and_one_doubt_is_a_doubt() -> None:
    passed, failed, undecided = (Check(name, name, "") for name in ("passed", "failed", "undecided"))

    assert "passed" == outcome([passed, passed]) == outcome([])
    assert "undecided" == outcome([passed, undecided])
    assert "failed" == outcome([undecided, failed, passed])


def test_a_run_whose_number_is_void_decides_nothing() -> None:
    doubtful = check_verdict("20260301-120000-aaaa", ["throttled", "noisy-neighbour"])

    assert Check("verdict of 20260301-120000-aaaa", "undecided", "throttled") == doubtful
    assert check_verdict("x", ["ok"]) is None
    assert check_verdict("x", ["noisy-neighbour", "of-another-version"]) is None


@pytest.mark.parametrize(("undecided_fails", "tag"), [(True, "error"), (False, "skipped")])
def test_the_junit_file_says_which_limit_was_broken(undecided_fails: bool, tag: str) -> None:
    checks = [Check("latency", "failed", "+4 % <&>"), Check("energy", "undecided", "noise"), Check("x", "passed", "y")]

    suite = ElementTree.fromstring(junit("net", checks, undecided_fails))[0]

    assert ("net", "3", "1", "1") == (suite.get("name"), suite.get("tests"), suite.get("failures"),
                                      suite.get({"error": "errors"}.get(tag, tag)))  # fmt: skip
    assert ["failure", tag, "system-out"] == [case[0].tag for case in suite]
    assert ["+4 % <&>", "noise", None] == [case[0].get("message") for case in suite]
