"""A board of kind pynq-sim: the accelerator behind the ordinary verbs, and the CPU where it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import fleet, inference
from deploy.boards import Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.results.store import Run, Store
from deploy.session import Session
from tests.conftest import Said
from tests.rtl.cases import CASES
from tests.rtl.conftest import built_rtl, rtl  # noqa: F401
from tests.rtl.graphs import Graph
from tests.rtl.machines import corpus_model, reference

pytestmark = pytest.mark.usefixtures("rtl")
Open = Callable[..., Session]


class Silent:
    def note(self, text: str) -> None: ...

    def bytes(self, done: int, total: int) -> None: ...


@pytest.fixture
def boards(private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Board]:
    """``boards(hangs_after=1)``: the board `fpga`, whose accelerator behaves like that; also in boards.yaml."""
    monkeypatch.setenv("DEPLOY_BOARDS", str(tmp_path / "boards.yaml"))

    def make(**settings: Any) -> Board:
        overlay = tmp_path / "overlay.json"
        overlay.write_text(json.dumps(settings))
        entry = {
            "kind": "pynq-sim",
            "transport": {"kind": "local"},
            "root": str(private_home / "fpga"),
            "overlay": str(overlay),
        }
        local = {"kind": "generic", "transport": {"kind": "local"}, "root": str(private_home / "board")}
        (tmp_path / "boards.yaml").write_text(json.dumps({"schema": 1, "boards": {"fpga": entry, "local": local}}))
        return Board.model_validate({"name": "fpga", **entry})

    make()
    return make


def bundled(folder: Path, model: bytes, vectors: int = 0, name: str = "net") -> Bundle:
    (folder / f"{name}.tflite").write_bytes(model)
    bundle = build(str(folder / f"{name}.tflite"), name=name, vectors=vectors).bundle
    bundle.write(folder / f"{name}.bundle")
    return bundle


def brought(session: Session, bundle: Bundle) -> inference.Loaded:
    fleet.bring(session, bundle, Silent(), "auto")
    return inference.load(session, bundle=bundle.digest)


def answers(session: Session, model: inference.Loaded, values: np.ndarray) -> list[np.ndarray]:
    (outputs,) = inference.infer(session, model, [[values]])
    return outputs


def expected(model: bytes, values: np.ndarray) -> list[np.ndarray]:
    stock = reference(model, values)
    return [stock.get_tensor(detail["index"]) for detail in stock.get_output_details()]


def runs(home: Path, kind: str) -> list[Run]:
    store = Store(home / "results")
    return [store.get(row["id"]) for row in reversed(list(store.runs())) if row["kind"] == kind]


def test_a_pushed_model_answers_from_the_accelerator_as_the_reference_kernels_do(boards, open_session: Open, tmp_path):
    graph, model = CASES["CPU in the middle"]()
    session = open_session(boards())
    loaded = brought(session, bundled(tmp_path, model))
    values = graph.values()

    for wanted, got in zip(expected(model, values), answers(session, loaded, values), strict=True):
        np.testing.assert_array_equal(wanted, got)
    assert ["accelerator", None, "accelerator"] == [node["kernel"] for node in loaded.kernels or ()]
    assert (None, 2, 3) == tuple((session.accelerator or {})[key] for key in ("why", "nodes", "of"))
    assert 2 == len((session.accelerator or {})["cycles"])  # one program before the CPU's node and one behind it


def test_golden_vectors_are_those_of_the_reference_kernels_where_the_accelerator_answers(
    boards, open_session: Open, tmp_path
):
    """The bundle's own come from XNNPACK, whose rounding differs; after some layers by many steps."""
    bundle = bundled(tmp_path, CASES["five residuals"]()[1], vectors=3)

    pushed = fleet.bring(open_session(boards()), bundle, Silent(), "auto").verification
    failed = fleet.bring(open_session(boards(hangs_after=0)), bundled(tmp_path, bundle.model, 3, "b"), Silent(), "auto")

    assert pushed is not None
    assert failed.verification is not None
    assert (True, 3) == (pushed.exact, pushed.vectors)
    assert pushed.runtime_golden.endswith(", reference kernels")
    assert (True, False) == (failed.verification.exact, "reference" in failed.verification.runtime_golden)


def test_the_compiled_model_travels_once_and_to_no_board_without_an_accelerator(
    boards, open_session: Open, local: Board, tmp_path
):
    bundle = bundled(tmp_path, CASES["3x3"]()[1])
    session, plain = open_session(boards()), open_session(local)

    first, again = (fleet.bring(session, bundle, Silent(), "auto") for _ in range(2))
    elsewhere = fleet.bring(plain, bundle, Silent(), "auto")

    alone = sum(map(len, bundle.files.values()))
    assert first.sent_bytes > alone == elsewhere.sent_bytes
    assert (True, 0) == (again.was_current, again.sent_bytes)
    kept = session.request("release.find", bundle=bundle.digest).header["accelerated"]["sha256"]
    assert {kept: -1} == session.request("store.progress", digests=[kept]).header["progress"]
    assert "accelerated" not in plain.request("release.find", bundle=bundle.digest).header


def test_every_latency_is_cycles_at_the_stated_clock_and_energy_is_absent(boards, say: Said, private_home, tmp_path):
    boards(clock_mhz=50)
    bundled(tmp_path, CASES["3x3"]()[1], vectors=1)

    code, out, err = say("measure", "--board", "fpga", "--duration", "0.1", "--restarts", "2", "net.bundle")

    assert 0 == code, err
    (run,) = runs(private_home, "measure")
    (cycles,) = run.record["accelerator"]["cycles"]
    latencies = np.concatenate(run.restarts("latency_ns"))
    assert {cycles * 20} == set(latencies.tolist())
    assert (["simulated"], []) == (run.record["verdict"], run.record["energy"])
    assert f"{cycles:,} cycles an invocation at 50 MHz" in out
    moved = run.record["accelerator"]["bus_bytes"][0]
    assert f"{moved:,} bytes moved beside them: " in out
    assert "at 400 MB/s, 40 cycles until memory answers" in out
    assert "energy: not measured (no meter on fpga)" in out
    code, _, err = say("measure", "--board", "fpga", "--duration", "0.1", "--rate", "10", "net.bundle")
    assert (1, True) == (code, "a schedule needs real time, and this accelerator is simulated" in err)


def test_a_profile_cuts_the_programs_where_layers_end(boards, say: Said, private_home, tmp_path):
    bundled(tmp_path, CASES["residual, stride 2"]()[1], vectors=1)

    code, _, err = say("profile", "--board", "fpga", "--restarts", "1", "net.bundle")

    assert 0 == code, err
    (run,) = runs(private_home, "profile")
    ops = run.record["profile"]["ops"]
    assert ["CONV_2D"] * 4 + ["ADD"] == [name for op in ops for name in op["names"]]
    assert {"accelerator"} == {op["kernel"] for op in ops}
    assert all(0 < op["time_ns"] for op in ops)
    assert run.record["accelerator"]["cycles"][0] * 10 == run.record["profile"]["whole_ns"]
    assert ["simulated"] == run.record["verdict"]


def test_inspect_lists_what_stays_on_the_cpu_and_why(boards, say: Said, tmp_path):
    graph = Graph(70, 1, 4, 4, 8)
    beyond = graph.conv(graph.input, 8, kernel=(1, 1), least=-128)
    bundled(tmp_path, graph.model(graph.conv(graph.softmax(beyond), 4, kernel=(1, 1))))

    code, out, err = say("inspect", "--board", "fpga", "net.bundle", "--json")

    assert 0 == code, err
    facts = json.loads(out)
    assert [
        ("CONV_2D", None, "a weight is -128, and two of them share a multiplier only in [-127, 127]"),
        ("SOFTMAX", None, "no such operator in the accelerator"),
        ("CONV_2D", "accelerator", ""),
    ] == [(node["op"], node["kernel"], node["reason"]) for node in facts["nodes"]]
    assert (1, 3) == (facts["accelerator"]["nodes"], facts["accelerator"]["of"])
    code, out, _ = say("inspect", "--board", "fpga", "--kernels", "off", "net.bundle")
    assert (0, True) == (code, "without the accelerator: it was not asked for" in out)


def test_a_model_with_no_node_for_the_accelerator_runs_on_the_cpu_and_one_line_says_so(boards, say: Said, tmp_path):
    graph = Graph(71, 1, 10)
    bundled(tmp_path, graph.model(graph.softmax(graph.input)), vectors=1)

    code, out, err = say("push", "--board", "fpga", "net.bundle")
    again = say("verify", "--board", "fpga", "net.bundle")

    reason = (
        "without the accelerator: net has no node that the accelerator can run (no such operator in the accelerator)"
    )
    assert (0, 0) == (code, again[0]), err
    assert reason in out
    assert f"fpga: {reason}\n" in again[2]


HUNG = r"a program did not end in [\d,]+ cycles; it was stopped"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"hangs_after": 0}, HUNG),  # before the first invocation
        ({"identity": "d1a50099"}, r"\S+ holds d1a50099/\w+, and the model was made for d1a5\w+/\w+"),
    ],
)
def test_an_accelerator_that_cannot_begin_leaves_the_answers_to_the_cpu(
    boards, open_session: Open, tmp_path, settings, why
):
    graph, model = CASES["one pixel"]()
    session = open_session(boards(**settings))
    loaded = brought(session, bundled(tmp_path, model))

    assert 1 == len(answers(session, loaded, graph.values()))
    told = session.accelerator or {}
    assert re.fullmatch(why, told["why"])
    assert (True, [None]) == (told["failed"], [node["kernel"] for node in loaded.kernels or ()])


def test_a_program_that_never_ends_voids_the_measurement_and_the_next_run_works(
    boards, say: Said, private_home, tmp_path
):
    bundled(tmp_path, CASES["one pixel"]()[1], vectors=1)
    boards(hangs_after=5)  # in the midst of it
    code, out, err = say("measure", "--board", "fpga", "--duration", "0.1", "--restarts", "1", "net.bundle")
    boards()
    mended, said, _ = say("verify", "--board", "fpga", "net.bundle")

    assert (0, 0) == (code, mended), err
    assert re.search(rf"^fpga: without the accelerator: {HUNG}$", err, re.MULTILINE)
    (run,) = runs(private_home, "measure")
    # What was measured is this machine's CPU, which is no PYNQ's.
    assert {"emulated-time", "accelerator-failed"} <= set(run.record["verdict"])
    assert "accelerator-failed" in out
    assert "1 of 1 nodes on the accelerator, simulated" in said


def test_resnet8_answers_as_the_reference_kernels_do_on_real_images(boards, open_session: Open, corpus, tmp_path):
    model, _ = corpus_model(corpus, "tiny_ic_resnet8_int8")
    images = np.load(corpus / "data" / "cifar10_test2000.npz")["x"][:6]
    session = open_session(boards())
    loaded = brought(session, bundled(tmp_path, model))
    fed = [(image[None].astype(np.int16) - 128).astype(np.int8) for image in images]

    got = [outputs[0] for outputs in inference.infer(session, loaded, ([values] for values in fed))]

    np.testing.assert_array_equal([expected(model, values)[0] for values in fed], got)
    assert 41_000 >= (session.accelerator or {})["cycles"][0]
