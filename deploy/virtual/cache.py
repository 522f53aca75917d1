"""
What virtual boards leave in the cache and the state directory: which of it nothing needs any more, and its removal.

Everything in the cache has a name that ends with a hash of what it was made from: ``pi4-<hash>.qcow2``.  What another
recipe, package or kernel has replaced is never started again, and as large as its successor.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.paths import cache_dir
from deploy.virtual.registry import places, state_dir

# Folder in the cache -> what lies there, for people.
_FAMILIES = {
    "images": "image",
    "warm": "snapshot",
    "kernels": "kernel",
    "modules": "sensor modules",
    ".": "program or system",
}
_NAME = re.compile(r"(?P<group>[^.].*)-[0-9a-f]{12,16}(\.qcow2|\.so)?")
_UNFINISHED = re.compile(r"\.(?P<name>.*-[0-9a-f]{12,16}(\.qcow2|\.so)?)\..*|(?P<other>sysroot-.*-[0-9a-f]{16})\..+")


@dataclass(frozen=True)
class Unneeded:
    """
    Attributes:
        what: for people.
        path: file or folder.
        bytes: of the disk that it takes.
    """

    what: str
    path: str
    bytes: int


def used(path: Path) -> None:
    """Note that something of the cache was used: the last one used of its group is what stays."""
    try:
        os.utime(path)
    except OSError:
        pass  # a cache that cannot be written to


def beside(disk: Path) -> tuple[Path, Path]:
    """What belongs to a snapshot's disk, and is of no use without it: its digest, and a Zynq's memory."""
    return disk.with_suffix(".json"), disk.with_suffix(".memory")


def clean(with_packages: bool, dry: bool) -> list[Unneeded]:
    """
    Remove what nothing needs: of each image, snapshot, kernel and so on all but the one used last and what a board
    that is up runs from; what was never finished; what boards have left whose keeper is gone.

    Args:
        with_packages: Debian's packages, too: the next image fetches them again.
        dry: only say what would go.

    Returns:
        What is gone, or would be.
    """
    found = [*_left_behind(dry)]
    base = cache_dir() / "virtual"
    running = _running()
    for folder, what in _FAMILIES.items():
        for path in [*_replaced(base / folder), *_unfinished(base / folder)]:
            if not any(path in [file, *file.parents] for file in running):
                found += _removed(path, f"{what} {path.name}", dry)
    if with_packages:
        found += _removed(base / "debs", "Debian's packages", dry)
    return found


def _running() -> list[Path]:
    """Files that boards which are up, or coming up, were started from."""
    return [Path(word) for place in places() for word in (place.read() or {}).get("command", []) if "/" in word]


def _replaced(folder: Path) -> Iterator[Path]:
    groups = defaultdict(list)
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            groups[match["group"]].append(path)
    for paths in groups.values():
        yield from sorted(paths, key=lambda path: path.stat().st_mtime)[:-1]


def _unfinished(folder: Path) -> Iterator[Path]:
    """What a process that was killed has left; whoever is still at it holds the lock of the finished one."""
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _UNFINISHED.fullmatch(path.name)
        if match and not path.name.endswith(".lock"):
            with _free(folder / (match["name"] or match["other"])) as free:
                if free:
                    yield path


def _removed(path: Path, what: str, dry: bool) -> list[Unneeded]:
    with _free(path) as free:
        if not free or not path.exists():
            return []
        also = [file for file in beside(path) if file.exists()]
        gone = Unneeded(what, str(path), sum(map(_size, [path, *also])))
        if not dry:
            _remove(path)
            for file in also:
                file.unlink(missing_ok=True)
    return [gone]


def _left_behind(dry: bool) -> Iterator[Unneeded]:
    for place in [*places()]:
        with _held(state_dir() / f".{place.name}.claim") as free:
            if free and not place.is_kept():
                yield Unneeded(f"board {place.name}, whose keeper is gone", str(place.folder), _size(place.folder))
                if not dry:
                    _remove(place.folder)


@contextmanager
def _free(path: Path) -> Iterator[bool]:
    """Whether nobody makes `path` at the moment, or uses it under its lock; nobody begins meanwhile."""
    lock = path.with_name(f"{path.name}.lock")
    if not lock.exists():
        yield True
    else:
        with _held(lock) as free:
            yield free


@contextmanager
def _held(lock: Path) -> Iterator[bool]:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _size(path: Path) -> int:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.lstat().st_blocks * 512 for file in files)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
