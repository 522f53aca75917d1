"""What a benchmark yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row: what, the goal, the result with its spread, and whether the goal is met (None: no goal)."""

    what: str
    goal: str
    result: str
    met: bool | None
