"""
Which release was current before the current one.

``history`` has a line for each activation, the newest last.  It is bounded, and written anew by a rename.  A line is
added after `current` was switched; whoever dies in between leaves out a line, which the next activation adds first.
The order of the lines is all that counts: a board's clock may be wrong by years.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

LINES = 64


@dataclass(frozen=True)
class Activation:
    """
    A release that became current.

    Attributes:
        release: ``name/n``.
        bundle: its digest.
        python: that of the board when the release had proven itself.
    """

    release: str
    bundle: str
    python: str


class History:
    """The file below one root."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Activation]:
        """All that is remembered, oldest first; lines that make no sense are passed over."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(fd, "rb") as source:
                lines = source.read().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                entry = Activation(**json.loads(line))
            except (TypeError, ValueError, RecursionError):
                continue
            if all(isinstance(value, str) for value in vars(entry).values()):
                found.append(entry)
        return found

    def add(self, now: Activation, before: Activation | None) -> None:
        """
        `now` is current.

        Args:
            before: what was current until then; None if nothing was.
        """
        entries = self.entries()
        if before and (not entries or entries[-1].release != before.release):
            entries.append(before)
        # The same release again, with another Python or the first that is known, is no step to go back over.
        if entries and entries[-1].release == now.release:
            entries.pop()
        entries.append(now)
        staging = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        staging.unlink(missing_ok=True)
        fd = os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as out:
            for entry in entries[-LINES:]:
                out.write(json.dumps(asdict(entry)).encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        os.replace(staging, self._path)
