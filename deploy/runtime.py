"""
Bringing numpy and LiteRT to a board that lacks them.

The host picks the wheels that fit the board's Python, machine and C library, has pip download them with the hashes
of ``runtime.lock``, leaves out what inference does not need, and packs one zip.  The agent unpacks it below the
board's root.  Board and host may differ in everything; the board needs no pip, no network and no root.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from deploy.errors import RuntimeMissing, TransportError
from deploy.paths import cache_dir
from deploy.session import Progress, Session

LOCK = Path(__file__).with_name("runtime.lock")
PACK_VERSION = 1  # part of a pack's name in the cache; raise it when `_wanted` changes

_fetching: dict[str, threading.Lock] = {}  # pack -> held by the one thread that fetches it
_fetching_lock = threading.Lock()

# Vendors' accelerators, converters and test suites, which the interpreter never opens.  libLiteRt.so stays: 2.3 does
# without it, 2.1 (the last for Python 3.9) is linked against it.
_LEFT_OUT = re.compile(
    r"ai_edge_litert/(vendors|tools|aot|tflite)/"
    r"|ai_edge_litert/libLiteRtWebGpuAccelerator\.so$"
    r"|numpy/(f2py|_pyinstaller|typing|testing/tests)/"
    r"|.*/tests/|.*\.(pyi|a|h|lib)$|numpy/_core/include/"
)


def ensure(
    session: Session, progress: Progress | None = None, note: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """
    Make sure that the board can run models; bring what is missing.

    Args:
        note: told in a few words what takes long.

    Returns:
        What the board's runtime says of itself: runtime, numpy, and what deploy installed.

    Raises:
        RuntimeMissing: nothing fits the board, or what was brought does not start there; with the reason.
    """
    try:
        return session.request("runtime.probe").header
    except RuntimeMissing as error:
        missing = error
    except TransportError:
        raise
    except Exception as error:  # a runtime that kills its process is as good as none
        if not hasattr(error, "signal"):
            raise
        missing = RuntimeMissing(str(error))
    identity = session.hello["identity"]
    if note:
        note(f"fetching numpy and LiteRT for {identity['machine']}, Python {identity['python']}")
    data = pack_for(identity, session.board.name)
    sha256 = hashlib.sha256(data).hexdigest()
    if note:
        note(f"sending the runtime ({len(data) / 1e6:.1f} MB)")
    session.upload(sha256, data, progress)
    session.request("runtime.install", sha256=sha256)
    try:
        return session.request("runtime.probe").header
    except RuntimeMissing as error:
        raise RuntimeMissing(
            f"{error.message}; brought {', '.join(pinned(identity))}",
            "`sudo apt install python3-numpy` there" if "numpy" in error.message else f"before: {missing.message}",
        ) from None


def pinned(identity: dict[str, Any]) -> list[str]:
    """The lines of the lock that hold for this board, each ``name==version``."""
    return [line.split()[0] for line in _locked_for(identity)]


def pack_for(identity: dict[str, Any], board: str) -> bytes:
    """
    The zip for a board, from the cache or from the package index.

    Args:
        identity: of the board, as its agent reports it (`devices.facts.identity`).

    Raises:
        RuntimeMissing: no wheel fits, or none could be downloaded.
    """
    lines = _locked_for(identity)
    if not lines:
        reason = "nobody publishes wheels for it"
        raise RuntimeMissing(f"no runtime for {_described(identity, board)}: {reason}", board=board)
    version = ".".join(identity["python"].split(".")[:2])
    key = hashlib.sha256("\n".join([str(PACK_VERSION), *lines, *_platforms(identity), version]).encode())
    cached = cache_dir() / "runtime" / f"{key.hexdigest()}.zip"
    with _fetching_lock:
        mine = _fetching.setdefault(key.hexdigest(), threading.Lock())
    with mine:  # many boards of one platform may ask at once
        return cached.read_bytes() if cached.is_file() else _fetch(cached, lines, identity, version, board)


def _fetch(cached: Path, lines: list[str], identity: dict[str, Any], version: str, board: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        wheels = _download(lines, identity, version, Path(folder), board)
        data = _pack(wheels)
    cached.parent.mkdir(parents=True, exist_ok=True)
    staging = cached.with_suffix(f".{hashlib.sha256(folder.encode()).hexdigest()[:8]}")
    staging.write_bytes(data)
    staging.replace(cached)
    return data


def _described(identity: dict[str, Any], board: str) -> str:
    return f"board {board!r} ({identity['machine']}, Python {identity['python']}, {identity.get('libc')})"


def _locked_for(identity: dict[str, Any]) -> list[str]:
    environment = {
        "platform_machine": identity["machine"],
        "python_full_version": identity["python"],
        "python_version": ".".join(identity["python"].split(".")[:2]),
        "sys_platform": "linux",
        "implementation_name": identity.get("implementation", "cpython"),
    }
    entries = LOCK.read_text().replace("\\\n", " ").splitlines()
    chosen = []
    for entry in entries:
        if not entry.strip() or entry.lstrip().startswith("#"):
            continue
        requirement, _, hashes = entry.partition(" --hash=")
        parsed = Requirement(requirement.strip())
        if parsed.marker is None or parsed.marker.evaluate(environment):
            # Written without the marker: pip would hold it against the host's Python.
            chosen.append(f"{parsed.name}{parsed.specifier} --hash={' '.join(hashes.split())}")
    return chosen


def _platforms(identity: dict[str, Any]) -> list[str]:
    """Wheel platforms the board's C library can load, newest first (PEP 600)."""
    machine = identity["machine"]
    match = re.fullmatch(r"glibc 2\.(\d+)", identity.get("libc") or "")
    newest = int(match[1]) if match else 17
    return [*(f"manylinux_2_{minor}_{machine}" for minor in range(newest, 16, -1)), f"manylinux2014_{machine}"]


def _download(lines: list[str], identity: dict[str, Any], version: str, folder: Path, board: str) -> list[Path]:
    listed = folder / "requirements.txt"
    listed.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for abi in (f"cp{version.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for platform in _platforms(identity):
        command += ["--platform", platform]
    done = subprocess.run(
        [*command, "--dest", str(folder), "-r", str(listed)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
        raise RuntimeMissing(
            f"no runtime for {_described(identity, board)}: {errors[-1].removeprefix('ERROR: ')}",
            "the host downloads it and needs its package index once; later pushes use the cache",
            board=board,
        )
    return sorted(folder.glob("*.whl"))


def _pack(wheels: list[Path]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as source:
                for member in sorted(source.namelist()):
                    if not member.endswith("/") and not _LEFT_OUT.match(member):
                        info = zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0))
                        info.compress_type = zipfile.ZIP_DEFLATED
                        packed.writestr(info, source.read(member))
    return out.getvalue()
