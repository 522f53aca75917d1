"""
Our kernels for a board: built here for its architecture, brought to it once.

They are a delegate that the stock runtime loads (`kernels/README.md`).  A conversation either uses them or does not:
`ensure` decides that, and whatever is loaded later in the conversation follows it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import KernelsMissing
from deploy.paths import cache_dir, held, whole

if TYPE_CHECKING:
    from deploy.session import Progress, Session

MODES = ("auto", "off", "reference")
_TARGETS = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64", "armv7l": "armv7"}


def sources() -> Path:
    """The folder of the sources: of the checkout, or where a wheel put them."""
    checkout = Path(__file__).resolve().parent.parent / "kernels"
    if not (checkout / "build.py").is_file():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            for file in importlib.metadata.files("deploy-hil") or ():
                if file.match("deploy-hil/kernels/build.py"):
                    return Path(str(file.locate())).resolve().parent
    return checkout


@dataclass(frozen=True)
class Kernels:
    """
    Attributes:
        mode: "auto": each node goes to our kernel where that wins; "reference": to the plain versions, wherever there
            is one; "off": the stock runtime alone.
        library: SHA-256 of the library on the board; None where it is off.
        why_off: why "auto" came to be "off"; None where it did not.
    """

    mode: str = "off"
    library: str | None = None
    why_off: str | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """As requests to load a model say it; a board's accelerator stands beside our kernels, and is off with them."""
        return {"kernels": self.mode, "accelerator": self.mode == "auto" or self.why_off is not None}


OFF = Kernels()


def ensure(
    session: Session, mode: str, progress: Progress | None = None, note: Callable[[str], None] | None = None
) -> Kernels:
    """
    Decide what the models of this conversation are loaded with, and bring the library where the board lacks it.

    Args:
        mode: one of `MODES`.  With "auto", a board for which no library can be built gets none; the answer
            says why.

    Raises:
        KernelsMissing: mode is "reference", and no library can be built for the board.
    """
    session.kernels = _decide(session, mode, progress, note)
    return session.kernels


def _decide(session: Session, mode: str, progress: Progress | None, note: Callable[[str], None] | None) -> Kernels:
    if mode == "off":
        return OFF
    try:
        library = library_for(session.hello["identity"], note)
    except KernelsMissing as error:
        if mode == "auto":
            return Kernels("off", None, error.message)
        raise
    sha256 = hashlib.sha256(library).hexdigest()
    if session.hello.get("kernels") != sha256:
        if note:
            note(f"sending the kernels ({len(library) / 1e6:.1f} MB)")
        session.upload(sha256, library, progress)
        session.request("kernels.install", sha256=sha256)
        session.hello["kernels"] = sha256
    return Kernels(mode, sha256)


def current(session: Session, mode: str) -> Kernels | None:
    """What `ensure` would answer if it had nothing to build and nothing to bring; None if it has."""
    if mode == "off":
        return OFF
    try:
        cached = _cached(target_of(session.hello["identity"]))
    except KernelsMissing as error:
        return Kernels("off", None, error.message) if mode == "auto" else None
    if not cached.is_file():
        missing = _no_compiler()
        return Kernels("off", None, missing) if mode == "auto" and missing else None
    sha256 = hashlib.sha256(cached.read_bytes()).hexdigest()
    return Kernels(mode, sha256) if session.hello.get("kernels") == sha256 else None


def library_for(identity: dict[str, Any], note: Callable[[str], None] | None = None) -> bytes:
    """
    The library for a board, from the cache or built now.

    Args:
        identity: of the board, as its agent reports it (`devices.facts.identity`).

    Raises:
        KernelsMissing: there are none for this architecture, no compiler is here, or it fails.
    """
    target = target_of(identity)
    cached = _cached(target)
    if not cached.is_file():
        with held(cached):  # several boards of one kind may be pushed to at once
            if not cached.is_file():
                _build(target, cached, note)
    return cached.read_bytes()


def target_of(identity: dict[str, Any]) -> str:
    """The build target that fits a board, by its machine and the width of its Python's pointers."""
    machine = str(identity["machine"]).lower()
    if machine in ("aarch64", "arm64") and identity.get("pointer_bits") == 32:
        machine = "armv7l"  # a 64-bit kernel below a 32-bit system
    if machine not in _TARGETS:
        raise KernelsMissing(
            f"no kernels for {machine}: there are some for {', '.join(sorted(set(_TARGETS.values())))}"
        )
    return _TARGETS[machine]


def _no_compiler() -> str | None:
    if not (sources() / "build.py").is_file():
        return f"the kernels' sources are not at {sources()}"
    return None if importlib.util.find_spec("ziglang") else "no compiler for the kernels"


@functools.cache  # a push asks twice for each board
def digest(folder: Path) -> str:
    """Of what the library is made of: the sources and the compiler."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".cc", ".h", ".py", ".txt") and path.is_file():
            found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found.update(importlib.metadata.version("ziglang").encode())
    return found.hexdigest()[:32]


def _cached(target: str) -> Path:
    return cache_dir() / "kernels" / f"{target}-{digest(sources())}.so"


def _build(target: str, cached: Path, note: Callable[[str], None] | None) -> None:
    missing = _no_compiler()
    if missing:
        raise KernelsMissing(missing, "`pip install 'deploy-hil[build]'` brings one; `--kernels off` does without")
    if note:
        note(f"building the kernels for {target}")
    with whole(cached) as staging:
        done = subprocess.run(
            [
                sys.executable,
                str(sources() / "build.py"),
                "--target",
                target,
                "--out",
                str(staging),
                "--objects",
                str(cached.parent / "objects"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise KernelsMissing(f"the kernels for {target} do not build: {lines[-1]}", "`--kernels off` does without")
