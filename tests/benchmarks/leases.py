"""Leases of one machine: what taking one costs, and what is left of a holder that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deploy.farm.leases import Leases
from tests.benchmarks.figure import Figure
from tests.conftest import ROOT

TAKES = 300
PERIOD_S = 3.0
KILLS = 5
_HOLDER = (
    "import sys, time; from pathlib import Path; from deploy.farm.leases import Leases;"
    "Leases(Path(sys.argv[1])).take('pi', for_s=float(sys.argv[2])); print('held', flush=True); time.sleep(600)"
)


def figures(folder: Path) -> Iterator[Figure]:
    yield _take(folder / "one", 0, "take a free board's lease, one host")
    yield _take(folder / "many", 1000, "the same beside 1,000 that are held")
    for seen in (True, False):
        yield _killed(folder / f"killed {seen}", seen)


def _take(folder: Path, held: int, what: str) -> Figure:
    """As a verb does, which opens the file first; giving it back is not counted."""
    others = Leases(folder / "farm.sqlite")
    for number in range(held):
        others.take(f"board{number}", for_s=3600)
    took_ms = []
    for _ in range(TAKES):
        leases = Leases(folder / "farm.sqlite")
        began = time.perf_counter_ns()
        lease = leases.take("pi")
        took_ms.append((time.perf_counter_ns() - began) / 1e6)
        lease.release()
        leases.close()
    others.close()
    p50, p99 = np.percentile(took_ms, [50, 99])
    result = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, of {TAKES} (TVM's tracker: 48 ms, labgrid: 220 ms)"
    return Figure(what, "p50 < 20 ms", result, bool(p50 < 20))


def _killed(folder: Path, seen: bool) -> Figure:
    """
    From SIGKILL to somebody else's lease, in periods of the lease.

    Args:
        seen: whether the death can be seen; not that of a process in another container.
    """
    path = folder / "farm.sqlite"
    waits = []
    for _ in range(KILLS):
        leases = Leases(path)
        with subprocess.Popen(
            [sys.executable, "-c", _HOLDER, str(path), str(PERIOD_S)], cwd=ROOT, stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout and holder.stdout.readline()
            if not seen:
                with leases.file.writing() as db:
                    db.execute("UPDATE leases SET process = '1 1 pid:[1]'")
            os.kill(holder.pid, signal.SIGKILL)
            began = time.perf_counter()
            leases.take("pi").release()
            waits.append((time.perf_counter() - began) / PERIOD_S)
        leases.close()
    how = "seen" if seen else "not seen (another container's)"
    worst = max(waits)
    result = f"at most {worst:.2f} periods, of {KILLS} ({', '.join(f'{wait:.2f}' for wait in waits)})"
    # Whoever waits looks every 20 ms.
    return Figure(f"holder killed by SIGKILL, its death {how}: free after", "<= 1 period", result, worst <= 1.01)
