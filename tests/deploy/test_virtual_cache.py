"""`deploy virtual clean`: what newer ones have replaced goes, what is used or being made stays."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from deploy.virtual import cache
from deploy.virtual.registry import Place
from tests.conftest import Said

OLD, NEW = "0" * 16, "f" * 16
IMAGE = "arm64-" + "0" * 12


@pytest.fixture
def base(private_home: Path) -> Path:
    return private_home / ".cache" / "deploy" / "virtual"


def leave(path: Path, age_s: int, data: bytes = b"x" * 5000) -> Path:
    """A file of the cache, or a folder with one, last used `age_s` ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.write_bytes(data)
    else:
        path.mkdir()
        (path / "root").write_bytes(data)
    os.utime(path, (10**9 - age_s, 10**9 - age_s))
    return path


def test_of_each_kind_the_one_used_last_stays(base: Path, say: Said) -> None:
    old = [leave(base / "warm" / f"pi4-{name}.qcow2", 9) for name in (OLD, "1" * 16)]
    old += [leave(base / "images" / IMAGE, 9), leave(base / f"power-arm64-{'0' * 12}", 9)]
    digest = leave(old[0].with_suffix(".json"), 9)
    kept = [leave(base / "warm" / f"{kind}-{NEW}.qcow2", 1) for kind in ("pi4", "pi5", "jetson-nano")]
    kept += [leave(base / "images" / "arm64-ffffffffffff", 1), leave(base / "images" / "armhf-000000000000", 99)]
    kept += [leave(base / f"power-arm64-{'f' * 12}", 1), leave(base / "debs" / "bash_5.2.deb", 1)]
    cache.used(old[1])  # which makes it the last of its kind, and the newest file an old one
    old[1], kept[0] = kept[0], old[1]

    code, out, _ = say("virtual", "clean", "--dry-run")
    assert (0, True) == (code, all(path.exists() for path in [*old, *kept]))
    assert f"snapshot pi4-{OLD}.qcow2" in out
    assert out.endswith("would be freed\n")

    code, out, _ = say("virtual", "clean")

    assert (0, [], []) == (code, [p for p in [*old, digest] if p.exists()], [p for p in kept if not p.exists()])
    assert f"snapshot pi4-{OLD}.qcow2" in out
    assert "nothing to free\n" == say("virtual", "clean")[1]


def test_packages_go_only_when_asked_for(base: Path, say: Said) -> None:
    package = leave(base / "debs" / "bash_5.2.deb", 1)

    _, out, _ = say("virtual", "clean", "--packages", "--json")

    assert not package.exists()
    (gone,) = json.loads(out)
    assert ("Debian's packages", True) == (gone["what"], gone["bytes"] >= 5000)


def test_what_a_board_was_started_from_stays(base: Path) -> None:
    old = leave(base / "images" / IMAGE, 9)
    leave(base / "images" / "arm64-ffffffffffff", 1)
    place = Place("pi4")
    place.folder.mkdir(parents=True)
    place.described.write_text(json.dumps({"command": ["qemu", "-kernel", str(old / "kernel")], "up": True}))

    with place.lock.open("w") as lock:  # as its keeper holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [] == cache.clean(with_packages=False, dry=False)
        assert place.folder.exists()

    assert [f"board {place.name}, whose keeper is gone", f"image {IMAGE}"] == [
        gone.what for gone in cache.clean(with_packages=False, dry=False)
    ]
    assert not old.exists()
    assert not place.folder.exists()


def test_what_is_being_made_or_used_under_its_lock_stays_and_what_a_killed_one_left_goes(base: Path) -> None:
    old = leave(base / "warm" / f"pi4-{OLD}.qcow2", 9)
    leave(base / "warm" / f"pi4-{NEW}.qcow2", 1)
    staging = leave(base / "images" / f".{IMAGE}.a1b2", 1)
    sysroot = leave(base / f"sysroot-aarch64-{OLD}.tmp1", 1)
    locks = [leave(path.with_name(f"{path.name}.lock"), 1, b"") for path in (old, base / "images" / IMAGE)]

    with locks[0].open() as one, locks[1].open() as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)
        assert [str(sysroot)] == [gone.path for gone in cache.clean(with_packages=False, dry=False)]
        assert old.exists() and staging.exists()

    assert {str(old), str(staging)} == {gone.path for gone in cache.clean(with_packages=False, dry=False)}
    assert [True, True] == [lock.exists() for lock in locks]
