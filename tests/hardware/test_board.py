"""A real board: the main job on it.  ``python -m pytest tests/hardware --board NAME``"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy import boards, push, runtime
from deploy.build import build
from deploy.measure import Plan, measure
from deploy.results.store import Store
from deploy.session import connect
from deploy.verify import verify
from tests.conftest import GOLDEN, ROOT


@pytest.fixture
def board(request: pytest.FixtureRequest) -> boards.Board:
    names = request.config.getoption("--board")
    if not names:
        pytest.skip("needs a real board: `python -m pytest tests/hardware --board NAME` (of boards.yaml)")
    return boards.load(str(ROOT / "boards.yaml"))[names[0]]


def test_a_real_board_answers_bit_for_bit_and_can_be_measured(board: boards.Board, tmp_path: Path) -> None:
    bundle = build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle
    with connect(board, ROOT / "known_hosts") as session:
        runtime.ensure(session)
        push.push(session, bundle)
        assert verify(session, bundle).exact
        record = {"board": {"name": board.name}, "bundle": {"name": bundle.name, "digest": bundle.digest}}
        with Store(tmp_path).writer("measure", record) as writer:
            inputs = [np.zeros((1, 8, 8, 1), np.int8)]
            measured = measure(session, bundle.digest, inputs, Plan(duration_s=1.0), writer)
    assert measured.latency.median_ns > 0
