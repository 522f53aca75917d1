"""`deploy farm` as it is typed, on boards of this machine; and the report of a plan."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.cli import execute
from deploy.errors import StoreError
from deploy.results import matrix
from deploy.results.scatter import Point, front
from deploy.results.store import Store
from tests.conftest import GOLDEN
from tests.farm.test_dashboard import measured

PLAN = """\
schema: 1
bundles: {digits: digits.tflite}
boards: [{tag: lab, each: true}]
settings: {s: {duration: 0.05, restarts: 1, warmup: 0.05, windows: 0, kernels: off}}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOLDEN / "digits_int8.tflite", tmp_path / "digits.tflite")
    roots = {name: tmp_path / name for name in ("one", "two")}
    boards = {
        n: {"kind": "generic", "transport": {"kind": "local"}, "root": str(r), "tags": ["lab"]}
        for n, r in roots.items()
    }
    (tmp_path / "boards.yaml").write_text(json.dumps({"schema": 1, "boards": boards}))
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def test_a_plan_runs_on_real_agents_and_its_report_is_a_matrix(lab, capfd):
    assert 0 == execute(["farm", "run", "plan.yaml", "--json"])
    cells = json.loads(capfd.readouterr().out)
    assert 0 == execute(["farm", "run", "plan.yaml"])
    again = capfd.readouterr().out
    assert 0 == execute(["report", "plan.yaml", "-o", "plan.html"])
    page = (lab / "plan.html").read_text()

    assert {("digits/one/s", "done", "one"), ("digits/two/s", "done", "two")} == {
        (cell["cell"], cell["state"], cell["board"]) for cell in cells
    }
    assert "plan: 2 cells: 2 known already\n" == again
    assert [] == [text for text in ("digits", "one", "two", cells[0]["run"]) if text not in page]


def test_a_plan_that_evaluates_has_the_accuracy_of_each_cell_on_its_board(lab, capfd):
    """LiteRT says what the answers are; a quarter of the labels say otherwise."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(lab / "digits.tflite"))
    interpreter.allocate_tensors()
    given, answered = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    samples = np.random.default_rng(1).integers(-128, 128, (40, *given["shape"][1:]), given["dtype"])
    labels = []
    for sample in samples:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        labels.append(int(interpreter.get_tensor(answered["index"]).argmax()))
    labels[30:] = [(label + 1) % 10 for label in labels[30:]]
    np.savez(lab / "labelled.npz", x_test=samples, y_test=np.array(labels))
    evaluating = PLAN.replace("kernels: off", "kernels: off, evaluate: labelled.npz").replace("tag: lab", "board: one")
    (lab / "plan.yaml").write_text(evaluating.replace(", each: true", ""))

    assert 0 == execute(["farm", "run", "plan.yaml", "--json"])
    (cell,) = json.loads(capfd.readouterr().out)
    assert 0 == execute(["report", "plan.yaml", "-o", "plan.html"])
    assert 0 == execute(["runs", "show", cell["run"], "--json"])
    accuracy = json.loads(capfd.readouterr().out.partition("\n")[2])["accuracy"]
    (lab / "plan.yaml").write_text((lab / "plan.yaml").read_text().replace("evaluate:", "samples: 20, evaluate:"))
    assert 0 == execute(["farm", "run", "plan.yaml", "--json"])
    (fewer,) = json.loads(capfd.readouterr().out)

    assert (30, 40) == (accuracy["correct"], accuracy["samples"])
    assert "75.00%" in (lab / "plan.html").read_text()
    assert "done" == fewer["state"]


def test_data_that_has_no_labels_ends_a_plan_before_anything_runs(lab, capfd):
    np.savez(lab / "bare.npz", x_test=np.zeros((4, 8, 8, 1), np.float32))
    (lab / "plan.yaml").write_text(PLAN.replace("kernels: off", "kernels: off, evaluate: bare.npz"))

    assert 1 == execute(["farm", "run", "plan.yaml"])
    assert "bare.npz has no labels for 'x_test'" in capfd.readouterr().err
    assert [] == Store(Path(os.environ["DEPLOY_RESULTS"])).runs()


def test_check_says_what_would_be_done_and_does_nothing(lab, capfd):
    assert 0 == execute(["farm", "run", "plan.yaml", "--check"])

    assert "digits/one/s  on one\ndigits/two/s  on two\n" == capfd.readouterr().out
    assert [] == Store(Path(os.environ["DEPLOY_RESULTS"])).runs()


def test_a_plan_that_makes_no_sense_is_refused_before_anything_runs(lab, capfd):
    (lab / "plan.yaml").write_text(PLAN.replace("tag: lab", "tag: lap"))

    assert 1 == execute(["farm", "run", "plan.yaml"])

    said = capfd.readouterr()
    assert "error: plan.yaml:3: no tag 'lap'; did you mean 'lab'?\n" in said.err and "" == said.out


def test_ctrl_c_ends_it_at_once_and_the_next_run_goes_on(lab):
    (lab / "plan.yaml").write_text(PLAN.replace("duration: 0.05", "duration: 60"))
    words = [sys.executable, "-m", "deploy", "farm", "run", "plan.yaml"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    runs = Path(os.environ["DEPLOY_RESULTS"])
    while not list(runs.glob("2*/latency_ns.1.bin")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert (1, "") == (process.returncode, out)
    assert "error: interrupted" in err and "Traceback" not in err
    assert {"incomplete"} == {row["status"] for row in Store(runs).runs()}


def test_a_plan_that_was_never_run_has_no_report(lab, capfd):
    assert 1 == execute(["report", "plan.yaml"])

    assert "error: no plan 'plan' was run" in capfd.readouterr().err


def test_what_is_missing_in_a_matrix_is_said_and_never_zero(tmp_path):
    store = Store(tmp_path)
    cell = {"bundle": "net", "setting": "s", "board": "desk", "hint": None, "error": None, "run": None}
    run = measured(store)
    matrix.remember(
        store,
        "p",
        [
            {**cell, "cell": "net/desk/s", "place": "desk", "state": "done", "run": run},
            {**cell, "cell": "net/attic/s", "place": "attic", "state": "failed", "error": "it is <gone>"},
            {**cell, "cell": "net/shed/s", "place": "shed", "state": "done", "run": "20260301-120000-aaaa"},
        ],
    )

    page = matrix.render(store, "p")

    assert [] == [text for text in ("90.00%", "it is &lt;gone&gt;", "the run is gone", run) if text not in page]
    assert "0 uJ" not in page


def test_a_plan_s_memory_of_another_version_is_refused(tmp_path):
    matrix.remember(Store(tmp_path), "p", [])
    path = tmp_path / "plans" / "p.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7'))

    with pytest.raises(StoreError) as caught:
        matrix.recall(Store(tmp_path), "p")

    assert f"{path}: schema 7; this version reads 1" == str(caught.value)


def test_the_front_is_what_no_other_point_beats_in_all_that_is_known():
    fast = Point("fast", "fast", 1.0, 0.80, 5.0)
    good = Point("good", "good", 3.0, 0.95, 9.0)
    frugal = Point("frugal", "frugal", 4.0, 0.90, 1.0)
    worse = Point("worse", "worse", 4.0, 0.90, 2.0)
    unmetered = Point("unmetered", "unmetered", 2.0, 0.90, None)  # beats nobody whose energy is known
    beaten = Point("beaten", "beaten", 3.5, 0.94, None)  # by `good`, in what is known of it

    assert [fast, unmetered, good, frugal] == front([worse, frugal, beaten, good, unmetered, fast])


def test_a_run_that_was_packed_is_the_same_in_another_store(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    run = measured(here)
    packed = here.pack(run)

    assert [run, run] == there.adopt([packed, packed])
    assert here.get(run).array("latency_ns.1").tolist() == there.get(run).array("latency_ns.1").tolist()
    assert [row["id"] for row in there.runs()] == [run]
    here.drop(run)
    assert [] == here.runs()


@pytest.mark.parametrize(
    "damage", [lambda d: d[:100], lambda d: b"", lambda d: d.replace(b"record.json", b"..record.js")]
)
def test_a_packed_run_that_is_none_leaves_nothing_behind(tmp_path, damage):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")

    with pytest.raises(StoreError):
        there.adopt([damage(here.pack(measured(here)))])

    assert [] == there.runs()
