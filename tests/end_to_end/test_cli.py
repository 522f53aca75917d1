"""The command line as a user meets it: the whole text of what goes wrong, exit codes, and what is kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pytest

from deploy.cli import VERBS, cli
from tests.conftest import GOLDEN, ROOT, Said
from tests.models import elementwise

DIGITS = GOLDEN / "digits_int8.tflite"


@pytest.fixture
def bundle(say: Said, tmp_path: Path) -> Path:
    code, _, err = say("build", DIGITS, "-o", "digits.bundle")
    assert code == 0, err
    return tmp_path / "digits.bundle"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """40 samples of the input's own type, so that nothing needs converting."""
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, x=rng.integers(-128, 128, (40, 8, 8, 1)).astype(np.int8), y=rng.integers(0, 10, 40))
    return path


def _commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found
            yield from _commands(found, (*path, name))


@pytest.mark.parametrize("path", [p for p in _commands(cli) if p], ids=" ".join)
def test_every_verbs_help_has_an_example_that_begins_with_the_verb(path: tuple[str, ...], say: Said) -> None:
    code, out, _ = say(*path, "--help")

    assert 0 == code
    assert f"  deploy {path[0]}" in out or f"deploy {path[0]} " in out.split("Example:")[1]


def test_the_tour_works_from_build_to_report(say: Said, images: Path, tmp_path: Path) -> None:
    for words in (
        ("build", DIGITS, "-o", "digits.bundle"),
        ("inspect", "digits.bundle"),
        ("push", "digits.bundle"),
        ("verify", "digits.bundle", "--exact"),
        ("run", "digits.bundle", "--data", images, "--count", "3"),
        ("measure", "digits.bundle", "--duration", "0.3", "--warmup", "1"),
        ("evaluate", "digits.bundle", "--data", images),
        ("runs",),
        ("runs", "show", "last"),
        ("runs", "export", "last", "-o", "run.json"),
        ("report", "last", "-o", "report.html"),
        ("doctor",),
        ("boards", "check"),
        ("boards", "clean", "local"),
    ):
        code, out, err = say(*words)
        assert code == 0, (words, err)
        assert out, words
    assert "<svg" not in (tmp_path / "report.html").read_text()  # the last run was an evaluation
    assert not (Path(os.environ["HOME"]) / ".local/share/deploy").exists()


@pytest.mark.alone
def test_a_measurement_says_median_interval_energy_runtime_and_verdict(say: Said, bundle: Path) -> None:
    code, out, _ = say("measure", bundle, "--duration", "0.3", "--warmup", "1")

    assert 0 == code
    words = re.sub(r"\d[\d,.]*", "#", out)
    # Where restarts disagree, as on a busy machine, the interval is so wide that it leaves "us", or begins below 0.
    assert re.search(r"latency    median # us \[-?# \ws, # \w?s\]  # %, n = #", words), out
    assert "verdict" in words
    assert "energy: not measured (no meter on local)\n" in out or "measured:" in out


def test_json_goes_to_standard_output_and_nothing_else_does(say: Said, bundle: Path, images: Path) -> None:
    for words in (
        ("build", DIGITS, "-o", "other.bundle"),
        ("inspect", bundle),
        ("push", bundle),
        ("verify", bundle),
        ("run", bundle),
        ("measure", bundle, "--duration", "0.1", "--warmup", "0.5"),
        ("evaluate", bundle, "--data", images),
        ("boards", "list"),
        ("boards", "check"),
        ("runs", "list"),
        ("runs", "show", "last"),
        ("doctor",),
    ):
        code, out, err = say(*words, "--json")
        assert code == 0, (words, err)
        lines = out.splitlines() if words[0] == "measure" else [out]  # a line for each event
        assert all(json.loads(line) for line in lines), words
        assert lines, words


def test_the_measured_samples_can_be_taken_out_in_three_formats(say: Said, bundle: Path, tmp_path: Path) -> None:
    _, out, _ = say("measure", bundle, "--duration", "0.1", "--warmup", "0.5", "--json")
    n = json.loads(out.splitlines()[-1])["latency"]["n"]
    for file in ("run.json", "run.npz", "run.csv"):
        code, _, err = say("runs", "export", "last", "-o", file)
        assert code == 0, err

    exported = json.loads((tmp_path / "run.json").read_text())["arrays"]
    assert n == sum(len(values) for name, values in exported.items() if name.startswith("latency_ns."))
    with np.load(tmp_path / "run.npz") as arrays:
        assert exported["latency_ns.1"] == arrays["latency_ns.1"].tolist()
    assert n + 1 == len((tmp_path / "run.csv").read_text().splitlines())


# What can be wrong with the command line: exit code 2.


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("mesure",), "error: no verb 'mesure'; did you mean 'measure'?"),
        (("push",), "error: Missing argument 'BUNDLE'."),
        (("build", "x", "--shape", "7"), "error: Invalid value for --shape: '7' is not NAME=1,2,3"),
    ],
)
def test_a_command_line_that_cannot_be_meant_exits_with_2(words: tuple[str, ...], error: str, say: Said) -> None:
    code, _, err = say(*words)

    assert 2 == code
    assert error == err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint:  `deploy")


# What can be wrong with what it names: exit code 1, one error, a hint.


def test_an_unknown_board_suggests_the_nearest(say: Said, bundle: Path) -> None:
    code, _, err = say("push", "--board", "locla", bundle)

    assert 1 == code
    assert (
        err == "error: no board 'locla' in the embedded registry; did you mean 'local'?\n"
        "hint:  `deploy boards` lists them, `deploy boards add` registers one\n"
    )


def test_a_board_file_that_is_not_there_is_named(say: Said) -> None:
    code, _, err = say("--boards", "lab.yaml", "boards")

    assert 1 == code
    assert (
        err == "error: lab.yaml: No such file or directory\n"
        "hint:  `deploy --boards FILE ...` or $DEPLOY_BOARDS name the board file\n"
    )


def test_a_board_file_with_a_typo_names_line_and_key(say: Said, tmp_path: Path) -> None:
    (tmp_path / "boards.yaml").write_text(
        "schema: 1\nboards:\n  pi:\n    kind: raspberry-pi\n    transport: {kind: ssh, hots: pi.local}\n"
    )

    code, _, err = say("boards")

    assert 1 == code
    assert "error: boards.yaml:5: boards.pi.transport has no key 'hots'; did you mean 'host'?\n" == err


def test_a_board_on_a_serial_port_that_is_not_there_says_how_to_find_those_that_are(say: Said, tmp_path: Path) -> None:
    (tmp_path / "boards.yaml").write_text(
        "schema: 1\nboards:\n  pynq:\n    kind: pynq\n    transport: {kind: serial, port: /dev/ttyUSB77}\n"
    )

    code, _, err = say("boards", "check", "pynq")

    assert 1 == code
    assert (
        "error: board 'pynq' cannot be reached (serial /dev/ttyUSB77 at 115200 baud): there is no such port\n"
        "hint:  `deploy boards discover` lists those that are there\n" == err
    )


def test_serial_ports_and_machines_of_the_network_are_listed(say: Said) -> None:
    code, out, _ = say("boards", "discover", "--json", "--seconds", "0.1")

    assert 0 == code
    assert {"ports": list, "hosts": list} == {key: type(found) for key, found in json.loads(out).items()}


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"hello", b"\xff\0\0\0TFL3" + bytes(30)], ids=["empty", "zip", "text", "short"]
)
def test_a_file_that_is_no_model_is_named(content: bytes, say: Said, tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(content)
    (tmp_path / "net.bundle").write_bytes(content)
    for words, start in (
        (("build", "net.tflite"), "error: net.tflite: not a TFLite file"),
        (("inspect", "net.tflite"), "error: net.tflite: not a TFLite file"),
        (("push", "net.bundle"), "error: net.bundle: not a bundle"),
    ):
        code, _, err = say(*words)
        assert 1 == code
        assert err.startswith(start)
        assert len(err.splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bundle", "net.tflite"]


def test_an_operator_that_the_runtime_lacks_is_named(say: Said, tmp_path: Path) -> None:
    (tmp_path / "npu.tflite").write_bytes(elementwise(custom="ethos-u"))

    code, _, err = say("run", "npu.tflite")

    assert 1 == code
    assert err.startswith("error: npu: Encountered unresolved custom op: ethos-u.")
    assert err.endswith("(board 'local')\nhint:  `deploy inspect MODEL` lists its operators\n")


@pytest.mark.parametrize(
    ("arrays", "error"),
    [
        (
            {"pictures": np.zeros(3)},
            "error: d.npz has no test data: expected 'x_test' or 'xte' or 'x', found 'pictures' [3]",
        ),
        ({"x": np.zeros((2, 8, 8))}, "error: d.npz has no labels for 'x': expected 'y', found 'x' [2, 8, 8]"),
        (
            {"x": np.zeros((2, 9, 9), np.int8), "y": np.zeros(2, int)},
            "error: input 'serving_default_keras_tensor:0' is int8 [1, 8, 8, 1]; a sample is int8 [9, 9]",
        ),
        (
            {"x": np.zeros((2, 8, 8), np.complex64), "y": np.zeros(2, int)},
            "error: input 'serving_default_keras_tensor:0' is int8 [1, 8, 8, 1]; a sample is complex64 [8, 8]",
        ),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_says_what_was_expected_and_what_came(
    arrays: dict[str, Any], error: str, say: Said, bundle: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", allow_pickle=False, **arrays)

    code, _, err = say("evaluate", bundle, "--data", "d.npz")

    assert 1 == code
    assert error in err.splitlines()


def test_a_bug_shows_no_traceback_unless_asked_for(say: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the user's that raises stands in for a bug of ours."""
    (tmp_path / "broken_module_of_a_user.py").write_text("def data():\n    return 1 / 0\n")
    code, _, err = say("evaluate", DIGITS, "--data", "broken_module_of_a_user:data")

    assert 1 == code
    assert err.startswith("error: ")
    assert "division by zero" in err


def test_completion_knows_verbs_and_boards(tmp_path: Path) -> None:
    def complete(line: str) -> list[str]:
        words = line.split(" ")
        environment = {
            **os.environ,
            "_DEPLOY_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        }
        done = subprocess.run(
            [Path(sys.executable).with_name("deploy")], env=environment, capture_output=True, text=True, check=False
        )
        return [entry.partition(",")[2] for entry in done.stdout.splitlines()]

    assert complete("deploy pu") == ["push"]
    assert complete("deploy push --board lo") == ["local"]
    assert set(VERBS) == set(complete("deploy "))


# Ctrl-C.


def _start(*words: str | Path, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def _start_measuring(bundle: Path) -> subprocess.Popen[str]:
    """A long measurement of which some latencies have arrived."""
    process = _start("measure", bundle, "--duration", "60", "--warmup", "0.2", "--kernels", "off", cwd=bundle.parent)
    results = Path(os.environ["DEPLOY_RESULTS"])
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 0 for path in results.glob("*/latency_ns.1.bin")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_ctrl_c_keeps_what_had_arrived_marks_it_incomplete_and_leaves_no_process(bundle: Path, say: Said) -> None:
    process = _start_measuring(bundle)
    family = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert 1 == process.returncode
    assert err.endswith("error: interrupted\nhint:  what had arrived is kept: `deploy runs list`\n")
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    _, out, _ = say("runs", "show", "last", "--json")
    record = json.loads(out)
    assert (record["status"], record["reason"]) == ("incomplete", "interrupted (Ctrl-C)")
    assert record["arrays"]["latency_ns.1"]["length"] > 0


@pytest.mark.parametrize("verb", ["measure", "evaluate"])
@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.3, 0.6])
def test_ctrl_c_at_any_point_shows_one_error_and_no_traceback(
    verb: str, after_s: float, bundle: Path, images: Path
) -> None:
    words = {"measure": ["measure", bundle, "--duration", "60"], "evaluate": ["evaluate", bundle, "--data", images]}
    process = _start(*words[verb], cwd=bundle.parent)
    time.sleep(after_s)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    # Before Python has come as far as our first line it dies as any program does; an evaluation may be done.
    assert process.returncode in (1, -signal.SIGINT, *([0] if verb == "evaluate" else []))
    too_early = process.returncode == -signal.SIGINT or err.startswith("Fatal Python error: init_")
    assert "Traceback" not in err or too_early
    assert not re.search("^error: (?!interrupted)", err, re.MULTILINE)


def test_readings_of_a_board_that_dies_are_kept_and_marked(bundle: Path, say: Said) -> None:
    process = _start_measuring(bundle)
    agents = [p for p in psutil.Process(process.pid).children(recursive=True) if "devices" in p.cmdline()]

    agents[0].kill()
    _, err = process.communicate(timeout=30)

    assert 1 == process.returncode
    assert "\nerror: the agent on 'local' ended with status -9\n" in err
    _, out, _ = say("runs", "show", "last", "--json")
    record = json.loads(out)
    assert "incomplete" == record["status"]
    assert record["reason"].startswith("the agent on 'local' ended")
    assert record["arrays"]["latency_ns.1"]["length"] > 0


# Comparing


@pytest.mark.alone
def test_two_bundles_are_measured_in_turns_compared_and_gated(say: Said, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other.tflite").write_bytes(DIGITS.read_bytes())
    quick = ("--duration", "0.2", "--restarts", "4", "--warmup", "0", "--kernels", "off")

    code, out, err = say("measure", bundle, "other.tflite", "--interleave", *quick)
    assert 0 == code, err
    first, second = re.findall(r"^stored: (\S+)$", out, re.MULTILINE)
    code, out, _ = say("compare", first, second)
    assert 0 == code and "4 pairs" in out and "latency" in out
    _, out, _ = say("compare", first, second, "--json")
    (effect,) = json.loads(out)[0]["effects"]
    assert effect["paired"] and effect["low"] <= effect["ratio"] <= effect["high"]

    code, out, _ = say("gate", "--baseline", first, second, "--max-slowdown", "900%", "--junit", "gate.xml")
    assert (0, True) == (code, out.endswith(f"passed: {second} against {first}\n"))
    assert '<testcase classname="deploy.gate.other" name="latency"' in (tmp_path / "gate.xml").read_text()
    code, out, _ = say("gate", "--baseline", first, second, "--max-slowdown", "0%", "--max-energy", "5%")
    assert code in (3, 4)  # no energy was measured, so it never passes
    assert "undecided  energy: no rail was measured in either run" in out


def test_runs_that_differ_in_more_than_their_bundle_are_refused_until_that_is_allowed(say: Said, bundle: Path) -> None:
    quick = ("--duration", "0.1", "--restarts", "1", "--warmup", "0", "--kernels", "off")
    runs = []
    for more in ((), ("--threads", "2")):
        _, out, _ = say("measure", bundle, *quick, *more)
        runs += re.findall(r"^stored: (\S+)$", out, re.MULTILINE)

    code, _, err = say("compare", *runs)
    assert 2 == code
    assert (
        f"error: {runs[1]} was measured with other threads or CPUs than {runs[0]}: (1) and (2)\n"
        "hint:  `--mix-threads` compares them all the same\n" == err
    )
    assert 0 == say("compare", *runs, "--mix-threads")[0]


def test_strict_fails_unless_the_verdict_is_ok(say: Said, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warm-up nothing is steady.  Who is strict with host keys has not asked for a verdict."""
    words = ("measure", bundle, "--duration", "0.1", "--restarts", "1", "--warmup", "0", "--kernels", "off")

    monkeypatch.setenv("DEPLOY_STRICT", "1")
    assert 0 == say(*words)[0]
    code, out, _ = say(*words, "--strict")
    assert 1 == code
    assert "`deploy explain not-steady` says what that means and what to do\n" in out


def test_a_verdict_is_explained_and_a_near_one_suggested(say: Said) -> None:
    assert (0, True) == (lambda said: (said[0], said[1].startswith("throttled\n  The board throttled")))(
        say("explain", "throttled")
    )
    assert (2, "error: no verdict 'throtled'; did you mean 'throttled'?\nhint:  `deploy explain` lists all\n") == (
        lambda said: (said[0], said[2])
    )(say("explain", "throtled"))
    code, out, _ = say("explain")
    assert 0 == code and out.count("\n  ") >= 2 * 15


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("measure", "a.bundle", "b.bundle"), "error: 2 bundles\nhint:  `--interleave` lets them take turns"),
        (("measure", "a.bundle", "--interleave"), "error: --interleave needs two bundles or more\n"),
        (("measure", "a", "--pin", "3-1"), "error: Invalid value for '--pin': '3-1' is no list of CPUs"),
        (("measure", "a", "--until", "5"), "error: Invalid value for '--until': '5' is not between 0.002 and 0.5"),
        (("compare", "last"), "error: there is nothing to compare with\n"),
        (("gate", "--baseline", "x", "y"), "error: no limit given\n"),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_runs(say: Said, words: tuple[str, ...], expected: str) -> None:
    code, out, err = say(*words)

    assert (2, "") == (code, out)
    assert err.startswith(expected), err


@pytest.mark.alone
def test_a_profile_adds_up_and_is_stored(say: Said, bundle: Path) -> None:
    code, out, err = say("profile", bundle, "--duration", "0.1", "--restarts", "2", "--group", "3", "--kernels", "off")

    assert 0 == code, err
    assert "CONV_2D, CONV_2D, CONV_2D" in out and "the sum differs by" in out
    assert " profile " in say("runs", "list")[1]
