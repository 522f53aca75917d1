"""
The board's disk: a content-addressed store, releases, and the link that says which release is current.

Everything lies below one root, modes 0700 and 0600::

    store/<sha256>              whole and verified; never changed
    store/<sha256>.part         on its way; its size says where to go on
    store/<sha256>.<pid>.patched    being made of another one and a delta
    releases/<bundle>/<n>/      manifest.json of the n-th release of that bundle; `unproven` until it was current;
                                accelerated.json where the board has the accelerator, see `protocol.accelerated`
    current                     -> releases/<bundle>/<n>, switched by one rename
    runtime/<sha256>/           numpy and the LiteRT runtime, unpacked, where the board has none of its own
    runtime/current             -> <sha256>
    kernels/<sha256>.so         our kernels, as a delegate of that runtime
    history                     which releases were current before, see `history`
    agent/<sha256>/             this program

Files of a release stay in the store under their digests; a path from the outside is never used as a path here.
A link in place of one of these files or folders is not followed: only `current` is one, and it is read, not opened.

Several agents may work below one root.  Partial files are locked each by itself, releases by a lock on their folder;
whoever brings files holds a shared lock on the store's, which pruning needs alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devices.history import Activation, History
from devices.protocol import accelerated, errors, manifest, signature
from devices.protocol.accelerated import Entry
from devices.protocol.errors import AgentError

_CHUNK = 1 << 20
MAX_BLOB = 4 << 30
# What must stay free: a board whose disk we fill to the last byte cannot even log the fact.
RESERVE_BYTES = 1 << 20
MAX_UNPACKED = 2 << 30
_PATCHED = ".patched"
UNPROVEN = "unproven"  # in the folder of a release that was never current
# All that ever lies below the root.
OURS = (
    *("store", "releases", "current", "runtime", "kernels", "agent", "spool"),
    *("turn", "history", "key", "lease", "lease.lock"),
)


class Store:
    """The board's part of the disk.  Opening makes the folders; nothing outside `root` is ever touched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "store"
        self.releases = root / "releases"
        self.runtimes = root / "runtime"
        self._kernels = root / "kernels"
        self._history = History(root / "history")
        self._bringing: int | None = None
        with _disk_errors(root):
            for folder in (self.root, self.blobs, self.releases, self.runtimes, self._kernels):
                if folder != root and folder.is_symlink():
                    raise AgentError(errors.IO_ERROR, f"{folder} is a link, and may lead anywhere; remove it")
                if folder != self._kernels:
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # Blobs

    def path(self, sha256: str) -> Path:
        """
        Where the blob lies.

        Raises:
            AgentError: bad-request, not a digest; not-found, not here.
        """
        path = self._blob(sha256)
        if not _is_file(path):
            raise AgentError(errors.NOT_FOUND, f"the store has no {sha256[:12]}", sha256=sha256)
        return path

    def checked(self, sha256: str) -> Path:
        """
        Where the blob lies, after reading it once more: flash wears out, and somebody may have been here.

        Raises:
            AgentError: as `path`; bad-digest, the blob is not what its name says and was dropped.
        """
        path = self.path(sha256)
        if _sha256(path) != sha256:
            path.unlink()
            raise AgentError(errors.BAD_DIGEST, f"{sha256[:12]} was damaged on the board's disk", sha256=sha256)
        return path

    def progress(self, sha256: str) -> int:
        """Bytes that are here: -1 when the blob is whole, else the size of its partial file (0: nothing)."""
        path = self._blob(sha256)
        if _is_file(path):
            return -1
        part = path.with_suffix(".part")
        return part.stat().st_size if _is_file(part) else 0

    def put(self, sha256: str, total: int, offset: int, data: bytes) -> bool:
        """
        Append `data` at `offset` of a blob of `total` bytes; True when that made it whole.

        An offset of 0 begins anew, whatever was here; no data at the end of a whole partial file finishes it.

        Raises:
            AgentError: bad-request, the offset is not where the partial file ends, or the sizes make no sense;
                disk-full, with the bytes needed and free; bad-digest, whole but not what was announced (the
                partial file is dropped, as no byte of it can be trusted).
        """
        if self.progress(sha256) < 0:
            return True
        if type(total) is not int or type(offset) is not int:
            raise AgentError(errors.BAD_REQUEST, "bytes and offset are whole numbers")
        if not 0 <= total <= MAX_BLOB:
            raise AgentError(errors.BAD_REQUEST, f"a blob of {total} bytes; the limit is {MAX_BLOB}")
        if offset + len(data) > total:
            raise AgentError(errors.BAD_REQUEST, f"{offset + len(data)} bytes of a blob of {total}")
        part = self._blob(sha256).with_suffix(".part")
        with _disk_errors(self.root), self._open_part(part) as fd:
            if self.progress(sha256) < 0:  # another conversation was faster
                part.unlink()
                return True
            have = os.fstat(fd).st_size
            if offset not in (0, have):
                reason = f"{sha256[:12]} goes on at byte {have}, not at {offset}"
                raise AgentError(errors.BAD_REQUEST, reason, have=have)
            self._require_space(total - offset)
            if offset != have:
                os.ftruncate(fd, 0)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if offset + len(data) < total:
                return False
            if _sha256(part) != sha256:
                part.unlink()
                raise AgentError(errors.BAD_DIGEST, f"{sha256[:12]} arrived damaged and was dropped", sha256=sha256)
            os.fsync(fd)  # rename may reach the disk before the data does; a power cut must not leave an empty blob
            os.replace(part, self._blob(sha256))
        return True

    def patching(self, sha256: str, size: int) -> Path:
        """
        Where to make the blob `sha256`, of `size` bytes, before it is taken by `adopt`.

        Raises:
            AgentError: bad-request; disk-full.
        """
        path = self._blob(sha256).with_suffix(f".{os.getpid()}{_PATCHED}")
        self._require_space(size)
        return path

    def adopt(self, made: Path, sha256: str) -> None:
        """
        Take a file below `store/` as the blob `sha256`.

        Raises:
            AgentError: bad-digest, it is not that, and was dropped.
        """
        with _disk_errors(self.root):
            if _sha256(made) != sha256:
                made.unlink()
                raise AgentError(errors.BAD_DIGEST, f"{sha256[:12]} came out damaged and was dropped", sha256=sha256)
            os.replace(made, self._blob(sha256))
            self._blob(sha256).with_suffix(".part").unlink(missing_ok=True)

    def full(self, size: int) -> AgentError:
        """The error for a disk that had no room for `size` bytes."""
        stat = os.statvfs(self.root)
        return _disk_full(self.root, stat.f_bavail * stat.f_frsize, size)

    @contextlib.contextmanager
    def _open_part(self, part: Path) -> Iterator[int]:
        """A partial file, open for appending; other conversations that bring the same blob wait for each other."""
        while True:
            # O_NOFOLLOW: whoever else may write here cannot lead us out by a link.
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if not _is_same(fd, part):
                    continue  # renamed or dropped by whoever had it
                yield fd
                return
            finally:
                if os.fstat(fd).st_size == 0 and _is_same(fd, part):
                    part.unlink()
                os.close(fd)

    def bringing(self) -> None:
        """This conversation brings files: until `settled`, none that is here is pruned."""
        if self._bringing is None:
            self._bringing = os.open(self.blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(self._bringing, fcntl.LOCK_SH)

    def settled(self) -> None:
        """What this conversation brought belongs to a release, or is not needed."""
        if self._bringing is not None:
            os.close(self._bringing)
            self._bringing = None

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
        """
        The newest release (as ``name/n``) whose manifest has the digest `bundle`, with that manifest.

        None also when one of its files is gone or has another size; what has another size is dropped, so that a push
        brings it again.
        """
        for release in sorted(self._all(), key=_number, reverse=True):
            data = _read(release / "manifest.json")
            if data is not None and manifest.digest(data) == bundle:
                parsed = manifest.parse(data)
                missing = [entry for entry in parsed.files.values() if not self._has(entry)]
                return None if missing else (f"{release.parent.name}/{release.name}", parsed)
        return None

    def _has(self, entry: manifest.FileEntry) -> bool:
        blob = self._blob(entry.sha256)
        if _is_file(blob) and blob.stat().st_size != entry.bytes:
            blob.unlink()
        return _is_file(blob)

    def current(self) -> tuple[str, str] | None:
        """The current release and the digest of its bundle; None before the first push."""
        try:
            link = os.readlink(self.root / "current")
            folder = self._release(link[len("releases/") :]) if link.startswith("releases/") else None
        except (OSError, AgentError):
            return None
        data = _read(folder / "manifest.json") if folder else None
        return (link[len("releases/") :], manifest.digest(data)) if data is not None else None

    def previous(self) -> str | None:
        """The release that was current before the current one, of those that are still here."""
        current = self.current()
        for entry in reversed(self._history.entries()):
            if not current or entry.release != current[0]:
                try:
                    data = _read(self._release(entry.release) / "manifest.json")
                except AgentError:
                    continue
                if data is not None and manifest.digest(data) == entry.bundle:
                    return entry.release
        return None

    def python_of_current(self) -> str | None:
        """The Python that the current release proved itself with; None where that is not known."""
        current, entries = self.current(), self._history.entries()
        return entries[-1].python if current and entries and entries[-1].release == current[0] else None

    def listing(self) -> list[dict[str, Any]]:
        """Every release, by bundle and number; one whose manifest is damaged has no bundle."""
        current, previous = self.current(), self.previous()
        found: list[dict[str, Any]] = []
        for folder in sorted(self._all(), key=lambda path: (path.parent.name, _number(path))):
            name = f"{folder.parent.name}/{folder.name}"
            data = _read(folder / "manifest.json") or b""
            try:
                parsed: manifest.Manifest | None = manifest.parse(data)
            except manifest.ManifestError:
                parsed = None
            found.append(
                {
                    "release": name,
                    "bundle": manifest.digest(data) if parsed else None,
                    "bytes": sum(entry.bytes for entry in parsed.files.values()) if parsed else 0,
                    "golden": parsed.golden if parsed else None,
                    "when_s": folder.stat().st_mtime,
                    "current": bool(current and current[0] == name),
                    "previous": name == previous,
                    "proven": not (folder / UNPROVEN).exists(),
                    "signed": _is_file(folder / signature.FILE),
                }
            )
        return found

    def manifest_of(self, release: str) -> bytes:
        """
        The content of a release's manifest.

        Raises:
            AgentError: bad-request or not-found.
        """
        return _read(self._release(release) / "manifest.json") or b""

    def signature_of(self, release: str) -> bytes | None:
        """The content of a release's signature.json; None if it has none."""
        return _read(self._release(release) / signature.FILE)

    def accelerated_of(self, release: str) -> Entry | None:
        """
        What a release brings for the accelerator; None where nobody thought of one.

        Raises:
            AgentError: bad-request or not-found.
        """
        return self._compiled(self._release(release))

    def stage(self, data: bytes, signed: bytes | None = None, compiled: Entry | None = None) -> str:
        """
        Make a release of the manifest `data`, whose files are all in the store.  It is not current yet.

        Args:
            signed: its signature.json; kept, whether anybody asks for it or not.
            compiled: what it brings for the accelerator.

        Returns:
            ``name/n``; the existing one if the same bundle was released before.

        Raises:
            AgentError: bad-request, the manifest is none; not-found, a file is not in the store.
        """
        parsed = parse_manifest(data)
        for entry in parsed.files.values():
            self.path(entry.sha256)
        beside = {} if signed is None else {signature.FILE: signed}
        if compiled is not None:
            beside[accelerated.FILE] = compiled.encode()
            for digest in compiled.files():
                self.path(digest)
        with _disk_errors(self.root), self._locked():
            found = self.find(manifest.digest(data))
            if found:
                self._keep(self._release(found[0]), beside)
                return found[0]
            folder = self.releases / parsed.name
            if folder.is_symlink():
                raise AgentError(errors.IO_ERROR, f"{folder} is a link, and may lead anywhere; remove it")
            folder.mkdir(mode=0o700, exist_ok=True)
            number = 1 + max((int(p.name) for p in folder.iterdir() if _NUMBER.fullmatch(p.name)), default=0)
            staging = folder / f".{number}.{os.getpid()}"
            shutil.rmtree(staging, ignore_errors=True)  # of a process that had this number
            staging.mkdir(mode=0o700)
            try:
                (staging / "manifest.json").write_bytes(data)
                (staging / UNPROVEN).touch()
                self._keep(staging, beside)
                _sync(staging / "manifest.json")
                os.rename(staging, folder / str(number))
            except OSError:
                shutil.rmtree(staging, ignore_errors=True)
                raise
        return f"{parsed.name}/{number}"

    @staticmethod
    def _keep(folder: Path, files: dict[str, bytes]) -> None:
        """What belongs to a release and is not part of its bundle."""
        for name, data in files.items():
            if _read(folder / name) != data:
                staging = folder / f".{name}.{os.getpid()}"
                staging.write_bytes(data)
                _sync(staging)
                os.replace(staging, folder / name)

    def activate(self, release: str, python: str = "") -> None:
        """
        Make `release` (``name/n``) the current one: a single rename, so there is always a whole current release.

        Args:
            python: that it proved itself with.

        Raises:
            AgentError: bad-request or not-found.
        """
        folder = self._release(release)
        with _disk_errors(self.root), self._locked():
            before, last = self.current(), self._history.entries()[-1:]
            link = self.root / f".current.{os.getpid()}"
            link.unlink(missing_ok=True)
            os.symlink(os.path.relpath(folder, self.root), link)
            os.replace(link, self.root / "current")
            (folder / UNPROVEN).unlink(missing_ok=True)
            now = self.current()
            if now and not (last and last[0] == Activation(*now, python)):
                self._history.add(Activation(*now, python), Activation(*before, "") if before else None)

    def prune(self, bundle: str, keep: int) -> list[str]:
        """
        Remove the oldest releases of the name `bundle`, so that `keep` are left, and whatever no release needs.

        Neither the current release nor the one before it is removed.  Nothing is while another conversation brings
        files: its release is not there yet to say which ones it needs.  What a killed push left behind goes as well,
        but for partial files, with which the next one goes on.

        Returns:
            The releases that were removed.
        """
        self.settled()
        alone = os.open(self.blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with _disk_errors(self.root), self._locked():
                return self._prune(bundle, keep)
        except BlockingIOError:
            return []
        finally:
            os.close(alone)

    def _prune(self, bundle: str, keep: int) -> list[str]:
        current = self.current()
        kept = {current[0] if current else None, self.previous()}
        rank = {entry.release: n for n, entry in enumerate(self._history.entries(), 1)}
        mine = []
        removed = []
        for folder in list(self._all()):
            name = f"{folder.parent.name}/{folder.name}"
            if (folder / UNPROVEN).exists() and name not in kept:
                shutil.rmtree(folder)  # its push was killed
            elif folder.parent.name == bundle:
                mine.append((name in kept, rank.get(name, 0), _number(folder), name, folder))
        for in_use, _, _, name, folder in sorted(mine)[: max(0, len(mine) - keep)]:
            if not in_use:
                shutil.rmtree(folder)
                removed.append(name)
        for folder in filter(_is_folder, self.releases.iterdir()):
            for leftover in folder.glob(".*"):
                shutil.rmtree(leftover, ignore_errors=True)
        used = self._used()
        for blob in self.blobs.iterdir():
            if blob.suffix == _PATCHED or (manifest.is_digest(blob.name) and blob.name not in used):
                blob.unlink()
        return removed

    def _used(self) -> set[str]:
        """Digests of the files that a release needs."""
        used = set()
        for folder in self._all():
            try:
                parsed = manifest.parse(_read(folder / "manifest.json") or b"")
            except manifest.ManifestError:
                continue  # a damaged release cannot run, and must not keep others from being dropped
            used |= self._named(folder, parsed)
        return used

    def _named(self, folder: Path, parsed: manifest.Manifest) -> set[str]:
        """Digests of the files that the release in `folder` needs."""
        compiled = self._compiled(folder)
        beside = compiled.files() if compiled else set()
        return {entry.sha256 for entry in parsed.files.values()} | beside

    @staticmethod
    def _compiled(folder: Path) -> Entry | None:
        data = _read(folder / accelerated.FILE)
        try:
            return None if data is None else accelerated.entry(data)
        except accelerated.FormatError as error:
            return Entry(why=str(error))  # a push brings it anew

    def _all(self) -> Iterator[Path]:
        """The folder of every release; links are passed over."""
        for bundle in self.releases.iterdir():
            if manifest.is_name(bundle.name) and _is_folder(bundle):
                for release in bundle.iterdir():
                    if _NUMBER.fullmatch(release.name) and _is_folder(release):
                        yield release

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """No other agent stages, switches or prunes meanwhile."""
        fd = os.open(self.releases, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def drop(self, release: str) -> None:
        """
        Remove a release that did not prove itself, and the blobs that only it used.

        Raises:
            AgentError: bad-request, it was current once and so proved itself; not-found.
        """
        folder = self._release(release)
        with _disk_errors(self.root), self._locked():
            if not (folder / UNPROVEN).exists():
                raise AgentError(errors.BAD_REQUEST, f"{release} proved itself before")
            data = _read(folder / "manifest.json")
            mine = set() if data is None else self._named(folder, manifest.parse(data))
            shutil.rmtree(folder)
            for digest in mine - self._used():
                self._blob(digest).unlink(missing_ok=True)

    def _release(self, release: Any) -> Path:
        name, _, number = str(release).partition("/")
        if not manifest.is_name(name) or not _NUMBER.fullmatch(number):
            raise AgentError(errors.BAD_REQUEST, f"not a release: {str(release)[:80]!r}")
        folder = self.releases / name / number
        if not (_is_folder(folder.parent) and _is_folder(folder) and _is_file(folder / "manifest.json")):
            raise AgentError(errors.NOT_FOUND, f"no release {release}")
        return folder

    # The runtime

    def runtime(self) -> Path | None:
        """The folder to put on the runner's path, where a runtime was installed."""
        try:
            name = os.readlink(self.runtimes / "current")
        except OSError:
            return None
        folder = self.runtimes / name
        return folder if manifest.is_digest(name) and _is_folder(folder) else None

    def install_runtime(self, sha256: str) -> None:
        """
        Unpack the zip `sha256` from the store and use it from now on.

        Raises:
            AgentError: not-found; bad-request, a member that would leave the folder; disk-full.
        """
        archive = self.path(sha256)
        target = self.runtimes / sha256
        if target.is_symlink():
            target.unlink()
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
                        os.sync()  # as for a blob; for hundreds of files at once
                        if not target.is_dir():  # else another conversation was faster
                            os.rename(staging, target)
                    finally:
                        shutil.rmtree(staging, ignore_errors=True)
        with _disk_errors(self.root):
            link = self.runtimes / f".current.{os.getpid()}"
            link.unlink(missing_ok=True)
            os.symlink(sha256, link)
            os.replace(link, self.runtimes / "current")
        archive.unlink(missing_ok=True)  # unpacked, it would lie here twice

    # The kernels

    def kernels(self) -> Path | None:
        """The library that was installed."""
        found = [path for path in self._kernels.glob("*.so") if manifest.is_digest(path.stem) and _is_file(path)]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)

    def install_kernels(self, sha256: str) -> None:
        """
        Use the library `sha256` from the store from now on; one that is in use stays mapped.

        Raises:
            AgentError: not-found; bad-digest.
        """
        target = self._kernels / f"{sha256}.so"
        with _disk_errors(self.root):
            self._kernels.mkdir(mode=0o700, exist_ok=True)
            os.replace(self.checked(sha256), target)
            os.utime(target)
            for older in self._kernels.glob("*.so"):
                if older != target:
                    older.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove all that deploy put here; the root too, if nothing else lies in it."""
        for name in OURS:
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for staging in self.root.glob(".*.*"):
            if staging.name.split(".")[1] in ("current", "history", "key", "lease"):
                staging.unlink()
        try:
            self.root.rmdir()
        except OSError:
            pass  # a mount point, or somebody else's files: not ours to remove


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
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as source:
            return source.read()
    except OSError:
        return None


def _is_file(path: Path) -> bool:
    """A file itself, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_folder(path: Path) -> bool:
    """A folder itself, not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _is_same(fd: int, path: Path) -> bool:
    """Whether the open file is the one that the path names now."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError:
        return False


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


def refusal(error: OSError, root: Path) -> AgentError:
    """What an error of the operating system means to the host, where nothing but `root` is written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        stat = os.statvfs(root)
        return _disk_full(root, stat.f_bavail * stat.f_frsize)
    return AgentError(errors.IO_ERROR, f"{error.strerror or error}: {error.filename or root}")


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
        if isinstance(error, OSError):
            raise refusal(error, self.root) from error
