"""Reads the meters that hang on this machine while a board is measured, and brings their samples onto its clock."""

from __future__ import annotations

from dataclasses import asdict
from types import TracebackType
from typing import Any

import numpy as np

from deploy.boards import Board
from deploy.clock import Alignment, align, pings
from deploy.meters import close_meters, open_meters
from deploy.results.energy import RailSamples
from deploy.results.store import RunWriter
from deploy.session import Session
from devices.protocol.meter import Rail, Sample
from devices.protocol.sampling import DEFAULT_HZ, Sampler, rails


class Attached:
    """
    The meters of `host_meters`, open from the beginning of the ``with`` to its end; none, where there are none.

    Attributes:
        rails: of all meters; empty without any.
        failed: why they stopped answering; None if they did not.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._meters = open_meters(session.board.host_meters)
        self.rails: list[Rail] = rails(self._meters)
        self.failed: str | None = None
        self._samples: list[Sample] = []
        self._pings = pings(session) if self._meters else []
        self._sampler: Sampler | None = None
        self._alignment: Alignment | None = None

    @property
    def clock_bound_s(self) -> float:
        """How far the two clocks may be apart from what we think; after the pings before."""
        return align(self._pings).bound_ns / 1e9 if self._pings else 0.0

    def __enter__(self) -> Attached:
        if self._meters:
            self._sampler = Sampler(self._meters, _rate(self._session.board), self._samples.extend, self._fail)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler:
            self._sampler.stop()
        close_meters(self._meters)
        if self._meters and kind is None:
            self._alignment = align(self._pings + pings(self._session))

    def _fail(self, text: str) -> None:
        self.failed = text

    def store(self, writer: RunWriter) -> list[RailSamples]:
        """Keep every raw sample by the host's own clock, and what turns that into the board's; give the turned ones."""
        if not self._meters or self._alignment is None or self._sampler is None:
            return []
        t_ns = np.array([s.t_ns for s in self._samples], np.int64)
        number = np.array([s.rail for s in self._samples], np.int32)
        value = np.array([s.value for s in self._samples], np.float64)
        if len(t_ns):
            writer.append("host_sample_t_ns", t_ns, "ns, host's clock")
            writer.append("host_sample_rail", number, "index in host_rails")
            writer.append("host_sample_value", value, "mW or uJ, see host_rails")
        sampling = self._sampler.stats()
        writer.set(
            host_rails=[rail.describe() for rail in self.rails], clock=asdict(self._alignment), host_sampling=sampling
        )
        found = []
        for i, rail in enumerate(self.rails):
            mine = number == i
            if mine.any():
                on_board = self._alignment.to_board(t_ns[mine])
                found.append(RailSamples(rail, on_board, value[mine], clock_bound_ns=self._alignment.bound_ns))
        return found


def _rate(board: Board) -> float:
    return max((rail.sample_rate_hz for rail in board.rails if rail.sample_rate_hz), default=DEFAULT_HZ)


def describe(board: Board) -> dict[str, Any]:
    """What `deploy boards check` says of the meters on this machine: their rails, or why there are none."""
    from deploy.errors import MeterError

    try:
        meters = open_meters(board.host_meters)
    except MeterError as error:
        return {"rails": [], "error": str(error)}
    try:
        return {"rails": [rail.describe() for rail in rails(meters)], "error": None}
    finally:
        close_meters(meters)
