"""Who else used the CPUs: what the kernel counted, less what was ours."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devices import neighbours
from devices.neighbours import Neighbours

HZ = os.sysconf("SC_CLK_TCK")


def board(root: Path, busy_s: float, stolen_s: float = 0.0, **processes: tuple[int, int, float]) -> None:
    """/proc, with `busy_s` of all CPUs since boot, and processes by name: number, parent, seconds."""
    (root / "proc").mkdir(exist_ok=True)
    ticks = round(busy_s * HZ)
    (root / "proc/stat").write_text(f"cpu  {ticks} 0 0 999 5 0 0 {round(stolen_s * HZ)} 0 0\ncpu0 1 2 3\n")
    for name, (pid, parent, used_s) in processes.items():
        (root / f"proc/{pid}").mkdir(exist_ok=True)
        fields = ["S", parent, *[0] * 9, round(used_s * HZ), 0, *[0] * 6, 4711]
        (root / f"proc/{pid}/stat").write_text(f"{pid} ({name}) {' '.join(map(str, fields))}\n")


@pytest.fixture
def two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which two seconds pass between any two looks, in which we use no CPU."""
    passed = iter(range(0, 1000, 2))
    monkeypatch.setattr(neighbours.time, "monotonic", lambda: float(next(passed)))
    monkeypatch.setattr(neighbours, "_own_s", lambda: 0.0)


def test_what_others_used_is_told_with_their_names(tmp_path: Path, two_seconds: None) -> None:
    board(tmp_path, 100, 7, cron=(5, 1, 1.0), ours=(6, os.getpid(), 3.0), idle=(7, 1, 9.0))
    before = Neighbours(tmp_path)
    board(tmp_path, 103, 8, cron=(5, 1, 2.5), ours=(6, os.getpid(), 9.0), make=(8, 1, 0.5))

    found = before.since()

    assert found == {
        "busy_cpus": 1.5,
        "stolen_cpus": 0.5,
        "processes": [{"pid": 5, "name": "cron", "cpus": 0.75}, {"pid": 8, "name": "make", "cpus": 0.25}],
    }


def test_a_kernel_that_does_not_tell_and_a_run_too_short_to_tell_give_nothing(tmp_path: Path) -> None:
    assert Neighbours(tmp_path).since() is None
    board(tmp_path, 100)
    assert Neighbours(tmp_path).since() is None  # the counters advance in steps of 10 ms


def test_a_real_neighbour_is_seen_and_our_own_child_is_not() -> None:
    """The kernel here; a child that was waited for counts as ours, one of another parent does not."""
    spin = "import time\nend = time.monotonic() + 1.2\nwhile time.monotonic() < end: pass"
    before = Neighbours(Path("/"))
    started = os.times()
    # Through a shell that goes away first, so that the spinner is nobody's child here.
    subprocess.run(["sh", "-c", f"{sys.executable} -c '{spin}' & true"], check=True)
    time.sleep(1.4)

    found = before.since()

    assert found is not None
    assert found["busy_cpus"] > 0.2
    assert os.times().children_user - started.children_user < 0.5
