"""A thousand boards on ten gateways; and what one that hangs does to the others."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.build import build
from deploy.farm.runner import Runner
from tests.benchmarks.figure import Figure
from tests.conftest import GOLDEN
from tests.farm.lab import Farm, settings_of

GATEWAYS = 10
BOARDS = int(os.environ.get("DEPLOY_BENCH_BOARDS", "1000"))
CELLS = 24  # for each board: long enough that beginning and end do not count for much
HANG_CELLS = 10
HANG_ROUNDS = 2
MEMORY = Path("/dev/shm")  # a disk that is shared with others would be what is measured


def figures(folder: Path) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as place:
        yield from _scale(Path(place))
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as place:
        yield _hanging(Path(place))


def _farm(folder: Path, gateways: int, boards: int) -> Farm:
    build(str(GOLDEN / "digits_int8.tflite"), name="digits", vectors=1).bundle.write(folder / "digits.bundle")
    names = [[f"b{gateway}-{i}" for i in range(boards // gateways)] for gateway in range(gateways)]
    return Farm(folder, {f"g{i}": some for i, some in enumerate(names)})


def _scale(folder: Path) -> Iterator[Figure]:
    farm = _farm(folder, GATEWAYS, BOARDS)
    ends = threading.Event()
    peak = [0]
    scheduler = psutil.Process(farm.processes["scheduler"].pid)

    def watch() -> None:
        while not ends.wait(0.5):
            peak[0] = max(peak[0], scheduler.memory_info().rss)

    threading.Thread(target=watch, daemon=True).start()
    before = _cpu_s(farm)
    try:
        # 1 to 5 s, in an order that no two neighbours share
        runner = farm.run("[{tag: simulated, each: true}]", settings_of(CELLS, lambda i: 1 + 4 * (i * 3 % 8) / 7))
        at_work = {who: after - before[who] for who, after in _cpu_s(farm).items()}
        log = farm.log()
        busy, wall_s = used(log)
        overlaps = farm.overlaps()
    finally:
        ends.set()
        farm.close()
    load = os.getloadavg()[0]
    what = f"{BOARDS:,} simulated boards, {GATEWAYS} gateways, cells of 1-5 s"
    done = sum(state.state == "done" for state in runner.states.values())
    told = f"{busy:.1%} of board time; {done} of {len(runner.states)} cells in {wall_s:.0f} s"
    told += f", {overlaps} overlaps; load {load:.0f} on {os.cpu_count()} CPUs"
    yield Figure(what, ">= 90 % used", told, busy >= 0.9)
    yield Figure("  its scheduler", "< 300 MB", f"{peak[0] / 1e6:.0f} MB", peak[0] < 300e6)
    each_ms = {who: 1e3 * spent_s / len(runner.states) for who, spent_s in at_work.items()}
    told = f"{sum(each_ms.values()):.1f} ms: " + ", ".join(f"{who} {spent:.2f}" for who, spent in each_ms.items())
    yield Figure("  processor time for a cell", "", told, None)


def _cpu_s(farm: Farm) -> dict[str, float]:
    """Seconds of processor time that each part of the farm has taken."""
    parts = {
        "scheduler": [farm.processes["scheduler"].pid],
        "gateways": [farm.processes[name].pid for name in farm.gateways],
        "boards": [boards.process.pid for boards in farm.boards],
        "plan": [os.getpid()],
    }
    return {who: sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids) for who, pids in parts.items()}


def used(log: list[dict[str, Any]]) -> tuple[float, float]:
    """
    The share of board time in which a measurement ran, from when the first began to when the last began, which is when
    there was nothing left to give; and how long that was.
    """
    first, last = min(e["begin"] for e in log), max(e["begin"] for e in log)
    boards = {e["board"] for e in log}
    busy = sum(min(e["end"], last) - e["begin"] for e in log)
    return busy / (len(boards) * max(1, last - first)), (last - first) / 1e9


def _hanging(folder: Path) -> Figure:
    """How long cells of the other gateways wait for their board, with one gateway stopped and without."""
    farm = _farm(folder, 4, 16)
    p95: dict[bool, list[float]] = {False: [], True: []}
    try:
        for number, hangs in enumerate((False, True, True, False) * HANG_ROUNDS):
            engine = farm.settle()
            engine.turn_s = 0.0  # every cell is dispatched by itself
            settings = settings_of(HANG_CELLS, lambda i, n=number: 0.5 + n / 1000)
            runner = farm.runner("[{tag: simulated, each: true}]", settings, engine)
            before = len(farm.log())
            if hangs:
                farm.signal("g0", signal.SIGSTOP)
            threading.Thread(target=runner.run, daemon=True).start()
            _until_done(runner, [b for name in ("g1", "g2", "g3") for b in farm.gateways[name]])
            mine = [e for e in farm.log()[before:] if not e["board"].startswith("b0-")]
            p95[hangs].append(float(np.percentile(gaps(mine), 95)))
            if hangs:
                farm.signal("g0", signal.SIGCONT)
            while any(state.is_open for state in runner.states.values()):
                time.sleep(0.1)
    finally:
        farm.close()
    none, one = float(np.median(p95[False])), float(np.median(p95[True]))
    ratio = one / none
    spread = ", ".join(f"{value:.2f}" for value in p95[False] + p95[True])
    told = f"{ratio:.2f} ({one:.2f} s, {none:.2f} s; {spread}); load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
    return Figure("p95 wait of other gateways' cells, one hangs / none", "within 10 %", told, ratio < 1.1)


def _until_done(runner: Runner, boards: list[str]) -> None:
    while any(state.is_open for state in runner.states.values() if state.cell.place in boards):
        time.sleep(0.05)


def gaps(log: list[dict[str, Any]]) -> list[float]:
    """Seconds between the end of a measurement and the beginning of the next one on the same board."""
    found, last = [], dict[str, int]()
    for entry in sorted(log, key=lambda e: e["begin"]):
        if entry["board"] in last:
            found.append((entry["begin"] - last[entry["board"]]) / 1e9)
        last[entry["board"]] = entry["end"]
    return found
