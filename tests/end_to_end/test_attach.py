"""A host that vanishes in the middle of a measurement: the board goes on, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deploy.boards import LOCAL
from deploy.farm.leases import default_owner
from deploy.measure import spools
from deploy.results.store import Run, Store
from deploy.session import connect
from tests.conftest import GOLDEN, ROOT, Said


@pytest.fixture
def measuring(say: Said, tmp_path: Path) -> Iterator[psutil.Process]:
    """A host in the middle of a measurement of some seven seconds, whose first latencies have arrived."""
    say("build", GOLDEN / "digits_int8.tflite", "-o", "digits.bundle")
    say("push", "digits.bundle", "--kernels", "off")  # nothing here depends on them, and they take long to build
    words = ["measure", "digits.bundle", "--duration", "6", "--warmup", "0.3", "--kernels", "off"]
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in _results().glob("*/latency_ns.1.bin")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    yield psutil.Process(process.pid)
    for left in family:
        if left.is_running():
            left.kill()
    process.kill()
    process.wait()


def _results() -> Path:
    return Path(os.environ["DEPLOY_RESULTS"])


def _runs() -> dict[str, Run]:
    """Status -> run, of the measurements."""
    store = Store(_results())
    return {run.record["status"]: run for run in store if run.record["kind"] == "measure"}


def _waiting() -> list[dict[str, Any]]:
    with connect(LOCAL, _results() / "known_hosts") as session:
        return spools(session)


def test_a_killed_hosts_measurement_is_picked_up_with_nothing_lost(measuring: psutil.Process, say: Said) -> None:
    measuring.kill()
    measuring.wait()

    code, out, err = say("attach", "--board", "local")

    assert 0 == code, err
    assert "latency    median " in out
    runs = _runs()
    assert {"complete", "incomplete"} == set(runs)
    cut, whole = runs["incomplete"], runs["complete"]
    assert cut.id == whole.record["attached"]["run"]
    assert cut.record["bundle"] == whole.record["bundle"]
    assert 3 == len(whole.restarts("latency_ns"))
    # What the killed host had on disk is the beginning of what the board has.
    first = np.fromfile(cut.folder / "latency_ns.1.bin", "<i8")
    assert len(first) > 0
    assert np.array_equal(first, whole.restarts("latency_ns")[0][: len(first)])
    assert whole.record["latency"]["n"] == sum(map(len, whole.restarts("latency_ns")))
    assert [] == _waiting()


def test_nothing_runs_beside_a_measurement_and_the_message_says_whose_it_is(
    measuring: psutil.Process, say: Said
) -> None:
    for words in (("measure", "digits.bundle", "--duration", "1"), ("run", "digits.bundle")):
        code, _, err = say(*words, "--kernels", "off", "--wait", "0")

        assert 1 == code
        assert (
            f"error: board 'local' is held by {default_owner()} (measure)\n"
            "hint:  `--wait 10m` waits in the queue for so long; `deploy lease show` lists who has what\n" == err
        )


def test_a_board_that_measures_for_a_dead_host_is_busy_and_the_hint_says_how_to_wait(
    measuring: psutil.Process, say: Said
) -> None:
    measuring.kill()
    measuring.wait()

    code, _, err = say("measure", "digits.bundle", "--duration", "1", "--kernels", "off")

    assert 1 == code
    assert (
        "error: digits: another conversation runs a model on this board (board 'local')\n"
        "hint:  `deploy attach --board local` waits for a measurement that lost its host; `--evict` ends it\n" == err
    )


def test_whoever_has_the_board_may_end_what_runs_for_a_dead_host(measuring: psutil.Process, say: Said) -> None:
    measuring.kill()
    measuring.wait()

    code, out, err = say("run", "digits.bundle", "--kernels", "off", "--evict")

    assert (0, "") == (code, err)
    assert out.startswith("[0] ")
    assert [False] == [spool["grows"] for spool in _waiting()]
    code, _, err = say("attach", "--board", "local")
    assert err.startswith("error: a newer holder of the board has ended this (board 'local')\n")
    assert ["incomplete"] == [run.record["status"] for run in Store(_results()) if run.record.get("attached")]


def test_an_agent_that_dies_too_leaves_what_it_had_said(measuring: psutil.Process, say: Said) -> None:
    agent = next(p for p in measuring.children(recursive=True) if "devices" in p.cmdline())
    measuring.kill()
    agent.kill()
    measuring.wait()

    code, _, err = say("attach", "--board", "local")

    assert 1 == code
    assert err.startswith("error: the agent on 'local' ended before the measurement did\n")
    kept = [run for run in Store(_results()) if run.record.get("attached")]
    assert ["incomplete"] == [run.record["status"] for run in kept]
    assert len(kept[0].restarts("latency_ns")[0]) > 0
    assert [] == _waiting()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_host_that_ends_on_purpose_takes_its_measurement_along(
    how: signal.Signals, measuring: psutil.Process, say: Said
) -> None:
    measuring.send_signal(how)
    measuring.wait(20)

    code, out, error = say("attach", "--board", "local")

    assert (0, "local: nothing to attach to\n") == (code, out), error


def test_what_waits_on_a_board_can_be_listed(measuring: psutil.Process, say: Said) -> None:
    measuring.kill()
    measuring.wait()

    _, out, _ = say("attach", "--board", "local", "--list", "--json")

    (entry,) = json.loads(out)
    assert ("digits", True) == (entry["bundle"], entry["grows"])
