"""
The board's disk: a content-addressed store, releases, and the link that says which release is current.

Everything lies below one root, modes 0700 and 0600::

    store/<sha256>              whole and verified; never changed
    store/<sha256>.part         on its way; its size says where to go on
    releases/<bundle>/<n>/      manifest.json of the n-th release of that bundle
    current                     -> releases/<bundle>/<n>, switched by one rename
    runtime/<sha256>/           numpy and the LiteRT runtime, unpacked, where the board has none of its own
    runtime/current             -> <sha256>
    agent/<sha256>/             this program

Files of a release stay in the store under their digests; a path from the outside is never used as a path here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devices.protocol import errors, manifest
from devices.protocol.errors import AgentError

_CHUNK = 1 << 20
MAX_BLOB = 4 << 30
# What must stay free: a board whose disk we fill to the last byte cannot even log the fact.
RESERVE_BYTES = 1 << 20
MAX_UNPACKED = 2 << 30


class Store:
    """The board's part of the disk.  Opening makes the folders; nothing outside `root` is ever touched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "store"
        self.releases = root / "releases"
        self.runtimes = root / "runtime"
        with _disk_errors(root):
            for folder in (self.root, self.blobs, self.releases, self.runtimes):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # Blobs

    def path(self, sha256: str) -> Path:
        """
        Where the blob lies.

        Raises:
            AgentError: bad-request, not a digest; not-found, not here.
        """
        path = self._blob(sha256)
        if not path.is_file():
            raise AgentError(errors.NOT_FOUND, f"the store has no {sha256[:12]}", sha256=sha256)
        return path

    def progress(self, sha256: str) -> int:
        """Bytes that are here: -1 when the blob is whole, else the size of its partial file (0: nothing)."""
        path = self._blob(sha256)
        if path.is_file():
            return -1
        part = path.with_suffix(".part")
        return part.stat().st_size if part.is_file() else 0

    def put(self, sha256: str, total: int, offset: int, data: bytes) -> bool:
        """
        Append `data` at `offset` of a blob of `total` bytes; True when that made it whole.

        Raises:
            AgentError: bad-request, the offset is not where the partial file ends, or the sizes make no sense;
                disk-full, with the bytes needed and free; bad-digest, whole but not what was announced (the
                partial file is dropped, as no byte of it can be trusted).
        """
        have = self.progress(sha256)
        if have < 0:
            return True
        if not 0 <= total <= MAX_BLOB:
            raise AgentError(errors.BAD_REQUEST, f"a blob of {total} bytes; the limit is {MAX_BLOB}")
        if offset != have:
            raise AgentError(errors.BAD_REQUEST, f"{sha256[:12]} goes on at byte {have}, not at {offset}", have=have)
        if offset + len(data) > total:
            raise AgentError(errors.BAD_REQUEST, f"{offset + len(data)} bytes of a blob of {total}")
        self._require_space(total - have)
        part = self._blob(sha256).with_suffix(".part")
        with _disk_errors(self.root):
            # O_NOFOLLOW: whoever else may write here cannot lead us out by a link.
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            with os.fdopen(fd, "ab") as out:
                out.write(data)
        if offset + len(data) < total:
            return False
        if _sha256(part) != sha256:
            part.unlink()
            raise AgentError(errors.BAD_DIGEST, f"{sha256[:12]} arrived damaged and was dropped", sha256=sha256)
        with _disk_errors(self.root):
            _sync(part)
            os.replace(part, self._blob(sha256))
        return True

    def _blob(self, sha256: str) -> Path:
        if not manifest.is_digest(sha256):
            raise AgentError(errors.BAD_REQUEST, f"not a SHA-256: {str(sha256)[:80]!r}")
        return self.blobs / sha256

    def _require_space(self, size: int) -> None:
        stat = os.statvfs(self.root)
        free = stat.f_bavail * stat.f_frsize
        if size + RESERVE_BYTES > free:
            raise _disk_full(self.root, free, size)

    # Releases

    def find(self, bundle: str) -> tuple[str, manifest.Manifest] | None:
        """The newest release (as ``name/n``) whose manifest has the digest `bundle`, with that manifest."""
        for release in sorted(self.releases.glob("*/*"), key=_number, reverse=True):
            if not _NUMBER.fullmatch(release.name):
                continue
            data = _read(release / "manifest.json")
            if data is not None and manifest.digest(data) == bundle:
                return f"{release.parent.name}/{release.name}", manifest.parse(data)
        return None

    def current(self) -> tuple[str, str] | None:
        """The current release and the digest of its bundle; None before the first push."""
        try:
            release = os.readlink(self.root / "current")
        except OSError:
            return None
        data = _read(self.root / release / "manifest.json")
        return (release.split("/", 1)[1], manifest.digest(data)) if data is not None else None

    def stage(self, data: bytes) -> str:
        """
        Make a release of the manifest `data`, whose files are all in the store.  It is not current yet.

        Returns:
            ``name/n``; the existing one if the same bundle was released before.

        Raises:
            AgentError: bad-request, the manifest is none; not-found, a file is not in the store.
        """
        parsed = parse_manifest(data)
        for entry in parsed.files.values():
            self.path(entry.sha256)
        found = self.find(manifest.digest(data))
        if found:
            return found[0]
        with _disk_errors(self.root):
            folder = self.releases / parsed.name
            folder.mkdir(mode=0o700, exist_ok=True)
            number = 1 + max((int(p.name) for p in folder.iterdir() if _NUMBER.fullmatch(p.name)), default=0)
            staging = folder / f".{number}.{os.getpid()}"
            staging.mkdir(mode=0o700)
            try:
                (staging / "manifest.json").write_bytes(data)
                _sync(staging / "manifest.json")
                os.rename(staging, folder / str(number))
            except OSError:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        return f"{parsed.name}/{number}"

    def activate(self, release: str) -> None:
        """
        Make `release` (``name/n``) the current one: a single rename, so there is always a whole current release.

        Raises:
            AgentError: bad-request or not-found.
        """
        folder = self._release(release)
        with _disk_errors(self.root):
            link = self.root / f".current.{os.getpid()}"
            link.unlink(missing_ok=True)
            os.symlink(os.path.relpath(folder, self.root), link)
            os.replace(link, self.root / "current")

    def drop(self, release: str) -> None:
        """Remove a release that did not prove itself, and the blobs that only it used.  Not the current one."""
        folder = self._release(release)
        current = self.current()
        if current and current[0] == release:
            raise AgentError(errors.BAD_REQUEST, f"{release} is the current release")
        data = _read(folder / "manifest.json")
        shutil.rmtree(folder)
        if data is None:
            return
        used = set()
        for other in self.releases.glob("*/*/manifest.json"):
            kept = _read(other)
            if kept is not None:
                used |= {entry.sha256 for entry in manifest.parse(kept).files.values()}
        for entry in manifest.parse(data).files.values():
            if entry.sha256 not in used:
                self._blob(entry.sha256).unlink(missing_ok=True)

    def _release(self, release: Any) -> Path:
        name, _, number = str(release).partition("/")
        if not manifest.is_name(name) or not _NUMBER.fullmatch(number):
            raise AgentError(errors.BAD_REQUEST, f"not a release: {str(release)[:80]!r}")
        folder = self.releases / name / number
        if not (folder / "manifest.json").is_file():
            raise AgentError(errors.NOT_FOUND, f"no release {release}")
        return folder

    # The runtime

    def runtime(self) -> Path | None:
        """The folder to put on the runner's path, where a runtime was installed."""
        link = self.runtimes / "current"
        return link.resolve() if link.is_dir() else None

    def install_runtime(self, sha256: str) -> None:
        """
        Unpack the zip `sha256` from the store and use it from now on.

        Raises:
            AgentError: not-found; bad-request, a member that would leave the folder; disk-full.
        """
        archive = self.path(sha256)
        target = self.runtimes / sha256
        if not target.is_dir():
            with _archive_errors(sha256), zipfile.ZipFile(archive) as source:
                members = source.infolist()
                for member in members:
                    parts = Path(member.filename).parts
                    if member.filename.startswith("/") or ".." in parts or (member.external_attr >> 28) == 0xA:
                        raise AgentError(errors.BAD_REQUEST, f"the archive holds {member.filename!r}")
                size = sum(member.file_size for member in members)
                if size > MAX_UNPACKED:
                    raise AgentError(errors.BAD_REQUEST, f"{size} bytes unpacked; the limit is {MAX_UNPACKED}")
                self._require_space(size)
                staging = self.runtimes / f".{sha256}.{os.getpid()}"
                with _disk_errors(self.root):
                    try:
                        source.extractall(staging)
                        os.rename(staging, target)
                    finally:
                        shutil.rmtree(staging, ignore_errors=True)
        with _disk_errors(self.root):
            link = self.runtimes / f".current.{os.getpid()}"
            link.unlink(missing_ok=True)
            os.symlink(sha256, link)
            os.replace(link, self.runtimes / "current")
        archive.unlink()  # unpacked, it would lie here twice

    def clean(self) -> None:
        """Remove everything below the root, and the root."""
        shutil.rmtree(self.root)


def parse_manifest(data: bytes) -> manifest.Manifest:
    """
    Parse a manifest that came from the host.

    Raises:
        AgentError: bad-request, with the manifest error's text.
    """
    try:
        return manifest.parse(data)
    except manifest.ManifestError as error:
        raise AgentError(errors.BAD_REQUEST, f"manifest: {error}") from None


_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def _number(release: Path) -> int:
    return int(release.name) if _NUMBER.fullmatch(release.name) else 0


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as source:
        for chunk in iter(lambda: source.read(_CHUNK), b""):
            sha.update(chunk)
    return sha.hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)  # rename may reach the disk before the data does; a power cut must not leave an empty blob
    finally:
        os.close(fd)


def _disk_full(root: Path, free: int, needed: int | None = None) -> AgentError:
    needs = f"; {needed} more bytes are needed" if needed is not None else ""
    return AgentError(
        errors.DISK_FULL, f"the disk is full: {free} bytes free at {root}{needs}", free=free, root=str(root)
    )


@contextlib.contextmanager
def _archive_errors(sha256: str) -> Iterator[None]:
    """Turns what zipfile raises for a damaged, encrypted or foreign archive into bad-request."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise AgentError(errors.BAD_REQUEST, f"{sha256[:12]} is no archive: {error}") from error


class _disk_errors:
    """Turns an OSError of the body into the AgentError that says what it means."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            stat = os.statvfs(self.root)
            raise _disk_full(self.root, stat.f_bavail * stat.f_frsize) from error
        raise AgentError(errors.IO_ERROR, f"{error.strerror}: {error.filename or self.root}") from error
