"""
Whose turn it is to run models on this board, among agents of several conversations.

Many may run models side by side; a measurement runs alone, and nothing else runs beside it.  The kernel's file lock
is freed when its holder dies, however it dies.

A measurement outlives its host, and its lease.  Whoever holds the lease then may ask for the turn: the file says with
which token, and agents whose own is lower give way.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from devices.protocol import errors
from devices.protocol.errors import AgentError

GIVE_WAY_S = 3.0  # an agent looks at least every half second


class Turn:
    """The lock of one board, as one agent sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None  # until the first turn: an agent that only looks leaves no file
        self._alone = False

    def take(self, alone: bool) -> None:
        """
        Ask for the turn, shared or `alone`.  Whoever has it alone has it shared too.

        Raises:
            AgentError: busy; another agent measures, or (for `alone`) runs a model.
        """
        if self._alone:
            return
        if not self._try(alone):
            what = "runs a model" if alone else "measures"
            raise AgentError(errors.BUSY, f"another conversation {what} on this board")

    def demand(self, token: int) -> None:
        """
        Take the turn alone, from agents with a lower token if need be.

        Raises:
            AgentError: busy; who has it shows no token, or does not give way.
        """
        if self._alone or self._try(alone=True):
            return
        assert self._file
        os.pwrite(self._file.fileno(), b"%020d" % token, 0)
        end = time.monotonic() + GIVE_WAY_S
        while not self._try(alone=True):
            if time.monotonic() > end:
                raise AgentError(errors.BUSY, "another conversation runs a model on this board and does not give way")
            time.sleep(0.01)

    def demanded_by(self) -> int:
        """The token of whoever demanded the turn last; 0 if nobody ever did."""
        try:
            return int(os.pread(self._file.fileno(), 20, 0) or b"0") if self._file else 0
        except ValueError:
            return 0

    def _try(self, alone: bool) -> bool:
        if self._file is None:
            self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            return False
        self._alone = alone
        return True

    def close(self) -> None:
        """Give it back for good."""
        if self._file:
            self._file.close()

    def give_back(self, alone: bool = True) -> None:
        """Give it back; with ``alone=False`` a turn alone is kept, as it is the measurement's and not the runner's."""
        if self._file and (alone or not self._alone):
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._alone = False
