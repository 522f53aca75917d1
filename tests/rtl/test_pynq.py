"""The board's backend on unmodified pynq, with the verilated accelerator behind it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.errors import BuildError
from deploy.fpga.package import package
from deploy.fpga.simulator import Bus
from devices.backends import litert, pynq
from devices.protocol.accelerated import FormatError, decode
from tests.rtl.cases import CASES
from tests.rtl.graphs import Graph
from tests.rtl.machines import corpus_model, reference

Load = Callable[..., pynq.Model]
# pynq says on x86-64 that it knows no such board, and asks setuptools for what that will not have for ever.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("ResourceWarning", "UserWarning", "DeprecationWarning")
]


@pytest.fixture
def overlay(rtl: None, tmp_path: Path) -> Iterator[Any]:
    """The simulated device as pynq's active one."""
    if importlib.util.find_spec("pynq") is None:  # it cannot be installed beside NumPy 2, in CI neither
        pytest.skip("needs PYNQ in an environment of its own: see deploy/fpga/README.md")
    from pynq.pl_server.device import Device

    from deploy.fpga.pynq_device import SimulatedDevice

    (tmp_path / "accelerator.bit").touch()
    device = SimulatedDevice()
    Device.active_device = device
    yield device
    device.simulation.close()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_(model: bytes, compiled: bytes | None = None) -> pynq.Model:
        (tmp_path / "model.tflite").write_bytes(model)
        (tmp_path / "model.accelerated").write_bytes(compiled or package(model, "model").encode())
        return pynq.Model(
            str(tmp_path / "model.tflite"), str(tmp_path / "model.accelerated"), str(tmp_path / "accelerator.bit")
        )

    return load_


def answers(model: pynq.Model, values: np.ndarray) -> list[np.ndarray]:
    (given,) = model.describe()["inputs"]
    model.set_inputs([litert.from_array(given["name"], values)])
    model.invoke()
    return [litert.to_array(spec, data) for spec, data in model.outputs()]


def expected(model: bytes, values: np.ndarray) -> list[np.ndarray]:
    stock = reference(model, values)
    return [stock.get_tensor(detail["index"]) for detail in stock.get_output_details()]


@pytest.mark.parametrize("name", ["residual, stride 2", "two outputs", "CPU in the middle"])
def test_a_model_answers_as_the_reference_kernels_do(overlay, load, name):
    """Twice: what one invocation leaves on the chip must not show in the next."""
    graph, model = CASES[name]()
    loaded = load(model)

    for _ in range(2):
        values = graph.values()
        for wanted, got in zip(expected(model, values), answers(loaded, values), strict=True):
            np.testing.assert_array_equal(wanted, got)
    told = loaded.accelerator()
    assert (None, False, None) == (told["why"], told["failed"], told["simulated"])
    assert all(0 < cycles for cycles in told["cycles"])
    assert all(0 < moved for moved in told["bus_bytes"])


def test_resnet8_runs_whole_with_its_softmax_in_litert(overlay, load, corpus):
    model, values = corpus_model(corpus, "tiny_ic_resnet8_int8")
    loaded = load(model)

    (got,) = answers(loaded, values)

    np.testing.assert_array_equal(expected(model, values)[0], got)
    assert ["builtin"] == [place for place in loaded.placement() if place != "accelerator"]
    assert loaded.accelerator()["cycles"][0] <= 41_000


def test_a_program_that_does_not_end_is_stopped_and_litert_takes_over(overlay, load, tmp_path):
    graph, model = CASES["3x3"]()
    values = graph.values()
    loaded = load(model)
    overlay.simulation.use(Bus(hangs=True))

    (got,) = answers(loaded, values)

    assert re.fullmatch(r"a program did not end in [\d,]+ cycles; it was stopped", loaded.failure)
    assert loaded.accelerator()["failed"]
    assert [(None, f"the accelerator failed: {loaded.failure}")] == [
        (node["kernel"], node["reason"]) for node in loaded.decisions()
    ]
    stock = litert.Model(str(tmp_path / "model.tflite"))
    stock.set_inputs([litert.from_array(loaded.describe()["inputs"][0]["name"], values)])
    stock.invoke()
    np.testing.assert_array_equal(litert.to_array(*stock.outputs()[0]), got)


def test_an_overlay_of_another_version_is_not_used(overlay, load):
    graph, model = CASES["3x3"]()
    compiled = replace(package(model, "model"), identity=0xD1A5_0099)

    loaded = load(model, compiled.encode())

    assert loaded.failure is not None
    assert loaded.failure.endswith("holds d1a50002/0c080410, and the model was made for d1a50099/0c080410")
    answers(loaded, graph.values())


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda other: package(other, "other").encode(), "what was compiled is another model"),
        (lambda other: b"DHAC\1", "the compiled model is none for this agent: not a model that was compiled"),
    ],
)
def test_what_was_not_compiled_from_this_file_is_not_run(load, spoil, why):
    graph, model = CASES["3x3"]()
    loaded = load(model, spoil(CASES["one pixel"]()[1]))

    assert loaded.failure is not None
    assert loaded.failure.startswith(why)
    answers(loaded, graph.values())


def test_a_compiled_model_comes_back_from_its_bytes():
    _, model = CASES["CPU in the middle"]()
    compiled = package(model, "model")

    assert compiled == decode(compiled.encode())
    assert hashlib.sha256(model).hexdigest() == compiled.model_sha256
    assert ["pl", "cpu", "pl"] == [step["kind"] for step in compiled.steps]
    assert [False, False] == [step["resident"] for step in compiled.steps if step["kind"] == "pl"]


@pytest.mark.parametrize("cut", [0, 3, 15, 40])
def test_a_file_cut_short_is_refused(cut):
    _, model = CASES["one pixel"]()

    with pytest.raises(FormatError):
        decode(package(model, "model").encode()[:cut])


def test_a_model_without_a_node_for_the_accelerator_is_said_to_have_none():
    graph = Graph(60, 1, 10)
    model = graph.model(graph.softmax(graph.input))

    with pytest.raises(BuildError, match=r"x has no node that the accelerator can run \(no such operator"):
        package(model, "x")
