"""Our kernels on a board: built for it, brought once, used or not as the conversation says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy import inference, kernels
from deploy.boards import Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.data import random_inputs
from deploy.errors import KernelsMissing, RuntimeMissing
from deploy.push import push
from deploy.session import Session
from tests.conftest import require_or_skip
from tests.kernels.single_op import random_conv

Open = Callable[..., Session]


@pytest.fixture(autouse=True)
def compiler() -> None:
    require_or_skip(importlib.util.find_spec("ziglang") is not None, "needs ziglang: `pip install 'deploy-hil[build]'`")


@pytest.fixture
def int4_conv(tmp_path: Path) -> Bundle:
    """A convolution that the stock runtime runs slowly, and ours well."""
    layer = random_conv(np.random.default_rng(0), in_shape=(1, 14, 14, 64), out_c=64, weight_type="INT4")
    (tmp_path / "conv.tflite").write_bytes(layer.model())
    return build(str(tmp_path / "conv.tflite"), name="conv").bundle


def answer(session: Session, bundle: Bundle) -> tuple[inference.Loaded, np.ndarray]:
    model = inference.load(session, bundle=bundle.digest, subject=bundle.name)
    ((values,),) = inference.infer(session, model, random_inputs(model.inputs, 1, seed=1))
    return model, values


@pytest.mark.parametrize(
    ("machine", "pointer_bits", "target"),
    [
        ("x86_64", 64, "x86_64"),
        ("aarch64", 64, "aarch64"),
        ("armv7l", 32, "armv7"),
        ("aarch64", 32, "armv7"),  # a Raspberry Pi OS of 32 bits on a kernel of 64
    ],
)
def test_the_target_follows_what_the_boards_python_is(machine: str, pointer_bits: int, target: str) -> None:
    assert target == kernels.target_of({"machine": machine, "pointer_bits": pointer_bits})


def test_the_library_travels_once(open_session: Open, local: Board) -> None:
    notes: list[str] = []

    first = kernels.ensure(open_session(local), "auto", note=notes.append)
    again = open_session(local)
    known = kernels.current(again, "auto")
    second = kernels.ensure(again, "auto", note=notes.append)

    assert 1 == len([note for note in notes if note.startswith("sending the kernels")])
    assert first.library == again.hello["kernels"]
    assert first == second == known


def test_a_node_that_ours_win_is_ours_and_answers_as_the_plain_versions(session: Session, int4_conv: Bundle) -> None:
    push(session, int4_conv)

    kernels.ensure(session, "auto")
    fast, fast_values = answer(session, int4_conv)
    kernels.ensure(session, "reference")
    plain, plain_values = answer(session, int4_conv)

    assert fast.kernels and plain.kernels
    assert "CONV_2D" == fast.kernels[0]["op"]
    assert "_w4_" in fast.kernels[0]["kernel"]
    assert plain.kernels[0]["kernel"].endswith("_reference")
    np.testing.assert_array_equal(plain_values, fast_values)


def test_off_leaves_all_to_the_stock_runtime(session: Session, int4_conv: Bundle) -> None:
    push(session, int4_conv)
    kernels.ensure(session, "auto")

    kernels.ensure(session, "off")
    model, _ = answer(session, int4_conv)

    assert model.kernels is None


def test_a_board_without_kernels_goes_on_without_and_says_why(session: Session) -> None:
    session.hello["identity"]["machine"] = "riscv64"

    found = kernels.ensure(session, "auto")

    assert "off" == found.mode
    assert "no kernels for riscv64: there are some for aarch64, armv7, x86_64" == found.why_off


def test_the_plain_versions_are_not_replaced_by_nothing(session: Session) -> None:
    session.hello["identity"]["machine"] = "riscv64"

    with pytest.raises(KernelsMissing, match=r"^no kernels for riscv64"):
        kernels.ensure(session, "reference")


def test_a_library_that_does_not_load_is_said_to_be_the_reason(session: Session, int4_conv: Bundle) -> None:
    push(session, int4_conv)
    kernels.ensure(session, "auto")
    (library,) = (Path(session.hello["root"]) / "kernels").glob("*.so")
    library.write_bytes(b"no library")

    with pytest.raises(RuntimeMissing, match=r"our kernels do not load: .*(invalid ELF header|file too short)"):
        answer(session, int4_conv)
