"""
The file that processes of one machine share: who holds which board, who waits, and how the boards are.

SQLite, in WAL mode: whoever only looks waits for nobody.  A writer that is killed frees its lock with its life; one
that is stopped in the middle of a write (SIGSTOP) keeps it, and the others say so after `BUSY_S`.

Nothing waits for the disk, as every verb writes here.  Processes may die at any moment all the same; but a machine that
goes down may leave the file damaged.  What it said of leases is over then anyway, so the first to open it after a boot
looks, and sets a damaged one aside: boards remember their highest token (`Lease.lift`), and the rest is seen anew.

The schema's history, by ``PRAGMA user_version``:

1: leases, queue, owners, tokens, boards
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from deploy.errors import FarmError
from deploy.farm.clock import Clock

VERSION = 1
BUSY_S = 10.0
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

_SCHEMA = """
CREATE TABLE leases (
    board TEXT NOT NULL,
    kept INTEGER NOT NULL,          -- 1 is `deploy lease take`, 0 is what runs
    token INTEGER NOT NULL,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    since_s REAL NOT NULL,          -- wall clock, to be shown
    until_ns INTEGER NOT NULL,      -- of the clock and the boot beside it
    boot TEXT NOT NULL,
    process TEXT,                   -- see `deploy.farm.process`, or NULL
    PRIMARY KEY (board, kept)
) WITHOUT ROWID;
CREATE TABLE queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    boards TEXT NOT NULL,           -- JSON: any of them will do
    kept INTEGER NOT NULL,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    priority INTEGER NOT NULL,
    turn INTEGER NOT NULL,          -- lower first, within a priority
    since_s REAL NOT NULL,
    until_ns INTEGER NOT NULL,      -- whoever waits says so again and again
    boot TEXT NOT NULL,
    process TEXT
);
CREATE TABLE owners (owner TEXT PRIMARY KEY, turn INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (board TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE boards (
    board TEXT PRIMARY KEY,
    seen_s REAL,                    -- wall clock, when it last answered
    found TEXT,                     -- JSON: what it said of itself
    reason TEXT,                    -- why it is in quarantine, or NULL
    since_s REAL,                   -- when that began
    probe_s REAL,                   -- when to look again
    probes INTEGER NOT NULL DEFAULT 0,
    acquired INTEGER NOT NULL DEFAULT 0  -- its place of labgrid, by us
) WITHOUT ROWID;
CREATE TABLE about (issuer TEXT NOT NULL, turn INTEGER NOT NULL);
INSERT INTO about VALUES (lower(hex(randomblob(16))), 0);
"""


class FarmFile:
    """
    One connection to the file, for the threads of one process.

    Args:
        path: made if it is not there, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pid = 0
        self._writes = 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """
        One state of the file; what others write meanwhile is not seen.

        Raises:
            FarmError: the file cannot be read.
        """
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """
        Nobody else writes meanwhile; what the body did is there when it ends, or nothing of it if it raises.

        Raises:
            FarmError: the disk is full, or somebody else writes for longer than `BUSY_S`.
        """
        with self._transaction("BEGIN IMMEDIATE") as connection:
            self._writes += 1
            yield connection

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._open()
                try:
                    connection.execute(begin)
                    yield connection
                    connection.commit()
                except BaseException:  # Ctrl-C anywhere among them
                    if connection.in_transaction:
                        connection.rollback()
                    raise
            except sqlite3.Error as error:
                raise self._failed(error) from None

    def version(self) -> tuple[int, int]:
        """Something that changes when anybody has written; this costs microseconds."""
        with self._lock:
            try:
                others = self._open().execute("PRAGMA data_version").fetchone()[0]
                return self._writes, others  # SQLite counts what other connections write
            except sqlite3.Error as error:
                raise self._failed(error) from None

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None and self._pid == os.getpid():
            return self._connection
        # A connection must not cross a fork; the parent's is left alone.
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._after_boot()
        except OSError as error:
            raise self._failed(error) from None
        self._connection, self._pid = self._connect(), os.getpid()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        self._migrate(connection)
        return connection

    def _after_boot(self) -> None:
        """Once after each boot: set the file aside if the machine went down while it was written."""
        mark, boot = self.path.with_suffix(".boot"), Clock().boot()
        if mark.exists() and mark.read_text() == boot:
            return
        with mark.open("a+") as looked:
            fcntl.flock(looked, fcntl.LOCK_EX)
            looked.seek(0)
            if looked.read() == boot:
                return  # another process was faster
            if self.path.exists() and not self._is_sound():
                for name in (self.path.name, f"{self.path.name}-wal", f"{self.path.name}-shm"):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(self.path.with_name(name), self.path.with_name(f"{name}.damaged"))
            looked.truncate(0)
            looked.write(boot)

    def _is_sound(self) -> bool:
        try:
            with contextlib.closing(self._connect()) as connection:
                return bool(connection.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorname", "") in _DAMAGED:
                return False
            raise

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == 0:
            connection.execute("BEGIN IMMEDIATE")
            if _version(connection) == 0:  # else another process was faster
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.commit()
        found = _version(connection)
        if found != VERSION:
            connection.close()
            raise FarmError(
                f"{self.path} is of version {found}, this deploy knows {VERSION}",
                "use the newer deploy, or `$DEPLOY_FARM` to name another folder",
                path=str(self.path),
            )

    def _failed(self, error: Exception) -> FarmError:
        name = getattr(error, "sqlite_errorname", "")
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        hint = "`$DEPLOY_FARM` names another folder"
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            reason = f"another process has been writing for {BUSY_S:g} s"
            hint = f"is one stopped? `fuser -v {self.path}` shows who has it open"
        elif name in _DAMAGED:
            hint = "move it away: boards remember their highest token, and a new file catches up with them"
        elif name == "SQLITE_FULL" or (name.startswith("SQLITE_IOERR") and self._is_full()):
            reason = "the disk is full"
        return FarmError(f"{self.path}: {reason}", hint, path=str(self.path))

    def _is_full(self) -> bool:
        """SQLite tells an input/output error where its shared memory found no room."""
        try:
            return shutil.disk_usage(self.path.parent).free < 1 << 20
        except OSError:
            return False


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
