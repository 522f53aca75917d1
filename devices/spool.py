"""
Spools: what a measurement says, on disk, so that a host that vanished loses nothing.

Every event of a measurement is appended to its spool before it is sent.  When the line breaks, the agent goes on
without a host; a later conversation reads the spool, also while it still grows, and drops it.

A spool is a folder ``spool/<id>/``: ``request.json``, what was asked, and ``events``, the frames in order, the last of
which is the reply or the error.  Its writer holds a lock on ``events`` for as long as it lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from devices.protocol import errors
from devices.protocol.errors import AgentError
from devices.protocol.framing import Encoder, Message

CHUNK = 256 * 1024
MOST_BYTES = 4 << 30  # of one spool, and never more than half of the free space
_ID = re.compile(r"[0-9a-f]{8}")


class SpoolWriter:
    """One spool while it is being written."""

    def __init__(self, root: Path, request: dict[str, Any]) -> None:
        self.id = secrets.token_hex(4)
        self._folder = root / self.id
        self._folder.mkdir(parents=True, mode=0o700)
        (self._folder / "request.json").write_text(json.dumps(request))
        self._events = (self._folder / "events").open("ab", buffering=0)
        fcntl.flock(self._events, fcntl.LOCK_EX)
        self._encoder = Encoder()
        self._left = min(MOST_BYTES, shutil.disk_usage(self._folder).free // 2)
        self.failed: str | None = None

    def append(self, message: Message) -> None:
        """Keep a message; after a failure (no more room) nothing more is kept, and `failed` says why."""
        if self.failed is None:
            data = self._encoder.encode(message)
            self._left -= len(data)
            try:
                if self._left < 0:
                    raise OSError(errno.ENOSPC, "no more room for the spool")
                self._events.write(data)
            except OSError as error:
                self.failed = error.strerror or str(error)

    def close(self) -> None:
        """The last message was appended."""
        self._events.close()

    def drop(self) -> None:
        """Nobody wants it any more."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Spools:
    """All spools below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, request: dict[str, Any]) -> SpoolWriter:
        """Begin a spool."""
        return SpoolWriter(self._root, request)

    def list(self) -> list[dict[str, Any]]:
        """Id, size, what was asked, and whether it still grows; oldest first."""
        found = []
        for folder in sorted(self._root.glob("*"), key=lambda path: path.stat().st_mtime):
            if _ID.fullmatch(folder.name) and (folder / "events").is_file():
                request = json.loads((folder / "request.json").read_text())
                size = (folder / "events").stat().st_size
                found.append({"id": folder.name, "bytes": size, "grows": self._grows(folder), "request": request})
        return found

    def read(self, spool: Any, offset: int) -> tuple[bytes, bool]:
        """
        Up to `CHUNK` bytes of the frames from `offset` on, and whether more may come.

        Raises:
            AgentError: not-found, bad-request.
        """
        folder = self._folder(spool)
        # Asked before reading: what the writer adds between the two is read next time.
        grows = self._grows(folder)
        with (folder / "events").open("rb") as events:
            size = os.fstat(events.fileno()).st_size
            if not 0 <= offset <= size:
                raise AgentError(errors.BAD_REQUEST, f"spool {spool} has {size} bytes; {offset} is not among them")
            events.seek(offset)
            data = events.read(CHUNK)
        return data, grows or offset + len(data) < size

    def drop(self, spool: Any) -> None:
        """
        Remove a spool that was read.

        Raises:
            AgentError: not-found; busy, while it is still written.
        """
        folder = self._folder(spool)
        if self._grows(folder):
            raise AgentError(errors.BUSY, f"spool {spool} is still being written")
        shutil.rmtree(folder)

    def _folder(self, spool: Any) -> Path:
        if not isinstance(spool, str) or not _ID.fullmatch(spool):
            raise AgentError(errors.BAD_REQUEST, f"not a spool: {str(spool)[:80]!r}")
        folder = self._root / spool
        if not (folder / "events").is_file():
            raise AgentError(errors.NOT_FOUND, f"no spool {spool}")
        return folder

    @staticmethod
    def _grows(folder: Path) -> bool:
        with (folder / "events").open("rb") as events:
            try:
                fcntl.flock(events, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False
