"""
A model for a board's accelerator: compiled here, brought along with the bundle, kept in its release.

Boards without an overlay get nothing of it.  What cannot be compiled runs in LiteRT, and the release says why.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import BuildError, one_line
from deploy.paths import cache_dir, whole
from devices.protocol import manifest
from devices.protocol.accelerated import Entry

if TYPE_CHECKING:
    from deploy.boards import Board
    from deploy.bundle import Bundle
    from deploy.session import Session

SIMULATED_KIND = "pynq-sim"


def agent_options(board: Board) -> list[str]:
    """What the agent of a board is told of its programmable logic."""
    if board.kind == SIMULATED_KIND:
        from deploy.fpga import simulated

        return ["--overlay", board.overlay or str(simulated.OVERLAY), "--modules", str(simulated.PATH)]
    return ["--overlay", board.overlay] if board.overlay else []


@dataclass(frozen=True)
class Compiled:
    """
    Attributes:
        entry: what the release is to say.
        files: SHA-256 -> what the entry names.
    """

    entry: Entry
    files: dict[str, bytes]


def compiled_for(session: Session, bundle: Bundle) -> Compiled | None:
    """The model for the accelerator of the board, from the cache or compiled now; None for a board that has none."""
    if not session.hello.get("overlay"):
        return None
    model, golden = bundle.model, bundle.files.get(manifest.GOLDEN)
    found = [_cached(manifest.digest(model), ".program", lambda: _compile(model, bundle.name))]
    if golden is not None and found[0].startswith(_COMPILED):
        key = f"{manifest.digest(golden)}-{manifest.digest(model)[:32]}"
        found.append(_cached(key, ".golden", lambda: _reference(model, golden, bundle.name)))
    for made in found:
        if not made.startswith(_COMPILED):
            return Compiled(Entry(why=made.decode()), {})
    files = {manifest.digest(data): data for data in (each[len(_COMPILED) :] for each in found)}
    return Compiled(Entry(*files), files)


def make_ready(board: Board, note: Callable[[str], None]) -> None:
    """
    Build what plays the board's accelerator, where that is simulated: half a minute, once.

    Args:
        note: told in a few words what takes long.

    Raises:
        KernelsMissing: Verilator or a C++ compiler is not here.
    """
    if board.kind == SIMULATED_KIND:
        from deploy.fpga import simulator

        if not simulator.is_built():
            note("building the simulation of its accelerator")
            simulator.library()


def summary(facts: Mapping[str, Any]) -> str:
    """One line of what a board told of its accelerator (`devices.backends.pynq.Model.accelerator`)."""
    if facts["why"]:
        return f"without the accelerator: {facts['why']}"
    simulated = ", simulated" if facts["simulated"] else ""
    return f"{facts['nodes']} of {facts['of']} nodes on the accelerator{simulated}"


def is_simulated(facts: Mapping[str, Any] | None) -> bool:
    """Whether times are cycles of a simulation."""
    return bool(facts and facts["simulated"] and not facts["why"])


def verdict(facts: Mapping[str, Any] | None) -> list[str]:
    """Of a run whose answers are right: whether they are the CPU's, as the accelerator failed."""
    return ["accelerator-failed"] if facts and facts["failed"] else ["ok"]


_COMPILED = b"+"  # in front of what was made; else it is why nothing was


def _cached(key: str, suffix: str, make: Callable[[], bytes]) -> bytes:
    """What `make` made before with this compiler, or makes now."""
    path = cache_dir() / "accelerated" / f"{key}-{_compiler()}{suffix}"
    try:
        kept = path.read_bytes()
        if kept[:32] == hashlib.sha256(kept[32:]).digest():
            return kept[32:]
    except OSError:
        pass
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as staging:
            staging.write_bytes(hashlib.sha256(made).digest() + made)
    except OSError:
        pass  # it is made again next time
    return made


def _compile(model: bytes, name: str) -> bytes:
    from deploy.fpga.package import package

    try:
        return _COMPILED + package(model, name).encode()
    except BuildError as error:
        return error.message.encode()


def _reference(model: bytes, golden: bytes, name: str) -> bytes:
    """The golden vectors with other answers: those of TFLite's reference kernels, which the accelerator equals."""
    from deploy.fpga.reference import answered

    try:
        return _COMPILED + answered(model, golden)
    except (ValueError, RuntimeError) as error:  # of the runtime; other shapes than the model's own, say
        return f"TFLite's reference kernels do not run {name} as it is: {one_line(error)}".encode()


@functools.cache
def _compiler() -> str:
    """Of what compiles: another compiler, another file."""
    found = hashlib.sha256()
    for package in ("deploy.fpga", "devices.protocol"):
        spec = importlib.util.find_spec(package)
        assert spec and spec.submodule_search_locations
        for path in sorted(Path(next(iter(spec.submodule_search_locations))).glob("*.py")):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:32]
