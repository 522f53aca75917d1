"""Two clocks: what the host's samples are worth on the board's."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.clock import Alignment, Ping, align, pings
from deploy.session import Session

MS = 1_000_000


def trips(
    rng: np.random.Generator, begin_ns: int, offset_ns: float, drift: float, there_ms: float, back_ms: float,
    jitter_ms: float, count: int = 40,
) -> list[Ping]:  # fmt: skip
    """Pings over a line that is slower in one direction, and now and then slower still."""
    found, t = [], float(begin_ns)
    for _ in range(count):
        there = (there_ms + rng.exponential(jitter_ms)) * MS
        back = (back_ms + rng.exponential(jitter_ms)) * MS
        at = t + there
        found.append(Ping(int(t), int(at + offset_ns + drift * at), int(at + back)))
        t = at + back + MS
    return found


@pytest.mark.parametrize(
    ("there_ms", "back_ms", "jitter_ms"),
    [(0.15, 0.15, 0.05), (1.0, 1.0, 2.0), (0.5, 5.0, 0.5)],
    ids=["LAN", "WiFi", "asymmetric serial"],
)
def test_the_error_is_never_beyond_the_bound(there_ms: float, back_ms: float, jitter_ms: float) -> None:
    """100 lines; the board's clock is 5 s ahead and gains 40 ppm, over a measurement of two minutes."""
    worst = 0.0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        offset, drift = 5e9, 40e-6
        before = trips(rng, 10**12, offset, drift, there_ms, back_ms, jitter_ms)
        after = trips(rng, 10**12 + 120 * 10**9, offset, drift, there_ms, back_ms, jitter_ms)
        found = align(before + after)
        host = 10**12 + np.arange(0, 120, 10) * 10**9
        error = np.abs(found.to_board(host) - (host + offset + drift * host))
        worst = max(worst, float(error.max()) / found.bound_ns)

    assert worst <= 1


def test_a_drift_that_is_there_is_seen_and_none_is_made_up_from_one_burst() -> None:
    rng = np.random.default_rng(1)
    before = trips(rng, 0, 1e9, 100e-6, 0.2, 0.2, 0.02)
    after = trips(rng, 100 * 10**9, 1e9, 100e-6, 0.2, 0.2, 0.02)

    assert pytest.approx(100e-6, rel=0.05) == align(before + after).drift
    assert 0.0 == align(before).drift


def test_the_bound_is_half_of_the_quickest_round_trip_of_the_worse_half() -> None:
    found = align([Ping(0, 5, 100), Ping(200, 5, 260), Ping(1000, 5, 1400), Ping(2000, 5, 2200)])

    assert 100 == found.bound_ns


def test_times_are_brought_onto_the_boards_clock() -> None:
    """50 ns ahead, gaining 1 in 100: 1,000 ns after the origin it is 60 ahead."""
    found = Alignment(origin_ns=10_000, offset_ns=50.0, drift=0.01, bound_ns=5.0)

    assert [10_050, 11_060] == found.to_board(np.array([10_000, 11_000])).tolist()


def test_a_board_on_this_machine_has_this_machines_clock(session: Session) -> None:
    found = align(pings(session) + pings(session))

    assert abs(found.offset_ns) <= found.bound_ns
