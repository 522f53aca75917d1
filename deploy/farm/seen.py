"""
How the boards are: what each said of itself last, when, and which are in quarantine and why.

Beside the leases, in the same file.  All of it may be lost: the next conversation with a board brings it back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deploy.farm.clock import Clock
from deploy.farm.file import FarmFile

# Seconds from being put into quarantine, or from a probe that failed, to the next one; the last one stays.
PROBE_AFTER_S = (30.0, 60.0, 120.0, 300.0, 600.0)


@dataclass(frozen=True)
class Seen:
    """
    What is known of a board.

    Attributes:
        seen_s: when it answered last, by the wall clock; None if it never did.
        found: what it said, each as ``{"at_s": when, "is": what}``: ``identity`` as in the agent's hello; ``state`` and
            ``rails`` where it was asked for them.
        reason: why it is in quarantine; None: it is not.
        since_s: when that began, by the wall clock.
        probe_s: when to look at it again, by the wall clock; None: not before a person does.
    """

    board: str
    seen_s: float | None = None
    found: dict[str, Any] | None = None
    reason: str | None = None
    since_s: float | None = None
    probe_s: float | None = None


class Sightings:
    """The boards of one file."""

    def __init__(self, file: FarmFile, clock: Clock | None = None) -> None:
        self.file = file
        self.clock = clock or Clock()

    def saw(self, board: str, **found: Any) -> None:
        """The board answered; what it said of itself replaces what it said before, key by key, and is timed."""
        now = self.clock.wall_s()
        with self.file.writing() as db:
            known = _found(db.execute("SELECT found FROM boards WHERE board = ?", (board,)).fetchone())
            kept = json.dumps({**known, **{key: {"at_s": now, "is": value} for key, value in found.items()}})
            db.execute(
                "INSERT INTO boards (board, seen_s, found) VALUES (?1, ?2, ?3) "
                "ON CONFLICT DO UPDATE SET seen_s = ?2, found = ?3",
                (board, now, kept),
            )

    def of(self, board: str) -> Seen:
        return self.all().get(board, Seen(board))

    def all(self) -> dict[str, Seen]:
        """By board; a board that was never heard of is not there."""
        with self.file.reading() as db:
            rows = db.execute("SELECT board, seen_s, found, reason, since_s, probe_s FROM boards").fetchall()
        return {row[0]: Seen(row[0], row[1], _found(row[2:3]) or None, *row[3:]) for row in rows}

    def quarantine(self, board: str, reason: str, by_hand: bool = False) -> None:
        """
        Whoever asks for any board does not get this one, until it answers a probe or `forgive` is called.

        Args:
            by_hand: a person knows better: it is not probed.
        """
        now = self.clock.wall_s()
        later = None if by_hand else now + PROBE_AFTER_S[0]
        with self.file.writing() as db:
            db.execute(
                "INSERT INTO boards (board, reason, since_s, probe_s, probes) VALUES (?1, ?2, ?3, ?4, 0) "
                "ON CONFLICT DO UPDATE SET reason = ?2, since_s = coalesce(since_s, ?3), probe_s = ?4, probes = 0",
                (board, reason, now, later),
            )

    def forgive(self, board: str) -> None:
        """It is as good as any other again."""
        with self.file.writing() as db:
            db.execute(
                "UPDATE boards SET reason = NULL, since_s = NULL, probe_s = NULL, probes = 0 WHERE board = ?", (board,)
            )

    def claim_probe(self, board: str) -> bool:
        """
        Whether this board is due to be probed, and by us: nobody else is told so until the next time.

        A wall clock that was set back must not put the next probe off for ever.
        """
        now = self.clock.wall_s()
        with self.file.writing() as db:
            row = db.execute(
                "SELECT probes, probe_s FROM boards WHERE board = ? AND probe_s IS NOT NULL", (board,)
            ).fetchone()
            if row is None or now < row[1] <= now + PROBE_AFTER_S[-1]:
                return False
            probes = row[0] + 1
            later = PROBE_AFTER_S[min(probes, len(PROBE_AFTER_S) - 1)]
            db.execute("UPDATE boards SET probes = ?, probe_s = ? WHERE board = ?", (probes, now + later, board))
        return True

    def acquiring(self, board: str, ours: bool) -> None:
        """Remember whether it is we who have acquired the board's place of labgrid."""
        with self.file.writing() as db:
            db.execute(
                "INSERT INTO boards (board, acquired) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET acquired = ?2",
                (board, ours),
            )

    def acquired(self, board: str) -> bool:
        """Whether we have, or had and were killed."""
        with self.file.reading() as db:
            row = db.execute("SELECT acquired FROM boards WHERE board = ?", (board,)).fetchone()
        return bool(row and row[0])


def _found(row: Any) -> dict[str, Any]:
    """What a board said, from the file; what cannot be read was not said."""
    try:
        found = json.loads(row[0]) if row and row[0] else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
