"""
Warm snapshots: the disk of a board that has booted and got numpy and LiteRT, with the memory of that moment inside.

One for each kind, image and set of extras, made when it is first wanted, kept in the cache, copied for every board:
QEMU finds a snapshot only in the very disk, and not behind an overlay.  A Zynq's memory lies beside it (`memory`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from deploy.errors import DeployError, TransportError, VirtualError
from deploy.paths import cache_dir, held
from deploy.virtual import machine, memory
from deploy.virtual.cache import beside, used
from deploy.virtual.extras import Extras
from deploy.virtual.image import Image, digest
from deploy.virtual.kinds import Kind

DISK = "data.qcow2"  # in a board's folder
ATTEMPTS = 3
KEPT = 3  # of a kind

Note = Callable[[str], None]


def ensure(
    kind: Kind, image: Image, extras: Extras, cores: int | None, memory_mib: int | None, note: Note
) -> Path | None:
    """
    The warm disk, made if it is not there or damaged.

    Returns:
        None when it cannot be made; `note` was told why.
    """
    from deploy import runtime

    parts = [
        machine.RECIPES[kind.machine], kind.name, cores or kind.cores, memory_mib or kind.memory_mib, image.key,
        extras.digest(), machine.qemu(kind.arch).version, machine.host_key(), runtime.LOCK.read_text(),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    disk = cache_dir() / "virtual" / "warm" / f"{kind.name}-{key}.qcow2"
    with held(disk):
        if _is_whole(disk):
            used(disk)
            return disk
        if disk.exists():
            note("the warm snapshot is damaged: making it anew")
        try:
            _make(kind, image, extras, cores, memory_mib, disk, note)
        except DeployError as error:
            note(f"no warm snapshot: {error}")
            return None
    return disk


def copy(disk: Path, folder: Path) -> None:
    """
    Copy the warm disk, and the memory beside it, into a board's folder.

    Raises:
        VirtualError: there is no room for it.
    """
    _copy(disk, folder / DISK)
    if _memory(disk).exists():
        _copy(_memory(disk), folder / memory.CLEAN)


def _copy(disk: Path, to: Path) -> None:
    """Sharing blocks where the file system can."""
    try:
        with disk.open("rb") as source, to.open("wb") as out:
            left = os.fstat(source.fileno()).st_size
            while left:
                moved = os.copy_file_range(source.fileno(), out.fileno(), left)
                if not moved:
                    break
                left -= moved
    except OSError as error:
        raise VirtualError(f"{to}: {error.strerror}") from None


def _make(
    kind: Kind, image: Image, extras: Extras, cores: int | None, memory_mib: int | None, disk: Path, note: Note
) -> None:
    from deploy import boards, runtime
    from deploy.session import connect
    from deploy.virtual.control import Options, starting

    note("booting once for the warm snapshot")
    name = f"{kind.name}.{os.getpid()}"
    options = Options(cores=cores, memory_mib=memory_mib)
    with starting(kind, image, extras, name, options, None) as board:
        entry = boards.Board.model_validate({"name": name, **board.entries[name]})
        for left in reversed(range(ATTEMPTS)):
            try:
                with connect(entry, board.place.known_hosts) as session:
                    runtime.ensure(session, note=note)
                break
            except TransportError:  # this machine may have much else to do; what has arrived stays
                if not left:
                    raise
        note("saving the warm snapshot")
        board.ask("save")
        board.ask("power-cut")
        disk.parent.mkdir(parents=True, exist_ok=True)
        staging = disk.with_name(f".{disk.name}.{os.getpid()}")
        kept = disk.with_name(f".{disk.name}.memory.{os.getpid()}")
        _copy(board.place.folder / DISK, staging)
        if (board.place.folder / memory.CLEAN).exists():
            _copy(board.place.folder / memory.CLEAN, kept)
        _sum(disk).write_text(json.dumps({"sha256": _digest(staging, kept)}))
        if kept.exists():
            kept.replace(_memory(disk))
        staging.replace(disk)
    _prune(disk.parent, kind)


def _prune(folder: Path, kind: Kind) -> None:
    """Every change of an image or of extras leaves a snapshot behind that nothing starts from any more."""
    disks = sorted(folder.glob(f"{kind.name}-*.qcow2"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in disks[KEPT:]:
        for path in (old, *beside(old)):
            path.unlink(missing_ok=True)


def _is_whole(disk: Path) -> bool:
    try:
        return bool(json.loads(_sum(disk).read_text())["sha256"] == _digest(disk, _memory(disk)))
    except (OSError, ValueError, KeyError):
        return False


def _digest(disk: Path, kept: Path) -> str:
    return digest(disk) + (digest(kept) if kept.exists() else "")


def _sum(disk: Path) -> Path:
    return beside(disk)[0]


def _memory(disk: Path) -> Path:
    return beside(disk)[1]
