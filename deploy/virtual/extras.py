"""
What a virtual board gets on top of its image: kernel modules, files, commands at start, a changed device tree.

Extras travel in an initramfs of the board's own, put after the shared one when the board is started: a change of them
costs no new image.  A board's warm snapshot belongs to the extras it was made with (`Extras.digest`).

The rest of the launcher asks `collect` and knows nothing of what is behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.virtual.fdt import Node

if TYPE_CHECKING:
    from deploy.virtual.image import Image
    from deploy.virtual.kinds import Kind


@dataclass(frozen=True)
class File:
    """A file of the guest: what is in it, and its mode."""

    data: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Extras:
    """
    Attributes:
        modules: folder of ``*.ko`` files built for `Image.kernel_release`; they lie in
            ``/lib/modules/<release>/extra`` of the guest, and ``modprobe NAME`` there finds them and what they need.
            None: no modules.
        files: path in the guest (absolute) -> file, owned by root.
        start: shell commands (busybox sh), each run as root, in this order, once Linux is up: file systems, network
            and /home are there, sshd and the consoles are started next.  One that fails is told on the console
            (``start failed: ...``) and the board comes up without it.
        edit_tree: changes the device tree that the board boots with, in place; called on the host.
        missing: one sentence for everything that could not be provided, with what to type; shown by `up`.
        rails: entries for `rails:` of the board, as in boards.yaml.
        beside: command of a host process that belongs to the board and lives as long as QEMU does (`beside.py`).
        overlay: `overlay:` of the board, as in boards.yaml.
    """

    modules: Path | None = None
    files: Mapping[str, File] = field(default_factory=dict)
    start: tuple[str, ...] = ()
    edit_tree: Callable[[Node], None] | None = None
    missing: tuple[str, ...] = ()
    rails: tuple[Mapping[str, object], ...] = ()
    beside: tuple[str, ...] = ()
    overlay: str | None = None

    def digest(self) -> str:
        """SHA-256 over everything that reaches the guest, but for the device tree, which is in the boot files."""
        sha = hashlib.sha256()
        for path in sorted(self.modules.glob("*.ko")) if self.modules else ():
            sha.update(path.name.encode() + b"\0" + path.read_bytes())
        for name, file in sorted(self.files.items()):
            sha.update(f"{name}\0{file.mode}\0".encode() + file.data)
        sha.update("\0".join(self.start).encode())
        return sha.hexdigest()


def collect(kind: Kind, image: Image, note: Callable[[str], None]) -> Extras:
    """The extras of a board of `kind` on `image`.  Called at every `up`, so it must be quick once all is cached."""
    from deploy.virtual import sensors, window

    found = sensors.extras(kind, image, note)
    if kind.machine != "xilinx-zynq-a9":
        return found
    logic = window.extras(note)
    return replace(
        found,
        files={**found.files, **logic.files},
        start=(*found.start, *logic.start),
        missing=(*found.missing, *logic.missing),
        beside=logic.beside,
        overlay=logic.overlay,
    )
