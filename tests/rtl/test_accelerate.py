"""`deploy accelerate`: what it says, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.cli import cli
from deploy.errors import BuildError
from devices.protocol.accelerated import decode
from tests.rtl.cases import CASES
from tests.rtl.graphs import Graph


def accelerate(path: Path, model: bytes, *options: str) -> Result:
    path.write_bytes(model)
    return CliRunner().invoke(cli, ["accelerate", str(path), *options])


def test_who_runs_what_and_why(tmp_path):
    _, model = CASES["CPU in the middle"]()
    out = tmp_path / "net.accelerated"

    done = accelerate(tmp_path / "net.tflite", model, "--json", "-o", str(out))

    assert 0 == done.exit_code, done.output
    nodes = json.loads(done.stdout)["nodes"]
    assert [("FULLY_CONNECTED", 0), ("SOFTMAX", None), ("FULLY_CONNECTED", 1)] == [
        (node["op"], node["segment"]) for node in nodes
    ]
    assert ["", "no such operator in the accelerator", ""] == [node["reason"] for node in nodes]
    assert ["pl", "cpu", "pl"] == [step["kind"] for step in decode(out.read_bytes()).steps]


@pytest.mark.usefixtures("rtl")
def test_cycles_are_said_to_be_simulated(tmp_path):
    _, model = CASES["residual"]()

    done = accelerate(tmp_path / "net.tflite", model, "--simulate", "--json")

    assert 0 == done.exit_code, done.output
    facts = json.loads(done.stdout)
    assert {"clock_mhz": 100.0, "latency_cycles": 40, "source": "simulated:verilator"} == facts["simulation"]
    (trial,) = facts["trials"]
    assert trial["exact"]
    assert 0 < trial["steps"] < trial["cycles"]


def test_a_model_with_nothing_for_the_accelerator_is_refused(tmp_path):
    graph = Graph(61, 1, 10)

    done = accelerate(tmp_path / "net.tflite", graph.model(graph.softmax(graph.input)))

    assert isinstance(done.exception, BuildError)
    assert "net.tflite has no node that the accelerator can run (no such operator in the accelerator)" == str(
        done.exception
    )
