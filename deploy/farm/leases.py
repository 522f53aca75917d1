"""
Who holds a board, and who is next.

A lease says that a board is one owner's until a moment, and carries a fencing token that is higher than any before it
on this board.  The board's agent remembers the highest token it saw and refuses lower ones, so a holder that was
stopped, or slept, past the end of its lease disturbs nobody.  The lease file says who may go to the board; the board
has the last word.

There are two kinds.  What runs *uses* a board: a thread renews that lease as long as the process lives, and it ends at
once when the process dies where that can be seen, and after one period where it cannot.  A person *keeps* a board
(`deploy lease take`): no process belongs to that lease, it ends when it was said to, and lets its owner's uses through,
one after the other.

Whoever waits stands in a queue, in which owners take turns (`queue.py`): somebody who asks for a hundred boards does
not hold up somebody who asks for one, and nobody waits for ever but behind higher priorities.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import FarmError, LeaseHeld, LeaseLost
from deploy.farm import queue
from deploy.farm.clock import Clock
from deploy.farm.file import FarmFile
from deploy.farm.lease import Lease
from deploy.farm.process import this_process
from deploy.farm.queue import Holder, Moment, Request
from deploy.units import span

PERIOD_S = 30.0  # of a lease that its process renews; a third of it passes between two renewals
LONGEST_S = 30 * 86400.0  # what an agent accepts
PRESENCE_S = 5.0  # somebody in the queue who said nothing for so long holds up nobody
LOOK_S = 0.02  # between two looks of whoever is first in the queue


@dataclass(frozen=True)
class Waiting:
    """
    Somebody in the queue.

    Attributes:
        boards: any of them will do.
        place: from 1, on the board where it is the best.
        since_s: by the wall clock.
    """

    boards: tuple[str, ...]
    owner: str
    purpose: str
    priority: int
    place: int
    since_s: float


@dataclass(frozen=True)
class Standing:
    """
    Where a request stands that waits.

    Attributes:
        place: from 1, on the board where it is the best.
        holders: of the boards that it waits for; empty for a moment, between two.
    """

    boards: tuple[str, ...]
    place: int
    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        held = "; ".join(f"{holder.board} is held by {holder}" for holder in self.holders)
        return f"place {self.place} in the queue for {', '.join(self.boards)}" + (f"; {held}" if held else "")


def default_owner() -> str:
    """``$DEPLOY_OWNER``, or user@host.  Verbs of one owner share what that owner keeps."""
    return os.environ.get("DEPLOY_OWNER") or f"{getpass.getuser()}@{socket.gethostname()}"


class Leases:
    """
    The leases of the boards that share a file.

    One for each process will do; its threads may share it.

    Args:
        path: of the file; made if it is not there.
        clock: what leases end by.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.file = FarmFile(path)
        self._held: set[Lease] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def take(
        self,
        board: str | Sequence[str],
        *,
        owner: str | None = None,
        purpose: str = "",
        for_s: float = PERIOD_S,
        priority: int = 0,
        wait: float | None = None,
        kept: bool = False,
        on_wait: Callable[[Standing], None] | None = None,
    ) -> Lease:
        """
        Take a board, waiting in the queue until it is free.

        Args:
            board: its name; of several names, the first one that is free.
            owner: `default_owner` if not given.
            purpose: a few words for others to read.
            for_s: how long it holds without being renewed, in (0, 30 days]; a thread renews it unless it is `kept`.
            priority: a higher one goes first.
            wait: seconds to wait at most; 0 not at all, None for as long as it takes.
            kept: no process of ours belongs to it, and nothing renews it: it ends after `for_s`.
            on_wait: told now and then where we stand, when that has changed.

        Raises:
            LeaseHeld: still not free after `wait`.
            FarmError: the file cannot be used.
        """
        names = (board,) if isinstance(board, str) else tuple(board)
        if not names:
            raise ValueError("no board to take")
        if not 0 < for_s <= LONGEST_S:
            raise ValueError(f"a lease of {for_s:g} s is not in (0, {LONGEST_S:g}]")
        request = Request(names, owner or default_owner(), purpose, priority, kept, for_s)
        lease = self._try(request, None)
        if lease is None:
            lease = self._queue_for(request, wait, on_wait)
        if not kept:
            self._keep_alive(lease)
        return lease

    def show(self) -> list[Holder]:
        """Every lease that holds, by board; whoever uses a board before whoever keeps it."""
        with self.file.reading() as db:
            return queue.holders(db, self._now())

    def queue(self, board: str | None = None) -> list[Waiting]:
        """Who waits for a board, or for any, in the order of the queue."""
        with self.file.reading() as db:
            entries = queue.entries(db, self._now())
        return [
            Waiting(e.boards, e.owner, e.purpose, e.priority, queue.place_of(e, entries), e.since_s)
            for e in entries
            if board is None or board in e.boards
        ]

    def release_kept(self, board: str, owner: str | None = None) -> None:
        """
        End what `owner` keeps.

        Raises:
            LeaseHeld: somebody else keeps it.
            FarmError: nobody does.
        """
        owner = owner or default_owner()
        kept = next((holder for holder in self.show() if holder.board == board and holder.kept), None)
        if kept is None:
            raise FarmError(f"nobody keeps board {board!r}", "`deploy lease show` lists who does", board=board)
        if kept.owner != owner:
            raise LeaseHeld(
                f"board {board!r} is not yours to release: it is held by {kept}",
                f"ask them; or `DEPLOY_OWNER={kept.owner} deploy lease release --board {board}` if that is you",
                board=board,
                owner=kept.owner,
            )
        with self.file.writing() as db:
            db.execute("DELETE FROM leases WHERE board = ? AND token = ?", (board, kept.token))

    def close(self) -> None:
        """Give back whatever is held."""
        with self._lock:
            held = list(self._held)
        for lease in held:
            lease.release()
        self.file.close()

    # Below: taking

    def _try(self, request: Request, entry: int | None) -> Lease | None:
        """Take what is free and nobody before us in the queue wants; None if that is nothing."""
        process = None if request.kept else this_process()
        with self.file.writing() as db:
            at = self._now()
            queue.sweep(db, at)
            board = queue.free_board(db, request, entry, at)
            if board is None:
                return None
            turn = queue.turn_of(db, request.owner, entry)
            db.execute("DELETE FROM queue WHERE id = ?", (entry,))
            db.execute("UPDATE about SET turn = max(turn, ?)", (turn,))
            queue.remember_turn(db, request.owner, turn)
            db.execute("INSERT INTO tokens VALUES (?, 1) ON CONFLICT DO UPDATE SET token = token + 1", (board,))
            (token,) = db.execute("SELECT token FROM tokens WHERE board = ?", (board,)).fetchone()
            (issuer,) = db.execute("SELECT issuer FROM about").fetchone()
            since, until = self.clock.wall_s(), at.now_ns + int(request.for_s * 1e9)
            db.execute(
                "REPLACE INTO leases VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (board, request.kept, token, request.owner, request.purpose, since, until, at.boot, process),
            )
        holder = Holder(board, token, request.owner, request.purpose, request.kept, since, request.for_s)
        return Lease(self, holder, f"{issuer}/{board}", request.for_s, until)

    def _now(self) -> Moment:
        return Moment(self.clock.now_ns(), self.clock.boot())

    def _queue_for(self, request: Request, wait: float | None, on_wait: Callable[[Standing], None] | None) -> Lease:
        began = self.clock.now_ns()
        if wait is not None and wait <= 0:
            raise _refused(request, self._look(request, None).standing, wait)
        entry = self._enqueue(request)
        said: Standing | None = None
        refresh = look_at = began
        version = None
        try:
            while True:
                now = self.clock.now_ns()
                if now >= refresh:
                    entry = self._still_here(request, entry)
                    refresh = look_at = now + int(PRESENCE_S / 4 * 1e9)
                found = self.file.version()
                if found != version or now >= look_at:
                    version = found
                    look = self._look(request, entry)
                    if look.free and (lease := self._try(request, entry)):
                        return lease
                    if on_wait and _differs(look.standing, said):
                        on_wait(look.standing)
                    said = look.standing
                    # A lease that ends by itself writes nothing.
                    look_at = min([refresh, *(now + int(holder.left_s * 1e9) + 1 for holder in said.holders)])
                if wait is not None and now - began >= wait * 1e9:
                    raise _refused(request, self._look(request, entry).standing, wait)
                self.clock.sleep(min(LOOK_S * (said.place if said else 1), 0.5))
        except BaseException:
            with contextlib.suppress(FarmError), self.file.writing() as db:
                db.execute("DELETE FROM queue WHERE id = ?", (entry,))
            raise

    def _enqueue(self, request: Request) -> int:
        until = self.clock.now_ns() + int(PRESENCE_S * 1e9)
        with self.file.writing() as db:
            turn = queue.turn_of(db, request.owner, None)
            queue.remember_turn(db, request.owner, turn)
            row = (json.dumps(request.boards), request.kept, request.owner, request.purpose, request.priority, turn)
            done = db.execute(
                "INSERT INTO queue VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, self.clock.wall_s(), until, self.clock.boot(), this_process()),
            )
        assert done.lastrowid is not None
        return done.lastrowid

    def _still_here(self, request: Request, entry: int) -> int:
        """Say that we still wait; whoever was taken for gone, having been stopped, goes to the end."""
        until = self.clock.now_ns() + int(PRESENCE_S * 1e9)
        with self.file.writing() as db:
            done = db.execute("UPDATE queue SET until_ns = ? WHERE id = ?", (until, entry))
        return entry if done.rowcount else self._enqueue(request)

    def _look(self, request: Request, entry: int | None) -> _Look:
        """Where a request stands; `entry` is its number in the queue, if it is there."""
        with self.file.reading() as db:
            at = self._now()
            entries = queue.entries(db, at)
            holders = tuple(h for h in queue.holders(db, at, request.boards) if queue.blocks(h, request))
            free = queue.free_board(db, request, entry, at)
        ours = next((e for e in entries if e.id == entry), None)
        if ours:
            place = queue.place_of(ours, entries)
        else:
            place = 1 + sum(not set(e.boards).isdisjoint(request.boards) for e in entries)
        return _Look(Standing(request.boards, place, holders), free is not None)

    # Below: keeping

    def _keep_alive(self, lease: Lease) -> None:
        with self._lock:
            self._held.add(lease)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._renew_all, name="leases", daemon=True)
                self._thread.start()
        self._wake.set()  # its period may be shorter than those of the others

    def _renew_all(self) -> None:
        """Renew each lease when a third of its period has passed; the thread ends with the last of them."""
        while True:
            with self._lock:
                held = list(self._held)
                if not held:
                    self._thread = None
                    return
            now = self.clock.now_ns()
            due = [lease for lease in held if lease.expires - now <= lease.for_s * 2e9 / 3]
            for lease in due:
                try:
                    lease.renew()
                except LeaseLost:
                    with self._lock:
                        self._held.discard(lease)
                except FarmError:
                    pass  # it holds until it ends; the next round tries again
            soonest = min(lease.expires - lease.for_s * 2e9 / 3 for lease in held)
            shortest = min(lease.for_s for lease in held)
            self._wake.wait(max((soonest - self.clock.now_ns()) / 1e9, shortest / 30))
            self._wake.clear()

    def give_back(self, lease: Lease) -> None:
        """For `Lease.release` alone."""
        with self._lock:
            self._held.discard(lease)
        self._wake.set()
        with self.file.writing() as db:
            db.execute("DELETE FROM leases WHERE board = ? AND token = ?", (lease.board, lease.token))


@dataclass(frozen=True)
class _Look:
    standing: Standing
    free: bool


def _refused(request: Request, standing: Standing, wait: float) -> LeaseHeld:
    held = "; ".join(f"board {holder.board!r} is held by {holder}" for holder in standing.holders)
    waited = f"; waited for {span(wait)}" if wait else ""
    return LeaseHeld(
        (held or f"others wait for board {' or '.join(map(repr, request.boards))}") + waited,
        "`--wait 10m` waits in the queue for so long; `deploy lease show` lists who has what",
        boards=request.boards,
        place=standing.place,
    )


def _differs(standing: Standing, said: Standing | None) -> bool:
    return said is None or (standing.place, {(h.board, h.token) for h in standing.holders}) != (
        said.place,
        {(h.board, h.token) for h in said.holders},
    )
