"""
Bring a file of a bundle into a board's store: whole, or as a delta against a model that is there.

Models that were pushed are remembered on the host (``models/`` in the cache), as a delta needs both ends.  Whatever
goes wrong with a delta, the file itself still goes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from deploy import delta
from deploy.bundle import Bundle
from deploy.errors import BoardError, StaleToken
from deploy.paths import cache_dir, whole
from deploy.session import Progress, Session
from devices.protocol import manifest

MIN_BYTES = 4096  # below, a delta saves nothing that anybody notices
WORTH = 0.9  # of what the whole file takes
CANDIDATES = 16  # a kilobyte of digests to ask for, which takes a serial line a tenth of a second
CACHE_BYTES = 512 << 20
PATIENCE_S = 2.0  # may be spent on coding even where the line is fast
# Measured: of a model, 76 to 168 kB/s are encoded here, and 1.4 to 11.6 bits a byte decoded there.  The more unlike.
_ENCODING_S_PER_BYTE = 1 / 80e3
_BITS_PER_BYTE = 12
_UNKNOWN_BYTES_PER_S = 100e3
_LIMIT_S = 600.0


@dataclass(frozen=True)
class Brought:
    """
    Attributes:
        sent_bytes: of the file or its delta; 0 when it was there.
        base: SHA-256 of the model that the delta was against; None when the file went whole.
    """

    sent_bytes: int
    base: str | None = None


class Line:
    """How fast the line has been in this push: round trips are told apart from bytes."""

    def __init__(self, round_trip_s: float) -> None:
        self._round_trip_s = round_trip_s
        self._bytes = 0
        self._seconds = 0.0

    def saw(self, sent: int, seconds: float) -> None:
        """A file took so long; it took two round trips as well."""
        self._bytes += sent
        self._seconds += max(seconds - 2 * self._round_trip_s, 1e-4)

    def seconds(self, size: int) -> float:
        """How long so many bytes will take."""
        known = self._bytes >= 1024
        return size / (self._bytes / self._seconds if known else _UNKNOWN_BYTES_PER_S)


def bring(session: Session, bundle: Bundle, name: str, line: Line, progress: Progress | None = None) -> Brought:
    """
    Bring the file `name` of `bundle` to the board.

    Args:
        progress: called with bytes of the file that are there, and its size.

    Raises:
        BoardError: e.g. DiskFull.
    """
    data, sha256 = bundle.files[name], bundle.manifest.files[name].sha256
    wasted = 0
    if name == manifest.MODEL and len(data) > MIN_BYTES:
        found = _base(session, bundle, line)
        if found:
            base, left = found
            patch = _delta(base, data)
            if len(patch) < WORTH * left:
                digest = hashlib.sha256(base).hexdigest()
                counted = _Counted(len(patch), len(data), progress)
                try:
                    _patch(session, sha256, digest, patch, counted)
                    return Brought(counted.sent, digest)
                except StaleToken:
                    raise
                except BoardError:
                    wasted = counted.sent  # the file itself is always right
    started = time.monotonic()
    sent = session.upload(sha256, data, progress)
    line.saw(sent, time.monotonic() - started)
    return Brought(sent + wasted)


_encoding = threading.Lock()


def _delta(base: bytes, target: bytes) -> bytes:
    """The same model often goes to many boards at once: the delta is made once."""
    with _encoding:
        return _encoded(base, target)


@lru_cache(maxsize=2)
def _encoded(base: bytes, target: bytes) -> bytes:
    return delta.encode(base, target)


def _patch(session: Session, sha256: str, base: str, patch: bytes, progress: _Counted) -> None:
    digest = hashlib.sha256(patch).hexdigest()
    session.upload(digest, patch, progress)
    session.request("store.patch", sha256=sha256, base=base, delta=digest, limit_s=_LIMIT_S)


class _Counted:
    """Progress of a delta, told as progress of the file; and the bytes that were sent."""

    def __init__(self, size: int, of: int, progress: Progress | None) -> None:
        self.sent = 0
        self._size, self._of, self._progress = size, of, progress

    def __call__(self, there: int, _size: int) -> None:
        self.sent = there
        if self._progress:
            self._progress(self._of * there // self._size, self._of)


def _base(session: Session, bundle: Bundle, line: Line) -> tuple[bytes, int] | None:
    """The model to tell the difference to, and how many bytes the whole file would still take; None to send that."""
    sha256, size = bundle.manifest.files[manifest.MODEL].sha256, len(bundle.model)
    known = [digest for digest in remembered(bundle.name) if digest != sha256][:CANDIDATES]
    if not known:
        return None
    told = session.request("store.progress", digests=[sha256, *known], decoder=True).header
    progress = told["progress"]
    left = size - progress[sha256]
    there = [digest for digest in known if progress.get(digest) == -1]
    if progress[sha256] < 0 or left <= 0 or not there:
        return None
    coding_s = size * (_ENCODING_S_PER_BYTE + _BITS_PER_BYTE / told["decoder_bits_per_s"])
    if coding_s > line.seconds(left) + PATIENCE_S:
        return None
    bases = [base for base in map(recall, there) if base is not None]
    return (max(bases, key=lambda base: _likeness(base, bundle.model)), left) if bases else None


def _likeness(one: bytes, other: bytes) -> float:
    """Share of the bytes that are equal in place; of another size, how far it is from it, below zero."""
    if len(one) != len(other):
        return -abs(len(one) - len(other)) / max(len(one), len(other))
    return float((np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)).mean())


# The models that were pushed: files named <sha256>.<bundle>


def remember(bundle: Bundle) -> None:
    """Keep the bundle's model, and at most `CACHE_BYTES` in all; a cache that cannot be written is none."""
    digest = bundle.manifest.files[manifest.MODEL].sha256
    folder = _folder()
    path = folder / f"{digest}.{bundle.name}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole(path) as staging:
            staging.write_bytes(bundle.model)
        kept = 0
        for file in sorted(_files(), key=_when, reverse=True):
            kept += file.stat().st_size
            if kept > CACHE_BYTES or (file != path and file.name.startswith(digest)):
                file.unlink()
    except OSError:
        pass


def remembered(name: str) -> list[str]:
    """Digests of the models kept: those of bundles called `name` first, then the newest."""
    files = sorted(_files(), key=lambda file: (file.name[65:] == name, _when(file)), reverse=True)
    return [file.name[:64] for file in files]


def recall(digest: str) -> bytes | None:
    """A model that was kept; None if it is gone or damaged."""
    for file in _files():
        if file.name.startswith(digest):
            try:
                data = file.read_bytes()
            except OSError:
                continue
            if manifest.digest(data) == digest:
                return data
    return None


def _folder() -> Path:
    return cache_dir() / "models"


def _files() -> list[Path]:
    try:
        return [file for file in _folder().iterdir() if manifest.is_digest(file.name[:64])]
    except OSError:
        return []


def _when(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
