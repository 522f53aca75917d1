"""Ten thousand runs in the store: how long a list of them takes, and the dashboard's first page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deploy.results.store import Store
from tests.benchmarks.figure import Figure
from tests.farm.browser import Browser

RUNS = 10_000
PAIRS = 15
PAINTS = 5
MEMORY = Path("/dev/shm")
PAINTED = "performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)[0] || 0"


def figures(folder: Path) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as place:
        store = Store(Path(place) / "results")
        _fill(store)
        store.runs(1)  # the index is made by whoever looks first
        yield _list(store)
        yield _paint(store, Path(place))


def _fill(store: Store) -> None:
    for number in range(RUNS):
        about = {"board": {"name": f"board{number % 7}"}, "bundle": {"name": "digits", "digest": "ab" * 32}}
        with store.writer("measure", {**about, "cell": {"key": f"{number:032x}"}}) as writer:
            writer.set(headline="3 us", verdict=["ok"])


def _list(store: Store) -> Figure:
    """The whole command, beside a Python that does nothing and the same command where nothing is stored."""
    program = str(Path(sys.executable).with_name("deploy"))
    ours, empty, bare, cpu = [], [], [], []
    for _ in range(PAIRS):
        wall_s, cpu_s = _took([program, "runs", "list"], store.root)
        ours.append(wall_s)
        cpu.append(cpu_s)
        empty.append(_took([program, "runs", "list"], store.root / "nothing")[0])
        bare.append(_took([sys.executable, "-c", "pass"], store.root)[0])
    median, spread = float(np.median(ours)), f"{min(ours):.3f} to {max(ours):.3f}"
    told = f"{median:.3f} s ({spread}), {np.median(cpu):.3f} s of it at work; an empty store {np.median(empty):.3f}"
    told += f", Python alone {np.median(bare):.3f}; load {os.getloadavg()[0]:.0f} on {os.cpu_count()} CPUs"
    return Figure(f"{RUNS:,} runs: `deploy runs list`", "< 0.3 s", told, median < 0.3)


def _took(words: list[str], results: Path) -> tuple[float, float]:
    """Seconds by the clock, and of processor time."""
    environment = {**os.environ, "DEPLOY_RESULTS": str(results)}
    before, began = os.times(), time.perf_counter()
    subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=True)
    wall_s, after = time.perf_counter() - began, os.times()
    at_work = after.children_user + after.children_system - before.children_user - before.children_system
    return wall_s, at_work


def _paint(store: Store, place: Path) -> Figure:
    """From asking for the page to its first content on the screen, as the browser says."""
    what, goal = "  the dashboard's first paint", "< 1 s"
    browser = shutil.which("chromium")
    if browser is None:
        return Figure(what, goal, "not measured: no chromium", None)
    words = [sys.executable, "-m", "deploy", "farm", "dashboard", "--port", "0"]
    environment = {**os.environ, "DEPLOY_RESULTS": str(store.root), "DEPLOY_FARM": str(place / "farm")}
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as served:
        try:
            assert served.stdout
            address = served.stdout.readline().strip()
            painted = []
            with Browser(browser, place / "profile") as page:
                for _ in range(PAINTS):
                    page.open(address)
                    painted.append(page.until(PAINTED) / 1000)
                    page.open("about:blank")
        finally:
            served.terminate()
    median = float(np.median(painted))
    told = f"{median:.2f} s ({min(painted):.2f} to {max(painted):.2f}); load {os.getloadavg()[0]:.0f}"
    return Figure(what, goal, told, median < 1)
