"""
Initramfs archives (cpio, "newc"), and which kernel modules need which.

The kernel unpacks as many archives as lie one behind the other: the image's own, and one of the board's.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from deploy.virtual.extras import File


def archive(files: Mapping[str, File]) -> bytes:
    """
    A compressed archive, owned by root.  The same files give the same bytes.

    Args:
        files: path without a leading slash -> file; folders come by themselves.
    """
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    out = bytearray()
    entries = [(name, 0o040755, b"") for name in folders]
    entries += [(name, 0o100000 | file.mode, file.data) for name, file in sorted(files.items())]
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        head = b"070701" + b"".join(b"%08x" % value for value in fields) + encoded
        out += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    packed = gzip.compress(bytes(out), compresslevel=4, mtime=0)
    return packed + bytes(-len(packed) % 4)  # the next one begins at a multiple of four


def module_name(path: Path) -> str:
    """As the kernel calls it: ``virtio_rng`` of ``virtio-rng.ko``."""
    return path.name.removesuffix(".ko").replace("-", "_")


def needs(module: Path) -> list[str]:
    """The modules that it needs directly, as it says in its own .modinfo."""
    match = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name for name in match[1].decode().replace("-", "_").split(",") if name] if match else []


def closure(names: Iterable[str], there: Mapping[str, Path]) -> list[Path]:
    """
    The modules `names` and all they need, each after what it needs.  A name that is not `there` is built in.

    Args:
        there: `module_name` -> file.
    """
    found: list[Path] = []

    def add(name: str) -> None:
        path = there.get(name)
        if path is None or path in found:
            return
        for needed in needs(path):
            add(needed)
        found.append(path)

    for name in names:
        add(name.replace("-", "_"))
    return found


def modules_dep(modules: Mapping[str, Path]) -> str:
    """
    The ``modules.dep`` that modprobe reads: a line for each module, with all that must be loaded before.

    Args:
        modules: path below /lib/modules/<release> -> file here.
    """
    paths = {module_name(path): path for path in modules.values()}
    shown = {path: name for name, path in modules.items()}
    lines = []
    for name, path in sorted(modules.items()):
        before = [shown[other] for other in closure([module_name(path)], paths) if other != path]
        lines.append(f"{name}: {' '.join(reversed(before))}".rstrip() + "\n")
    return "".join(lines)
