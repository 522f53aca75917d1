"""
Whose turn it is to run models on this board, among agents of several conversations.

Many may run models side by side; a measurement runs alone, and nothing else runs beside it.  The kernel's file lock
is freed when its holder dies, however it dies.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from devices.protocol import errors
from devices.protocol.errors import AgentError


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
        if self._file is None:
            self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            what = "runs a model" if alone else "measures"
            raise AgentError(errors.BUSY, f"another conversation {what} on this board") from None
        self._alone = alone

    def close(self) -> None:
        """Give it back for good."""
        if self._file:
            self._file.close()

    def give_back(self, alone: bool = True) -> None:
        """Give it back; with ``alone=False`` a turn alone is kept, as it is the measurement's and not the runner's."""
        if self._file and (alone or not self._alone):
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._alone = False
