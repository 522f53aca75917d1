"""
What a meter is, on the board or on the host.

A meter watches one or more rails and gives raw samples.  It says how those samples come about, and leaves all
arithmetic to `deploy.results.energy`: power becomes energy in one place only, from what was stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Rail:
    """
    One supply line and what is known about its samples; None is not known.

    Attributes:
        name: the board's label for it, as in ``VDD_IN``.
        chip: what measures it, as in ``ina3221``.
        scope: what hangs on the line: ``module``, ``board-dc``, ``wall-ac``, ``soc-rails``; ``rail`` where the
            meter alone cannot tell.
        quantity: ``power_mw``, an instantaneous or averaged power; or ``energy_uj``, a counter that only grows
            (wrap-around already undone).
        update_period_s: the sensor's memory, with averaging: the length of a box, or the time constant of an IIR.
        lsb: smallest step of the value.
        total: the line feeds all that the other rails of this meter feed.
        averaging: ``box``, the mean of one period; ``iir``, an exponential one; ``none``, a point in time.
        gain: bound of the relative error, with the shunt's where there is one.
        offset_mw: bound of the additive error of power.
        adds: rails with the same word here may be summed, and their sum has the scope that the word says.
        origin: ``measured``; ``stub``, by a real driver from a chip that is none; ``modelled``; or
            ``measured+corrected``.
        clock: ``board`` or ``host``, whose CLOCK_MONOTONIC dates the samples.
    """

    name: str
    chip: str
    scope: str
    quantity: str
    update_period_s: float | None = None
    lsb: float | None = None
    total: bool = False
    averaging: str | None = None
    gain: float | None = None
    offset_mw: float | None = None
    adds: str | None = None
    origin: str = "measured"
    clock: str = "board"

    def describe(self) -> dict[str, Any]:
        """For the wire and the record."""
        return asdict(self)

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Rail:
        """The rail that `describe` told of, also by a version that knew less or more."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in described.items() if key in known})

    @property
    def source(self) -> str:
        """Stands beside every number: ``measured:ina3221@VDD_IN``."""
        return f"{self.origin}:{self.chip}@{self.name}"


class Sample(NamedTuple):
    """One raw value of rail number `rail`, at the middle of its reading (CLOCK_MONOTONIC)."""

    t_ns: int
    rail: int
    value: float


class Meter(Protocol):
    """
    Something that can be read.

    Attributes:
        rails: what it watches; samples number them in this order.
        period_s: reading it more often than this tells nothing new, or costs too much; 0 where it may be read at any
            rate.
    """

    rails: Sequence[Rail]
    period_s: float

    def read(self) -> list[Sample]:
        """
        Read every rail once, or take what has come since the last time.

        A rail that gives nothing just now (a channel switched off) is absent from the answer.

        Raises:
            OSError: the meter is gone or may not be read.
            ValueError: what it says makes no sense.
        """
        ...


@dataclass(frozen=True)
class Unreadable:
    """A meter that is there and cannot be used: worth telling a person about."""

    chip: str
    path: str
    reason: str
