"""
What a meter is.

A meter watches one or more rails and gives raw samples.  It says how those samples come about, and leaves all
arithmetic to the host: energy is computed in one place only, from what was stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Rail:
    """
    One supply line and what is known about its samples.

    Attributes:
        name: the board's label for it, as in ``VDD_IN``.
        chip: what measures it, as in ``ina3221``.
        scope: what hangs on the line: ``module``, ``board-dc``, ``wall-ac``, ``soc-rails``; ``rail`` where the
            meter alone cannot tell.
        quantity: ``power_mw``, an instantaneous or averaged power; or ``energy_uj``, a counter that only grows
            (wrap-around already undone).
        update_period_s: how often the value changes, with averaging included; None where unknown.
        lsb: smallest step of the value; None where unknown.
        total: the line feeds all that the other rails of this meter feed.
    """

    name: str
    chip: str
    scope: str
    quantity: str
    update_period_s: float | None = None
    lsb: float | None = None
    total: bool = False

    def describe(self) -> dict[str, Any]:
        """For the wire and the record."""
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """One raw value of rail number `rail`, at the middle of its reading (CLOCK_MONOTONIC)."""

    t_ns: int
    rail: int
    value: float


class Meter(Protocol):
    """Something that can be read."""

    rails: Sequence[Rail]

    def read(self) -> list[Sample]:
        """
        Read every rail once.

        A rail that gives nothing just now (a channel switched off) is absent from the answer.

        Raises:
            OSError: the meter is gone or may not be read.
        """
        ...


@dataclass(frozen=True)
class Unreadable:
    """A meter that is there and may not be read: worth telling a person about."""

    chip: str
    path: str
    reason: str
