"""
The results store: every run, every sample, never changed afterwards.

A run is a folder, ``<id>/record.json`` and one file for each array.  Arrays are written as they arrive, so a run that
breaks off keeps what it had and says so; once it is over they are packed, see `_pack`.  ``index.sqlite`` lists the
runs; it can be made again from the folders and is.

History of the record:
    1  first
    2  arrays may be packed: an array's entry says its ``encoding``
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from deploy.errors import StoreError, nearest

if TYPE_CHECKING:  # it takes longer to import than a list of runs takes to print
    from numpy.typing import NDArray

SCHEMA = 2
READABLE = (1, 2)
INDEX = 3  # version of index.sqlite; one of another version is made again
_SHOWN = "id, created, kind, board, bundle, digest, status, verdict, headline, cell"
_RECORD = {"schema", "id", "kind", "created", "status", "board", "bundle", "arrays"}
_indexing = threading.Lock()  # threads that wait for SQLite sleep ever longer, and the unlucky ones for seconds
_DTYPES = {"<i8": "<i8", "<f8": "<f8"}  # as the record says it -> as numpy does


class RunWriter:
    """
    One run while it is being made.  Use as a context manager.

    Leaving it normally makes the run ``complete``; leaving it by an exception ``incomplete``, with the reason, and the
    exception goes on.  A run of which nothing arrived before the exception is dropped.
    """

    def __init__(self, store: Store, kind: str, record: Mapping[str, Any]) -> None:
        now = datetime.datetime.now(datetime.UTC)
        # A farm measures hundreds of cells in a second, on hosts that do not know of each other.
        self.id = f"{now:%Y%m%d-%H%M%S}-{os.urandom(4 if 'cell' in record else 2).hex()}"
        self._store = store
        self._folder = store.root / self.id
        self._files: dict[str, tuple[BinaryIO, str, str]] = {}
        self._record: dict[str, Any] = {
            "schema": SCHEMA,
            "id": self.id,
            "kind": kind,
            "created": now.isoformat(timespec="seconds"),
            **record,
        }
        try:
            self._folder.mkdir(parents=True)
            self._write_unfinished()
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {error.strerror}", "$DEPLOY_RESULTS names another folder for results"
            ) from None

    def append(self, name: str, values: NDArray[Any], unit: str) -> None:
        """
        Add values to an array; int64 and float64, each array of one kind.  They are on disk when this returns.

        Raises:
            StoreError: the disk is full.
        """
        dtype = "<f8" if values.dtype.kind == "f" else "<i8"
        path = self._folder / f"{name}.bin"
        try:
            if name not in self._files:
                self._files[name] = (path.open("wb", buffering=0), dtype, unit)
                self._write_unfinished()
            _write(self._files[name][0], values.astype(_DTYPES[dtype]).tobytes())
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None

    def array(self, name: str) -> NDArray[Any]:
        """What was appended so far, read back from the disk; empty for nothing."""
        import numpy as np

        if name not in self._files:
            return np.empty(0, np.int64)
        return np.fromfile(self._folder / f"{name}.bin", _DTYPES[self._files[name][1]])

    def restarts(self, name: str) -> list[NDArray[Any]]:
        """As `Run.restarts`."""
        return [self.array(each) for each in _numbered(self._files, name)]

    def set(self, **values: Any) -> None:
        """Put results into the record."""
        self._record.update(values)

    def known(self) -> dict[str, Any]:
        """The record as far as it goes, less what the store itself puts there; for a run that is begun anew."""
        return {key: value for key, value in self._record.items() if key not in ("schema", "kind", "created")}

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        reason = None
        if error is not None:
            reason = "interrupted (Ctrl-C)" if isinstance(error, KeyboardInterrupt) else str(error)
        self._finish(reason)

    def _finish(self, reason: str | None) -> None:
        arrays = {}
        for name, (file, dtype, unit) in self._files.items():
            file.close()
            values = self.array(name)
            arrays[name] = {"dtype": dtype, "length": len(values), "unit": unit, **self._packed(name, values)}
        if reason is not None and not arrays:
            (self._folder / "record.json").unlink()
            self._folder.rmdir()
            return
        status = "complete" if reason is None else "incomplete"
        self._record.update(status=status, reason=reason, arrays=arrays)
        # Python's fast encoder knows no indent: a line for each key is what a person can still read.
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self._record.items())
        self._write_record("{\n" + ",\n".join(lines) + "\n}\n")
        for name, entry in arrays.items():
            if entry["file"] != f"{name}.bin":
                (self._folder / f"{name}.bin").unlink()  # only now: until then the record named it
        for path in self._folder.iterdir():
            path.chmod(0o444)
        self._store.index(self._record)

    def _packed(self, name: str, values: NDArray[Any]) -> dict[str, Any]:
        """Pack an array that is complete; one for which there is no room stays as it is."""
        raw, packed = self._folder / f"{name}.bin", self._folder / f"{name}.z"
        encoding, data = _pack(values)
        try:
            with packed.open("wb", buffering=0) as file:
                _write(file, data)
        except OSError:
            packed.unlink(missing_ok=True)
            return {"file": raw.name, "sha256": hashlib.sha256(raw.read_bytes()).hexdigest()}
        return {"file": packed.name, "encoding": encoding, "sha256": hashlib.sha256(data).hexdigest()}

    def _write_unfinished(self) -> None:
        """So that a run whose host dies can be told from one that never was, and what had arrived can be read."""
        arrays = {n: {"file": f"{n}.bin", "dtype": dtype, "unit": unit} for n, (_, dtype, unit) in self._files.items()}
        unfinished = {**self._record, "status": "incomplete", "reason": "the host ended", "arrays": arrays}
        self._write_record(json.dumps(unfinished))

    def _write_record(self, text: str) -> None:
        staging = self._folder / ".record.json"
        staging.write_text(text)
        os.replace(staging, self._folder / "record.json")


def is_id(text: Any) -> bool:
    """Whether a run may be called so."""
    return isinstance(text, str) and re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4,8}", text) is not None


class Run:
    """One stored run, read only."""

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder
        self.record = record

    @property
    def id(self) -> str:
        return str(self.record["id"])

    def array(self, name: str) -> NDArray[Any]:
        """
        An array of the run; empty when nothing of it arrived.

        Raises:
            StoreError: the file is gone or is not what was written.
        """
        import numpy as np

        entry = self.record["arrays"].get(name)
        if entry is None:
            return np.empty(0, np.int64)
        path = self.folder / entry["file"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        # A run whose host died has no digests.
        if "sha256" in entry and hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise StoreError(f"{path}: changed since it was written")
        dtype = _DTYPES[entry["dtype"]]
        if "encoding" in entry:
            try:
                return _unpack(entry["encoding"], data, dtype)
            except (ValueError, zlib.error) as error:
                raise StoreError(f"{path}: {error}") from None
        return np.frombuffer(data[: len(data) // 8 * 8], dtype)

    def restarts(self, name: str) -> list[NDArray[Any]]:
        """The arrays ``<name>.1``, ``<name>.2``, ...: one for each process restart."""
        return [self.array(each) for each in _numbered(self.record["arrays"], name)]


def _numbered(names: Iterable[str], name: str) -> list[str]:
    numbers = sorted(int(key.rpartition(".")[2]) for key in names if key.startswith(f"{name}."))
    return [f"{name}.{number}" for number in numbers]


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # what is written without a buffer may be written in part
        view = view[file.write(view) :]


def _pack(values: NDArray[Any]) -> tuple[str, bytes]:
    """
    Eight bytes a value become one to three.

    The first bytes of all values, then the second ones, and so on, through zlib: values that resemble each other share
    their high bytes.  Values that never fall, such as times, are stored as differences.  The encoding's name lists what
    was done, in order: ``delta``, ``planes``, ``zlib``.
    """
    import numpy as np

    encoding = "planes+zlib"
    if values.dtype.kind == "i" and len(values) > 1 and bool((values[1:] >= values[:-1]).all()):
        values = np.diff(values, prepend=values.dtype.type(0))
        encoding = "delta+planes+zlib"
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8).T
    return encoding, zlib.compress(planes.tobytes(), 6)


def _unpack(encoding: str, data: bytes, dtype: str) -> NDArray[Any]:
    """
    Undo `_pack`.

    Raises:
        ValueError, zlib.error: it was not packed so.
    """
    import numpy as np

    if encoding not in ("planes+zlib", "delta+planes+zlib"):
        raise ValueError(f"encoding {encoding!r} is not known here")
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(8, -1)
    values = np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
    return np.cumsum(values, dtype=dtype) if encoding.startswith("delta") else values


class Store:
    """
    The runs below one folder, which is made when the first run is.

    Args:
        indexed: put every run into the index as it ends; else that is left to whoever looks for it.
    """

    def __init__(self, root: Path, indexed: bool = True) -> None:
        self.root = root
        self._indexed = indexed

    def writer(self, kind: str, record: Mapping[str, Any]) -> RunWriter:
        """Begin a run of `kind` (measure, evaluate, verify); `record` is what is known before it starts."""
        return RunWriter(self, kind, record)

    def runs(self, count: int | None = None) -> list[dict[str, Any]]:
        """
        The index, newest first: id, created, kind, board, bundle, digest, status, verdict, headline, cell.

        Args:
            count: the latest so many; None is all.
        """
        if not self.root.exists():
            return []
        if not self.root.is_dir():
            raise StoreError(f"{self.root}: not a folder", "$DEPLOY_RESULTS names another folder for results")
        with closing(self._open()) as index:
            self._refresh(index)
            index.row_factory = sqlite3.Row
            limit = -1 if count is None else count
            rows = index.execute(f"SELECT {_SHOWN} FROM runs ORDER BY id DESC LIMIT ?", (limit,))
            return [dict(row) for row in rows]

    def cells(self) -> dict[str, str]:
        """Key of a plan's cell -> the latest complete run that measured it, see `deploy.farm.cells`."""
        if not self.root.is_dir():
            return {}
        with closing(self._open()) as index:
            self._refresh(index)
            rows = index.execute("SELECT cell, id FROM runs WHERE cell IS NOT NULL AND status = 'complete' ORDER BY id")
            return dict(rows.fetchall())

    def _refresh(self, index: sqlite3.Connection) -> None:
        """
        Let the index say what the folders say.

        A folder that it knows is not opened, as there may be ten thousand; but for runs that were not complete when
        they were looked at, whose record may have changed since.
        """
        known: dict[str, str | None] = dict(index.execute("SELECT id, stamp FROM runs"))
        with os.scandir(self.root) as entries:
            folders = {entry.name for entry in entries if entry.name in known or entry.is_dir()}
        changed = {run for run, stamp in known.items() if stamp is not None and stamp != self._stamp(run)}
        for run in folders - known.keys() | changed & folders:
            if run.startswith(".") or (stamp := self._stamp(run)) is None:
                continue
            try:
                self._insert(index, self._load(run).record, stamp)
            except StoreError:  # one that cannot be read must not hide the others
                index.execute("INSERT OR REPLACE INTO runs (id, status, stamp) VALUES (?, 'damaged', ?)", (run, stamp))
        for gone in known.keys() - folders:
            index.execute("DELETE FROM runs WHERE id = ?", (gone,))
        index.commit()

    def _stamp(self, run: str) -> str | None:
        """Something that changes when the run's record is written; None where there is no record."""
        try:
            found = (self.root / run / "record.json").stat()
        except OSError:
            return None
        return f"{found.st_mtime_ns} {found.st_ino} {found.st_size}"

    def get(self, run: str) -> Run:
        """
        A run by its id, by an unambiguous beginning of it, or ``last``.

        Raises:
            StoreError: there is none, or more than one.
        """
        if is_id(run) and (self.root / run / "record.json").is_file():
            return self._load(run)
        ids = [row["id"] for row in self.runs()]
        found = ids[:1] if run == "last" else [i for i in ids if i.startswith(run)]
        if len(found) == 1:
            return self._load(found[0])
        if found:
            raise StoreError(f"run {run!r} can be {', '.join(found[:5])}")
        hint = "`deploy runs list` shows what is stored" if ids else "`deploy measure` stores one"
        raise StoreError(f"no run {run!r} in {self.root}{nearest(run, ids[:20]) if run != 'last' else ''}", hint)

    def __iter__(self) -> Iterator[Run]:
        return (self._load(row["id"]) for row in self.runs())

    def pack(self, run: str) -> bytes:
        """
        A finished run as one piece, for the store of another machine.

        Raises:
            StoreError: there is none, or a file of it is gone.
        """
        folder = self._load(run).folder
        import zipfile

        out = io.BytesIO()
        try:
            with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:  # arrays are packed already
                for path in sorted(folder.iterdir()):
                    archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
        except OSError as error:
            raise StoreError(f"{folder}: {error.strerror}") from None
        return out.getvalue()

    def adopt(self, packed: Iterable[bytes]) -> list[str]:
        """
        Take runs that another store packed; one that is here already stays as it is.

        Each appears whole or not at all.

        Returns:
            Their ids.

        Raises:
            StoreError: one is no run, or the disk is full; those before it have been taken.
        """
        records: list[dict[str, Any]] = []
        try:
            found = [self._adopt(data, records) for data in packed]
        finally:
            self.index(*records)
        return found

    def _adopt(self, data: bytes, new: list[dict[str, Any]]) -> str:
        """One run; its record is added to `new` unless it was here already."""
        import zipfile  # not at the top: a list of runs needs none of it

        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
            record = json.loads(files["record.json"])
            run = record["id"]
        except (zipfile.BadZipFile, zlib.error, LookupError, TypeError, ValueError, NotImplementedError) as error:
            raise StoreError(f"what came is not a packed run: {error}") from None
        if not is_id(run) or not all(re.fullmatch(r"[A-Za-z0-9_.]+", name) for name in files):
            raise StoreError(f"what came is not a packed run: it is called {str(run)[:40]!r}")
        folder, staging = self.root / run, self.root / f".{run}.{os.getpid()}.{threading.get_ident()}"
        if (folder / "record.json").exists():
            return str(run)
        try:
            staging.mkdir(parents=True)
            for name, content in files.items():
                (staging / name).write_bytes(content)
                (staging / name).chmod(0o444)
            os.rename(staging, folder)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            if not (folder / "record.json").exists():  # else another process has just brought it
                raise StoreError(
                    f"{folder}: {error.strerror}", "$DEPLOY_RESULTS names another folder for results"
                ) from None
        new.append(record)
        return str(run)

    def drop(self, run: str) -> None:
        """Remove a run that another store has; nothing happens if it is gone."""
        if is_id(run):
            shutil.rmtree(self.root / run, ignore_errors=True)

    def index(self, *records: Mapping[str, Any]) -> None:
        """Put finished runs into the index; without that they are safe, and are indexed when they are looked for."""
        if not self._indexed or not records:
            return
        try:
            with _indexing, closing(self._open()) as index:
                for record in records:
                    self._insert(index, record, self._stamp(record["id"]))
                index.commit()
        except (sqlite3.Error, StoreError):
            pass

    def _load(self, run: str) -> Run:
        path = self.root / run / "record.json"
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: {error}") from None
        if not isinstance(record, dict) or not _RECORD <= set(record):
            raise StoreError(f"{path}: not the record of a run")
        if record["schema"] not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise StoreError(f"{path}: schema {record.get('schema')!r}; this version reads {known}")
        return Run(path.parent, record)

    def _open(self) -> sqlite3.Connection:
        path = self.root / "index.sqlite"
        try:
            return self._connect(path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"{path}: {error}") from None
        path.unlink()  # damaged; it only says again what the folders say
        return self._connect(path)

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        index = sqlite3.connect(path, timeout=10)
        try:
            index.execute("SELECT COUNT(*) FROM sqlite_master")
            (version,) = index.execute("PRAGMA user_version").fetchone()
            if version != INDEX:  # it is made again from the folders
                index.execute("BEGIN IMMEDIATE")
                if index.execute("PRAGMA user_version").fetchone() != (INDEX,):  # else another process was faster
                    index.execute("DROP TABLE IF EXISTS runs")
                    index.execute(
                        "CREATE TABLE runs (id TEXT PRIMARY KEY, created TEXT, kind TEXT, board TEXT, bundle TEXT, "
                        "digest TEXT, status TEXT, verdict TEXT, headline TEXT, cell TEXT, stamp TEXT)"
                    )
                    index.execute(f"PRAGMA user_version = {INDEX}")
                index.commit()
            index.execute("SELECT cell FROM runs LIMIT 1")
        except sqlite3.Error:
            index.close()
            raise
        return index

    @staticmethod
    def _insert(index: sqlite3.Connection, record: Mapping[str, Any], stamp: str | None) -> None:
        verdict = record.get("verdict")
        index.execute(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record["id"],
                record["created"],
                record["kind"],
                record["board"]["name"],
                record["bundle"]["name"],
                record["bundle"]["digest"],
                record["status"],
                ", ".join(verdict) if isinstance(verdict, list) else verdict,
                record.get("headline"),
                (record.get("cell") or {}).get("key"),
                None if record["status"] == "complete" else stamp,
            ),
        )
