"""The pytest plugin, as a user's tests see it: a pytest of its own, with real boards of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deploy.farm.leases import Leases
from tests.conftest import GOLDEN, ROOT

BOARDS = """\
schema: 1
boards:
  one: {{kind: generic, transport: {{kind: local}}, root: {folder}/one, tags: [desk]}}
  two: {{kind: generic, transport: {{kind: local}}, root: {folder}/two, tags: [desk], cpu: {{arch: x86_64}}}}
  far: {{kind: jetson, transport: {{kind: ssh, host: 127.0.0.1, port: 1}}, tags: [attic]}}
"""
USERS = """\
import pytest

def test_it_answers(board):
    assert board.session.ping() > 0 and board.identity["machine"]

@pytest.mark.needs("x86_64")
def test_it_is_fast(board, push, measure):
    push("digits.tflite", kernels="off")
    measured = measure(duration_s=0.1, restarts=1, warmup_max_s=0.1)
    assert measured.latency.median_ns < 50_000_000

@pytest.mark.needs("jetson", "memory>=1G")
def test_it_runs_on_a_jetson(board):
    assert False

def test_nothing_of_this_needs_a_board():
    pass
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "boards.yaml").write_text(BOARDS.format(folder=tmp_path))
    (tmp_path / "test_users.py").write_text(USERS)
    shutil.copy(GOLDEN / "digits_int8.tflite", tmp_path / "digits.tflite")
    return tmp_path


def run(project: Path, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "deploy.pytest_plugin", "-p", "no:cacheprovider", "-rs", *words],
        cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_users_test_runs_on_every_board_with_the_tag_and_junit_gets_the_numbers(project: Path) -> None:
    code, said = run(project, "--tag", "desk", "--junitxml=out.xml")

    assert 0 == code, said
    assert "4 passed, 3 skipped" in said
    assert "board one is no jetson" in said
    assert "board one was never reached, and boards.yaml does not say whether it has x86_64" in said
    cases = {case.get("name"): case for case in ElementTree.parse(project / "out.xml").iter("testcase")}
    ran = {"test_it_answers[one]", "test_it_answers[two]", "test_it_is_fast[two]", "test_nothing_of_this_needs_a_board"}
    assert ran == {name for name, case in cases.items() if case.find("skipped") is None}
    told = {p.get("name"): p.get("value") for p in cases["test_it_is_fast[two]"].iter("property")}
    assert {"board", "bundle", "run", "latency_median_ns", "verdict"} <= set(told)
    assert "two" == told["board"]
    assert float(told["latency_median_ns"] or 0) > 0
    assert (Path(os.environ["DEPLOY_RESULTS"]) / str(told["run"])).is_dir()
    leases = Leases(Path(os.environ["DEPLOY_FARM"]) / "farm.sqlite")
    assert [] == leases.show()
    assert [2, 3] == [leases.take(board).token for board in ("one", "two")]  # one lease for each test that ran there
    leases.close()


def test_without_a_board_it_says_how_to_name_one_and_with_an_unknown_one_which_there_are(project: Path) -> None:
    code, said = run(project)
    assert (0, True) == (code, "1 passed, 3 skipped" in said)
    assert "needs a board: --board NAME or --tag TAG (of boards.yaml)" in said

    code, said = run(project, "--board", "onee")
    assert 4 == code
    assert "no board 'onee' in boards.yaml; did you mean 'one'?" in said


def test_a_board_that_is_held_is_waited_for_and_then_the_test_says_by_whom(project: Path) -> None:
    leases = Leases(Path(os.environ["DEPLOY_FARM"]) / "farm.sqlite")
    leases.take("one", owner="anna", for_s=600, kept=True, purpose="debugging")

    code, said = run(project, "--board", "one", "--board-wait", "0.1", "-k", "answers")

    assert 1 == code
    assert "LeaseHeld: board 'one' is held by anna (debugging), kept for another 10 min; waited for 1 s" in said
    leases.close()


def test_it_costs_nothing_where_no_test_needs_a_board(project: Path) -> None:
    """Every run of pytest of whoever has deploy installed imports it."""
    program = "import sys, deploy.pytest_plugin; print([m for m in sys.modules if m.startswith('deploy')])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert "['deploy', 'deploy.pytest_plugin']\n" == done.stdout
