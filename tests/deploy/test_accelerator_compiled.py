"""What the host compiles for a board's accelerator, and keeps."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.accelerate import Compiled, agent_options, compiled_for, summary
from deploy.boards import LOCAL, Board, load
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import ConfigError
from deploy.fpga.package import package
from devices.protocol.accelerated import decode
from tests.conftest import Said
from tests.rtl.cases import CASES
from tests.rtl.machines import reference

SIMULATED = {"name": "fpga", "kind": "pynq-sim", "transport": {"kind": "local"}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("model") / "net.tflite"
    path.write_bytes(CASES["five residuals"]()[1])
    return build(str(path), name="net", vectors=2).bundle


def compiled(bundle: Bundle, overlay: str | None = "accelerator.bit") -> Compiled | None:
    told: Any = SimpleNamespace(hello={"overlay": overlay})
    return compiled_for(told, bundle)


def test_a_board_with_an_overlay_gets_programs_and_golden_vectors_of_the_reference_kernels(bundle):
    made = compiled(bundle)

    assert made is not None
    assert made.entry.sha256 in made.files
    assert made.entry.files() == set(made.files)
    assert {"accelerator"} == {node["kernel"] for node in decode(made.files[made.entry.sha256]).nodes}
    vectors = np.load(io.BytesIO(made.files[made.entry.golden or ""]))
    own = np.load(io.BytesIO(bundle.files["golden.npz"]))
    assert set(own.files) == set(vectors.files)
    np.testing.assert_array_equal(own["v1.in0"], vectors["v1.in0"])
    stock = reference(bundle.model, own["v1.in0"])
    np.testing.assert_array_equal(stock.get_tensor(stock.get_output_details()[0]["index"]), vectors["v1.out0"])


def test_a_board_without_one_gets_nothing(bundle):
    assert compiled(bundle, None) is None


def test_what_was_compiled_is_kept_and_made_anew_when_it_is_damaged(bundle, private_home):
    first = compiled(bundle)
    kept = sorted((private_home / ".cache" / "deploy" / "accelerated").iterdir())
    for path in kept:
        path.write_bytes(path.read_bytes()[:-1])

    assert [".golden", ".program"] == sorted(path.suffix for path in kept)
    assert first == compiled(bundle) == compiled(bundle)


def test_a_model_that_keeps_variables_is_not_taken_apart(corpus, tmp_path):
    path = corpus / "models" / "esphome_vad_v2_stream_int8.tflite"
    streaming = build(str(path), name="vad", vectors=0).bundle

    made = compiled(streaming)

    assert made is not None
    assert {} == made.files
    assert made.entry.why is not None
    assert made.entry.why.startswith("vad keeps variables, which parts of it cannot share (")


def test_the_agent_is_told_of_the_overlay_that_boards_yaml_names():
    real = Board.model_validate({**SIMULATED, "kind": "pynq", "overlay": "/home/xilinx/accelerator.bit"})

    assert ["--overlay", "/home/xilinx/accelerator.bit"] == agent_options(real)
    assert [] == agent_options(LOCAL)
    overlay, modules = agent_options(Board.model_validate(SIMULATED))[1::2]
    assert Path(overlay).is_file()
    assert (Path(modules) / "pynq.py").is_file()


def test_one_line_says_who_runs_a_model():
    facts = {"why": None, "simulated": None, "nodes": 15, "of": 16}

    assert "15 of 16 nodes on the accelerator" == summary(facts)
    assert "15 of 16 nodes on the accelerator, simulated" == summary({**facts, "simulated": {"clock_hz": 1}})
    assert "without the accelerator: it was not asked for" == summary({**facts, "why": "it was not asked for"})


def test_a_simulated_board_is_this_machine_with_a_disk_of_its_own(say: Said, tmp_path):
    assert 0 == say("boards", "add", "fpga", "--kind", "pynq-sim")[0]

    added = load()["fpga"]
    assert ("pynq-sim", "local", "~/.local/share/deploy-fpga") == (added.kind, added.transport.kind, added.root)
    code, _, err = say("boards", "add", "other", "--kind", "pynq-sim", "--host", "pynq")
    assert (2, "error: a pynq-sim is this machine\n") == (code, err)
    code, _, err = say("boards", "add", "other", "--kind", "pynq")
    assert (2, "error: a pynq is reached by --host\n") == (code, err)
    (tmp_path / "boards.yaml").write_text("schema: 1\nboards: {x: {kind: pynq-sim, transport: {kind: ssh, host: y}}}\n")
    with pytest.raises(ConfigError, match=r"a pynq-sim is this machine: transport: \{kind: local\}"):
        load()


@pytest.mark.parametrize("name", CASES)
def test_every_node_that_computes_belongs_to_a_layer_that_ends_somewhere_in_the_program(name):
    """Else a profile would cut a program where a layer is not done, or leave one out."""
    made = package(CASES[name]()[1], "net")

    for step in made.steps:
        if step["kind"] == "pl":
            words = [end for end, _ in step["layers"]]
            computed = {node for _, nodes in step["layers"] for node in nodes}
            assert sorted(set(words)) == words
            assert words[-1] < step["run"][1]
            assert {"RESHAPE"} >= {made.nodes[node]["op"] for node in set(step["nodes"]) - computed}
            assert computed <= set(step["nodes"])
