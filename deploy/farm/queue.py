"""
Who is next: what the lease file holds, read by the rules of the queue.

Higher priorities first; within one, owners take turns, by start-time fair queueing (Goyal, Vin, Cheng 1996, with every
lease as long as any other): a request's turn is one after the later of the turn being served and its owner's last.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deploy.farm.process import is_gone
from deploy.units import span


@dataclass(frozen=True)
class Holder:
    """
    Who has a board.

    Attributes:
        kept: by `deploy lease take`; else something uses it.
        since_s: by the wall clock.
        left_s: until it ends; what uses the board is renewed before.
    """

    board: str
    token: int
    owner: str
    purpose: str
    kept: bool
    since_s: float
    left_s: float

    def __str__(self) -> str:
        what = f" ({self.purpose})" if self.purpose else ""
        until = f", kept for another {span(self.left_s)}" if self.kept else ""
        return f"{self.owner}{what}{until}"


@dataclass(frozen=True)
class Moment:
    """A time of `deploy.farm.clock.Clock`, and the boot that it belongs to."""

    now_ns: int
    boot: str


@dataclass(frozen=True)
class Request:
    """What somebody asks for; see `deploy.farm.leases.Leases.take`."""

    boards: tuple[str, ...]
    owner: str
    purpose: str
    priority: int
    kept: bool
    for_s: float


@dataclass(frozen=True)
class Entry:
    """Somebody in the queue; `turn` is the rule's, see the module."""

    id: int
    boards: tuple[str, ...]
    owner: str
    purpose: str
    priority: int
    turn: int
    since_s: float

    @property
    def rank(self) -> tuple[int, int, int]:
        """Lower goes first."""
        return -self.priority, self.turn, self.id


def sweep(db: sqlite3.Connection, at: Moment) -> None:
    """Take away what has ended, or whose process is dead."""
    for table in ("leases", "queue"):
        db.execute(f"DELETE FROM {table} WHERE boot != ? OR until_ns <= ?", (at.boot, at.now_ns))
        for (process,) in db.execute(f"SELECT DISTINCT process FROM {table}").fetchall():
            if is_gone(process):
                db.execute(f"DELETE FROM {table} WHERE process = ?", (process,))


def holders(db: sqlite3.Connection, at: Moment, boards: Iterable[str] | None = None) -> list[Holder]:
    """Who has these boards, or any; who uses one before who keeps it."""
    where, values = "", [at.boot, at.now_ns]
    if boards is not None:
        where, values = "AND board IN (SELECT value FROM json_each(?))", [*values, json.dumps(list(boards))]
    rows: list[Any] = db.execute(
        "SELECT board, token, owner, purpose, kept, since_s, until_ns, process FROM leases "
        f"WHERE boot = ? AND until_ns > ? {where} ORDER BY board, kept",
        values,
    ).fetchall()
    gone = _gone(rows)
    return [
        Holder(board, token, owner, purpose, bool(kept), since_s, (until_ns - at.now_ns) / 1e9)
        for board, token, owner, purpose, kept, since_s, until_ns, process in rows
        if process not in gone
    ]


def entries(db: sqlite3.Connection, at: Moment) -> list[Entry]:
    """Who waits, in the order of the queue."""
    rows: list[Any] = db.execute(
        "SELECT id, boards, owner, purpose, priority, turn, since_s, process FROM queue "
        "WHERE boot = ? AND until_ns > ? ORDER BY priority DESC, turn, id",
        (at.boot, at.now_ns),
    ).fetchall()
    gone = _gone(rows)
    return [Entry(row[0], tuple(json.loads(row[1])), *row[2:7]) for row in rows if row[7] not in gone]


def place_of(entry: Entry, queue: Iterable[Entry]) -> int:
    """From 1, on the board of the entry where it is the best."""
    before = [other for other in queue if other.rank < entry.rank]
    return 1 + min(sum(board in other.boards for other in before) for board in entry.boards)


def blocks(holder: Holder, request: Request) -> bool:
    """What an owner keeps lets the same owner's uses through, and may be kept for longer; uses exclude each other."""
    return holder.owner != request.owner or not (holder.kept or request.kept)


def free_board(db: sqlite3.Connection, request: Request, entry: int | None, at: Moment) -> str | None:
    """The first board of the request that nobody has, and that nobody before it in the queue wants."""
    there = holders(db, at, request.boards)
    blocked = {holder.board for holder in there if blocks(holder, request)}
    if blocked.issuperset(request.boards):
        return None
    kept = {holder.board for holder in there if holder.kept and holder.owner == request.owner}
    turn = turn_of(db, request.owner, entry)
    rank = (-request.priority, turn, entry if entry is not None else sys.maxsize)
    for other in entries(db, at):
        if other.id != entry and other.rank < rank:
            # Others wait for the end of what the owner keeps; they are not before its uses.
            blocked |= {board for board in other.boards if board not in kept or other.owner == request.owner}
    return next((board for board in request.boards if board not in blocked), None)


def turn_of(db: sqlite3.Connection, owner: str, entry: int | None) -> int:
    """The turn of a request: the one that it queued with, or one after the owner's last and the one being served."""
    if entry is not None:
        row = db.execute("SELECT turn FROM queue WHERE id = ?", (entry,)).fetchone()
        if row:
            return int(row[0])
    (served,) = db.execute("SELECT turn FROM about").fetchone()
    last = db.execute("SELECT turn FROM owners WHERE owner = ?", (owner,)).fetchone()
    return 1 + int(max(served, last[0] if last else 0))


def remember_turn(db: sqlite3.Connection, owner: str, turn: int) -> None:
    """The owner has asked for this turn.  Owners whose turns are past are as good as new, and forgotten."""
    db.execute(
        "INSERT INTO owners VALUES (?, ?) ON CONFLICT DO UPDATE SET turn = max(turn, excluded.turn)", (owner, turn)
    )
    db.execute("DELETE FROM owners WHERE turn <= (SELECT turn FROM about)")


def _gone(rows: list[Any]) -> set[str]:
    """The processes among the last column that are dead."""
    return {process for process in {row[-1] for row in rows} if is_gone(process)}
