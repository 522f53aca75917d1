"""Statistics of latencies, against known distributions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.results.stats import drift, median_interval, percentile, summarize, upper_bound

Restarts = list[np.ndarray[Any, Any]]

TRUE_MEDIAN = 1_000_000  # ns, of every distribution below


def lognormal(rng: np.random.Generator, restarts: int, n: int, spread: float = 0.1, shift: float = 0.0) -> Restarts:
    """Independent latencies; the median of each restart is off by a factor with log standard deviation `shift`."""
    medians = TRUE_MEDIAN * np.exp(shift * rng.standard_normal(restarts))
    return [np.rint(m * rng.lognormal(0, spread, n)).astype(np.int64) for m in medians]


def autocorrelated(rng: np.random.Generator, restarts: int, n: int, rho: float = 0.8) -> Restarts:
    """Latencies that resemble the one before: log x[i] = rho log x[i-1] + noise, begun in equilibrium."""
    x = np.empty((n, restarts))
    x[0] = rng.standard_normal(restarts)
    for i in range(1, n):
        x[i] = rho * x[i - 1] + (1 - rho**2) ** 0.5 * rng.standard_normal(restarts)
    return list(np.rint(TRUE_MEDIAN * np.exp(0.1 * x.T)).astype(np.int64))


def coverage(draw: Callable[[np.random.Generator], Restarts], runs: int) -> float:
    """How often the 95 % interval holds the true median."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(runs):
        low, high = median_interval(draw(rng))
        assert low is not None and high is not None
        hits += low <= TRUE_MEDIAN <= high
    return hits / runs


# The interval of the median.  Over 500 runs each, it holds the true median 94 to 97 times in 100 in every case below.


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: lognormal(rng, 3, 40),
        lambda rng: lognormal(rng, 1, 300),
        lambda rng: lognormal(rng, 2, 300),
        lambda rng: autocorrelated(rng, 3, 60),
        lambda rng: autocorrelated(rng, 1, 300),
        lambda rng: lognormal(rng, 3, 60, shift=0.05),
        lambda rng: lognormal(rng, 10, 20, shift=0.05),
    ],
    ids=[
        "independent", "one restart", "two restarts", "neighbours resemble each other", "and in one restart",
        "restarts differ", "ten restarts differ",
    ],
)  # fmt: skip
def test_the_interval_holds_the_true_median_some_95_times_in_100(
    draw: Callable[[np.random.Generator], Restarts],
) -> None:
    """What 200 runs leave open is 1.5 % (one standard error)."""
    assert 0.90 <= coverage(draw, 200) <= 0.995


def test_restarts_that_differ_make_the_interval_wide() -> None:
    """Pooling the values and forgetting the restarts would give the same width for both."""
    rng = np.random.default_rng(1)
    alike = lognormal(rng, 3, 300)
    differing = [restart * factor // 100 for restart, factor in zip(alike, (95, 100, 105), strict=True)]

    (low, high), (wide_low, wide_high) = median_interval(alike), median_interval(differing)

    assert low is not None and high is not None and wide_low is not None and wide_high is not None
    assert wide_high - wide_low > 2 * (high - low)


@given(
    restarts=st.lists(st.lists(st.integers(1, 10**10), min_size=1, max_size=60), min_size=1, max_size=5).filter(
        lambda restarts: sum(map(len, restarts)) >= 10
    )
)
@settings(deadline=None, database=None, max_examples=60)
def test_the_median_lies_within_its_interval(restarts: list[list[int]]) -> None:
    summary = summarize([np.array(restart, np.int64) for restart in restarts])

    assert summary.low_ns is not None and summary.high_ns is not None
    assert summary.low_ns <= summary.median_ns <= summary.high_ns


def test_the_same_latencies_give_the_same_interval() -> None:
    latencies = lognormal(np.random.default_rng(1), 3, 50)

    assert median_interval(latencies) == median_interval(latencies)


def test_equal_latencies_have_an_interval_of_no_width() -> None:
    assert (7.0, 7.0) == median_interval([np.full(20, 7), np.full(20, 7)])


@pytest.mark.parametrize(("n", "there"), [(9, False), (10, True)])
def test_below_10_invocations_there_is_no_interval(n: int, there: bool) -> None:
    low, high = median_interval([np.arange(1, n // 2 + 1), np.arange(n - n // 2)])

    assert (there, there) == (low is not None, high is not None)


# The rest of the summary


@pytest.mark.parametrize(
    ("p", "needed"),
    [
        (90, 29),  # 0.9^29 is the first power below 5 %
        (95, 59),
        (99, 299),
    ],
)
def test_a_percentile_is_given_from_the_size_on_that_bounds_it_with_95_percent(p: int, needed: int) -> None:
    assert (p / 100) ** needed <= 0.05 < (p / 100) ** (needed - 1)
    assert percentile(np.arange(needed - 1), p) is None
    assert pytest.approx((needed - 1) * p / 100) == percentile(np.arange(needed), p)


def test_a_summary_counts_every_restart() -> None:
    summary = summarize([np.array([3, 1, 2]), np.array([10, 20]), np.array([], np.int64)])

    assert (5, 1, 20, 3.0, 7.2) == (summary.n, summary.min_ns, summary.max_ns, summary.median_ns, summary.mean_ns)
    assert (2.0, 15.0) == summary.restart_medians_ns
    assert (None, None, None) == (summary.low_ns, summary.high_ns, summary.p90_ns)


def test_one_slow_invocation_moves_the_maximum_and_the_mean_and_not_the_median() -> None:
    latencies = np.full(300, 1000)
    latencies[7] = 10**9

    summary = summarize([latencies])

    assert (1000.0, 1000.0, 1000.0, 1000.0) == (summary.median_ns, summary.low_ns, summary.high_ns, summary.p99_ns)
    assert (10**9, 3_334_330.0) == (summary.max_ns, pytest.approx(summary.mean_ns, abs=1))


# The bound of a percentile


@pytest.mark.parametrize(("p", "needed"), [(90, 29), (95, 59), (99, 299), (99.9, 2995)])
def test_a_percentile_is_bounded_from_the_size_on_that_supports_it(p: float, needed: int) -> None:
    """With the least that is enough, the bound is the slowest of all."""
    values = np.random.default_rng(1).permutation(needed)

    assert upper_bound([values[1:]], p) is None
    assert needed - 1 == upper_bound([values], p)


@pytest.mark.parametrize("clustered", [False, True], ids=["independent", "in bunches"])
def test_the_bound_of_p95_holds_some_95_times_in_100(clustered: bool) -> None:
    """Slow invocations that come in bunches tell less than as many that do not: the bound must know."""
    rng, hits, runs, rho = np.random.default_rng(1), 0, 150, 0.8 if clustered else 0.0
    for _ in range(runs):
        bound = upper_bound(autocorrelated(rng, 3, 400, rho), 95)
        assert bound is not None
        hits += bound >= TRUE_MEDIAN * np.exp(0.1 * 1.6449)  # the true 95th percentile

    assert 0.90 <= hits / runs


def test_the_bound_of_a_million_latencies_lies_just_above_the_percentile() -> None:
    values = np.random.default_rng(1).permutation(1_000_000)

    bound = upper_bound([values], 90)

    assert bound is not None
    assert 900_000 < bound < 901_500  # two standard errors of a rank are 600


# Drift


def drifting(rng: np.random.Generator, whole: float, n: int = 3000) -> Restarts:
    """Three restarts through which latency grows by `whole` in all, with neighbours that resemble each other."""
    slow = 1 + whole * np.arange(3 * n) / (3 * n)
    return [np.rint(r * f).astype(np.int64) for r, f in zip(autocorrelated(rng, 3, n), slow.reshape(3, n), strict=True)]


def test_latencies_that_drift_are_told_from_those_that_do_not() -> None:
    rng = np.random.default_rng(1)
    flagged = sum(drift(drifting(rng, 0.15)) != 0 for _ in range(15))
    wrongly = sum(drift(autocorrelated(rng, 3, 3000)) != 0 for _ in range(15))
    levels = sum(drift(lognormal(rng, 3, 3000, spread=0.03, shift=0.02)) != 0 for _ in range(15))

    assert flagged >= 14
    assert wrongly <= 1
    assert levels <= 3  # restarts of different speed are no drift


def test_a_drift_is_told_as_a_share_of_the_median() -> None:
    ramp = np.linspace(1_000_000, 1_100_000, 4000).astype(np.int64)

    assert pytest.approx(0.1 / 1.05 * 0.9, rel=0.02) == drift([ramp, ramp])  # from the first tenth to the last
    assert pytest.approx(-0.1 / 1.05 * 0.9, rel=0.02) == drift([ramp[::-1]])


def test_too_few_latencies_say_nothing_of_drift() -> None:
    assert drift([np.arange(39)]) is None
    assert 0.0 == drift([np.full(40, 7)])


# Two modes


@pytest.mark.parametrize(("share", "expected"), [(0.5, True), (0.3, False), (0.0, False)])
def test_a_median_between_two_modes_is_noticed(share: float, expected: bool) -> None:
    rng = np.random.default_rng(1)
    slow = rng.random(3000) < share
    values = np.rint(TRUE_MEDIAN * np.where(slow, 1.3, 1.0) * rng.lognormal(0, 0.03, 3000)).astype(np.int64)

    assert expected == summarize([values]).two_modes


def test_a_coarse_clock_makes_no_modes() -> None:
    assert not summarize([np.where(np.arange(1000) % 2, 2_794, 2_804)]).two_modes
