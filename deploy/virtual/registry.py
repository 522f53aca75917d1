"""
The virtual boards that are up on this machine, and where each keeps what it needs.

A board has a folder below the state directory.  Its keeper (`keeper.py`) holds a lock on a file there for as long as it
lives; a folder without that lock is what a crash has left, and counts for nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def state_dir() -> Path:
    """``$XDG_STATE_HOME/deploy/virtual``."""
    return Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "deploy" / "virtual"


@dataclass(frozen=True)
class Place:
    """The folder of the board `name`, and the names in it."""

    name: str

    @property
    def folder(self) -> Path:
        return state_dir() / self.name

    @property
    def described(self) -> Path:
        """What the board is: kind, machine, port, and its entries in the registry."""
        return self.folder / "board.json"

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def console_log(self) -> Path:
        """All that the console ever said."""
        return self.folder / "console.log"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def read(self) -> dict[str, Any] | None:
        """What `described` says; None if there is no such board."""
        try:
            found: dict[str, Any] = json.loads(self.described.read_text())
        except (OSError, ValueError):
            return None
        return found

    def is_kept(self) -> bool:
        """Whether its keeper lives."""
        try:
            with self.lock.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def last_words(self, lines: int = 8) -> list[str]:
        """The end of what the console said, fit for a terminal."""
        try:
            text = self.console_log.read_bytes()[-16384:].decode("utf-8", "replace")
        except OSError:
            return []
        shown = ["".join(c for c in line if c.isprintable()).rstrip() for line in text.splitlines()]
        return [line for line in shown if line][-lines:]


def places() -> Iterator[Place]:
    """Every board that has a folder, up or left behind by a crash."""
    folder = state_dir()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if (path / "board.json").is_file() and not path.name.startswith("."):
            yield Place(path.name)


def entries() -> dict[str, dict[str, Any]]:
    """Name -> entry, as in boards.yaml, of all boards that are up: each by SSH, by its console and by its UART."""
    found: dict[str, dict[str, Any]] = {}
    for place in places():
        described = place.read()
        if described and described.get("up") and place.is_kept():
            found |= described["entries"]
    return found
