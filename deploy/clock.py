"""
The board's clock as the host sees it, for samples of meters that hang on the host.

Each ping gives t1 (host, sent), t2 (board) and t4 (host, received).  Were both ways equally long, the board's clock
would be t2 - (t1 + t4) / 2 ahead; however unequal they are, that is off by no more than half the round trip.  So only
the quickest quarter of the pings counts, a straight line through them gives offset and drift, and the bound is half of
the quickest round trip (Cristian, 1989; the same in NTP).  Only CLOCK_MONOTONIC is used, on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploy.session import Session

PINGS = 40


@dataclass(frozen=True)
class Ping:
    """Host's clock when it was sent and when its answer came, and the board's in between; ns."""

    sent_ns: int
    board_ns: int
    received_ns: int

    @property
    def round_trip_ns(self) -> int:
        return self.received_ns - self.sent_ns


@dataclass(frozen=True)
class Alignment:
    """
    board = host + offset + drift x (host - origin), within `bound_ns`.

    Attributes:
        drift: the board's clock gains so much, as a share; 0 where the pings lie too near together to tell.
    """

    origin_ns: int
    offset_ns: float
    drift: float
    bound_ns: float

    def to_board(self, host_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times of the host's clock on the board's."""
        since = host_ns - self.origin_ns
        return np.asarray(host_ns + np.rint(self.offset_ns + self.drift * since).astype(np.int64))


def pings(session: Session, count: int = PINGS) -> list[Ping]:
    """Ask the board for its time, `count` times in a row."""
    found = []
    for _ in range(count):
        sent = time.monotonic_ns()
        clock_ns = session.request("ping").header["clock_ns"]
        found.append(Ping(sent, int(clock_ns), time.monotonic_ns()))
    return found


def align(found: Sequence[Ping]) -> Alignment:
    """
    Offset and drift from pings before and after; at least one.

    The quickest quarter of each half counts, as the line may have become slower in between.  The bound is the larger
    of both halves', and what the straight line misses of the pings themselves.
    """
    halves = [list(found[: len(found) // 2]), list(found[len(found) // 2 :])]
    quick = []
    bounds = []
    for half in (h for h in halves if h):
        half.sort(key=lambda ping: ping.round_trip_ns)
        quick += half[: max(1, len(half) // 4)]
        bounds.append(half[0].round_trip_ns / 2)
    origin = found[0].sent_ns
    middle = np.array([(ping.sent_ns + ping.received_ns) / 2 - origin for ping in quick])
    offset = np.array([ping.board_ns - origin for ping in quick], float) - middle
    drift = 0.0
    if np.ptp(middle) > 1e9:  # over less than a second the pings' own errors look like drift
        drift = float(np.polyfit(middle - middle.mean(), offset - offset.mean(), 1)[0])
    at_origin = float(offset.mean() - drift * middle.mean())
    return Alignment(origin, at_origin, drift, float(max(bounds)))
