"""A lease that is ours: what its holder knows of it, and may do with it.  See `leases.py` for the whole."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING

from deploy.errors import FarmError, LeaseLost
from deploy.farm.queue import Holder

if TYPE_CHECKING:
    from deploy.farm.leases import Leases


class Lease:
    """
    A board that is ours; made by `Leases.take`, given back by `release` or at the end of a ``with``.

    Attributes:
        token: for the board's agent.
        issuer: tells tokens of this file and board from those of another file.
        kept: see the module.
    """

    def __init__(self, leases: Leases, holder: Holder, issuer: str, for_s: float, until_ns: int) -> None:
        self.board = holder.board
        self.owner = holder.owner
        self.purpose = holder.purpose
        self.kept = holder.kept
        self.token = holder.token
        self.issuer = issuer
        self.for_s = for_s
        self._leases = leases
        self._until_ns = until_ns
        self._ended = threading.Event()

    @property
    def expires(self) -> int:
        """When it ends unless it is renewed, in ns of `Clock.now_ns`."""
        return self._until_ns

    @property
    def left_s(self) -> float:
        """Seconds until it ends unless it is renewed; 0 when it has ended."""
        if self._ended.is_set():
            return 0.0
        return max(0.0, (self._until_ns - self._leases.clock.now_ns()) / 1e9)

    def check(self) -> None:
        """
        To be called right before the board is touched; costs a look at the clock.

        Raises:
            LeaseLost: it has ended.
        """
        if self.left_s <= 0:
            raise LeaseLost(
                f"the lease of board {self.board!r} has ended (token {self.token}; this process was stopped, or the "
                "machine asleep, for too long)",
                f"type the command again; `deploy attach --board {self.board}` fetches a measurement that went on",
                board=self.board,
                token=self.token,
            )

    def renew(self) -> None:
        """
        Go on for another `for_s` from now.

        Raises:
            LeaseLost: it has ended; it is not taken anew, as somebody else may have had the board meanwhile.
            FarmError: the file cannot be written; the lease still holds until `expires`.
        """
        self.check()
        now = self._leases.clock.now_ns()
        until = now + int(self.for_s * 1e9)
        with self._leases.file.writing() as db:
            done = db.execute(
                "UPDATE leases SET until_ns = ? WHERE board = ? AND token = ? AND boot = ? AND until_ns > ?",
                (until, self.board, self.token, self._leases.clock.boot(), now),
            )
        if not done.rowcount:
            self._ended.set()
            self.check()
        self._until_ns = until

    def lift(self, seen: int) -> None:
        """
        Raise the token above one that the board has seen: this file forgot it, or another one gave it.

        Raises:
            LeaseLost: it has ended.
        """
        self.check()
        with self._leases.file.writing() as db:
            (highest,) = db.execute("SELECT token FROM tokens WHERE board = ?", (self.board,)).fetchone()
            token = max(highest, seen) + 1
            done = db.execute(
                "UPDATE leases SET token = ? WHERE board = ? AND token = ? AND until_ns > ?",
                (token, self.board, self.token, self._leases.clock.now_ns()),
            )
            if done.rowcount:
                db.execute("UPDATE tokens SET token = ? WHERE board = ?", (token, self.board))
                self.token = token
        if not done.rowcount:
            self._ended.set()
            self.check()

    def release(self) -> None:
        """Give the board back; nothing happens if it was given back, or lost, already."""
        if not self._ended.is_set():
            self._ended.set()
            self._leases.give_back(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except FarmError:
            if kind is None:
                raise  # else what happened first is said; the lease ends by itself
