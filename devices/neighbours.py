"""
Who else used the CPUs: the kernel's counters before and after a run, less what the run itself used.

Where the kernel does not tell there is no answer, never zero.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Optional

LEAST_S = 1.0  # the counters advance in steps of 10 ms
SHOWN = 3

_Times = dict[tuple[int, int], tuple[str, int, int]]


class Neighbours:
    """
    Counters as they were when this was made.

    Args:
        root: where /proc is; ``/`` but for tests.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._hz = os.sysconf("SC_CLK_TCK")
        self._began = time.monotonic()
        self._total = _total(root)
        self._own = _own_s()
        self._processes = _processes(root)

    def since(self) -> dict[str, Any] | None:
        """
        What happened since then.

        Returns:
            busy_cpus: CPUs that other processes kept busy, on average.  stolen_cpus: what a hypervisor took away.
            processes: the busiest of them, with pid, name and cpus.  None where it was too short to tell, or the
            kernel does not say.
        """
        seconds = time.monotonic() - self._began
        now = _total(self._root)
        if self._total is None or now is None or seconds < LEAST_S:
            return None
        busy = (now[0] - self._total[0]) / self._hz - (_own_s() - self._own)
        return {
            "busy_cpus": round(busy / seconds, 3),
            "stolen_cpus": round((now[1] - self._total[1]) / self._hz / seconds, 3),
            "processes": self._busiest(seconds),
        }

    def _busiest(self, seconds: float) -> list[dict[str, Any]]:
        used: list[tuple[float, int, str]] = []
        for key, (name, parent, ticks) in _processes(self._root).items():
            pid = key[0]
            if os.getpid() in (pid, parent):
                continue
            before = self._processes.get(key)
            ticks -= before[2] if before else 0
            cpus = round(ticks / self._hz / seconds, 3)
            if cpus >= 0.01:
                used.append((cpus, pid, name))
        return [{"pid": pid, "name": name, "cpus": cpus} for cpus, pid, name in sorted(used, reverse=True)[:SHOWN]]


def _own_s() -> float:
    """CPU time of this process and of the children it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _total(root: Path) -> Optional[tuple[int, int]]:
    """Ticks of all CPUs since boot: busy with processes or the kernel's own work; stolen by a hypervisor."""
    try:
        fields = (root / "proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, fields[1:9])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq, stolen


def _processes(root: Path) -> _Times:
    """Process, by number and start -> name, parent, ticks; those that end while they are looked at are left out."""
    found: _Times = {}
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(errors="replace")
            fields = text[text.rindex(")") + 1 :].split()
            name = text[text.index("(") + 1 : text.rindex(")")]
            found[int(folder.name), int(fields[19])] = (name, int(fields[1]), int(fields[11]) + int(fields[12]))
        except (OSError, ValueError, IndexError):
            continue
    return found
