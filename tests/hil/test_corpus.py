"""
Real models on every kind of board with our kernels on: what they claim there equals their plain versions, bit for bit.

`KERNELS_FORCE=reference` leaves the decisions as they are and computes the claimed nodes by the plain loops, which
`tests/kernels` holds against stock LiteRT's; what is not claimed comes from the board's runtime both times.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import boards, inference, kernels, runtime
from deploy.boards import Board, SshTransport
from deploy.data import Array
from deploy.errors import ModelRefused, RunnerKilled
from deploy.session import Session, connect
from deploy.virtual import control
from tests.end_to_end.test_corpus import RUNS, samples_for
from tests.hil.test_boards import skip_unless_wanted
from tests.test_layers import HOME

pytestmark = [pytest.mark.qemu, pytest.mark.long]

FORCED = "/home/{}/forced"
SCRIPT = """printf '#!/bin/sh\\nKERNELS_FORCE=reference exec python3 "$@"\\n' > {0}; chmod 755 {0}"""


@contextmanager
def conversation(board: Board, mode: str = "auto") -> Iterator[Session]:
    with connect(board, Path("unused")) as session:
        runtime.ensure(session)
        kernels.ensure(session, mode)
        yield session


def told_apart(
    session: Session, files: dict[str, bytes]
) -> tuple[dict[str, tuple[tuple[dict[str, Any], ...], list[Array]]], dict[str, str]]:
    """Of those that answer, the decisions and answers; of those that do not, the reason."""
    answered, refused = {}, {}
    for name, file in files.items():
        try:
            answered[name] = answers(session, file, name)
        except (ModelRefused, RunnerKilled) as error:
            refused[name] = str(error)
    return answered, refused


def answers(session: Session, file: bytes, name: str) -> tuple[tuple[dict[str, Any], ...], list[Array]]:
    """What our delegate decided for each node, and the model's outputs for one sample."""
    sha256 = hashlib.sha256(file).hexdigest()
    session.upload(sha256, file)
    model = inference.load(session, sha256=sha256, limit_s=600, subject=name)
    (outputs,) = inference.infer(session, model, samples_for(model.inputs, name, 1), limit_s=600, subject=name)
    inference.unload(session, name)
    return model.kernels or (), outputs


@pytest.mark.parametrize("kind", ["pi3", "pi4", "pi5", "jetson-orin", "pynq-z2"])
def test_every_real_model_that_the_runtime_accepts_answers_as_the_plain_kernels_do(
    kind: str, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("DEPLOY_HIL_CACHE", str(HOME / ".cache")))
    skip_unless_wanted(kind)
    files = {name: (corpus / "models" / name).read_bytes() for name in RUNS}
    control.up(kind, control.Options(), lambda text: None)
    try:
        board = boards.load()[kind]
        assert isinstance(board.transport, SshTransport)
        forced = FORCED.format(board.transport.user)
        control.ask(kind, "run", SCRIPT.format(forced))
        with conversation(board) as session:
            fast, refused = told_apart(session, files)
        with conversation(board, "off") as session:
            _, stock_refused = told_apart(session, {name: files[name] for name in refused})
        claimed = {name: sum(node["claimed"] for node in nodes) for name, (nodes, _) in fast.items()}
        with conversation(board.model_copy(update={"python": forced})) as session:
            for name in (name for name, count in claimed.items() if count):
                nodes, plain = answers(session, files[name], name)
                assert claimed[name] == sum(node["claimed"] for node in nodes)
                assert {node["kernel"] for node in nodes} != {node["kernel"] for node in fast[name][0]}
                assert all(map(np.array_equal, plain, fast[name][1])), (name, fast[name][0])
    finally:
        control.down(kind)
    with capsys.disabled():
        models = [name for name, count in claimed.items() if count]
        print(f"\n{kind}: {len(fast)} models, {sum(claimed.values())} nodes of {len(models)} by our kernels")
        print("".join(f"  refused: {name}: {why}\n" for name, why in refused.items()), end="")
    assert stock_refused == refused, "the board's runtime alone takes them"
    # The runtime there is for 32-bit Arm with VFPv4, and a Cortex-A9 has VFPv3: most float models end with SIGILL.
    assert kind == "pynq-z2" or {} == refused
    assert any(claimed.values())
