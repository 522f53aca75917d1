"""
Which process holds something, and whether it still lives; by /proc.

A number alone does not name a process, as numbers come back: its time of birth and its namespace belong to it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def this_process() -> str | None:
    """A name for this process that no other will ever have until the next boot; None where there is no /proc."""
    born = _born(os.getpid())
    return f"{os.getpid()} {born} {_namespace()}" if born and _namespace() else None


def is_gone(name: str | None) -> bool:
    """
    Whether the process of that name is certainly dead; False also where that cannot be known, as for a process of
    another container.
    """
    if name is None:
        return False
    pid, born, namespace = name.split(" ", 2)
    return namespace == _namespace() and _born(int(pid)) != born


def _born(pid: int) -> str | None:
    """Ticks after boot at which a process began; None if it ended, waited for by its parent or not."""
    try:
        # What stands in brackets is its name, which may hold brackets and blanks.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]
