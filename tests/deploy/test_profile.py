"""Profiling: operators' times are differences, they add up, and what noise hides is said to be hidden."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import kernels
from deploy.boards import Board
from deploy.build import build
from deploy.errors import BuildError
from deploy.prepare import golden_inputs
from deploy.profile import OpTime, _Collector, _evaluate, profile
from deploy.push import push
from deploy.results.store import Store
from deploy.session import Session
from devices.protocol.cut import Graph
from tests.conftest import GOLDEN, require_or_skip
from tests.kernels.single_op import random_conv

DIGITS = GOLDEN / "digits_int8.tflite"
KNOWN = {"board": {"name": "local"}, "bundle": {"name": "digits", "digest": "ab"}}


@pytest.fixture
def store(private_home: Any) -> Store:
    return Store(private_home / "results")


@pytest.mark.alone
def test_a_real_model_is_profiled_operator_by_operator(
    open_session: Callable[..., Session], local: Board, store: Store
) -> None:
    bundle = build(str(DIGITS), name="digits", vectors=0).bundle
    session = open_session(local)
    push(session, bundle)
    inputs = [np.zeros((1, 8, 8, 1), np.int8)]
    with store.writer("profile", KNOWN) as writer:
        found = profile(session, bundle.digest, bundle.model, inputs, writer, duration_s=0.1, restarts=2)

    names = ["CONV_2D", "CONV_2D", "CONV_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX"]
    assert names == [name for op in found.ops for name in op.names]
    assert list(range(6)) == [op.first for op in found.ops] == [op.last for op in found.ops]
    assert pytest.approx(found.overhead_ns + sum(op.time_ns for op in found.ops)) == found.sum_ns
    assert pytest.approx(found.sum_ns / found.whole_ns - 1) == found.gap
    assert pytest.approx(1) == sum(op.share for op in found.ops)
    assert {"delegate", "builtin"} >= {op.kernel for op in found.ops}
    assert "delegate" == found.ops[0].kernel  # XNNPACK takes convolutions
    stored = store.get(writer.id)
    for restart in (1, 2):
        lengths = stored.array(f"profile_length.{restart}")
        assert lengths.sum() == len(stored.array(f"profile_ns.{restart}")) > 0
        assert len(lengths) == len(stored.array(f"profile_operators.{restart}"))
        assert {-1, 0, 1, 2, 3, 4, 5, 6} == set(stored.array(f"profile_operators.{restart}").tolist())
    assert found.gap == stored.record["profile"]["gap"]


def evaluated(times_ns: list[list[int]], group: int = 1, placement: list[str] | None = None) -> Any:
    """
    A profile of the digits from made-up slices: for each restart the time of a model without operators, with the first,
    and so on; the untouched model takes as long as the last.
    """
    graph = Graph(DIGITS.read_bytes())
    cuts = graph.cuts(group)
    collector = _Collector(_Nowhere(), None)  # type: ignore[arg-type]
    for restart, times in enumerate(times_ns, start=1):
        for sweep in (-1, 0, 1):  # what is before 0 is warm-up
            for cut, time_ns in [*zip(cuts, times, strict=True), (None, times[-1])]:
                value = 10**9 if sweep < 0 else time_ns
                collector({"restart": restart, "sweep": sweep, "operators": cut}, np.full(3, value).tobytes())
    restarts = [{"cuts": cuts, "placement": placement, "refused": []} for _ in times_ns]
    reply = {"restarts": restarts, "runtime": "r", "kernels": None}
    return _evaluate(collector, reply, graph, list("abcdef"))


class _Nowhere:
    """A store that keeps nothing."""

    def append(self, name: str, values: Any, unit: str) -> None:
        pass


def test_an_operator_takes_what_its_cut_takes_more_than_the_one_before() -> None:
    found = evaluated([[100, 300, 310, 310, 710, 705, 1000], [100, 302, 310, 310, 710, 705, 1000]])

    assert [201, 9, 0, 400, -5, 295] == [op.time_ns for op in found.ops]  # never clamped
    assert (100, 1000, 1000, 0.0) == (found.overhead_ns, found.sum_ns, found.whole_ns, found.gap)


def test_a_difference_that_restarts_do_not_agree_on_is_not_certain() -> None:
    found = evaluated([[100, 300, 310, 320, 330, 340, 350], [100, 300, 300, 330, 340, 350, 360]])

    first, second, *_ = found.ops
    assert (True, 200, 200) == (first.certain, first.low_ns, first.high_ns)
    assert not second.certain
    assert second.low_ns < 0 < second.high_ns


def test_one_restart_gives_no_interval() -> None:
    found = evaluated([[100, 300, 310, 320, 330, 340, 350]])

    assert {(None, None, False)} == {(op.low_ns, op.high_ns, op.certain) for op in found.ops}


def test_operators_are_told_in_groups_with_who_ran_them() -> None:
    places = ["delegate", "delegate", "delegate", "builtin", "delegate", "builtin"]
    first, second = evaluated([[100, 300, 350]], group=4, placement=places).ops

    assert (0, 3, ("a", "b", "c", "d"), "builtin and delegate") == (first.first, first.last, first.names, first.kernel)
    assert (4, 5, 50) == (second.first, second.last, second.time_ns)
    assert {None} == {op.kernel for op in evaluated([[100, 300, 350]], group=4).ops}  # the runtime does not say


def test_kernels_of_our_own_are_told_by_name(session: Session, store: Store, tmp_path: Path) -> None:
    require_or_skip(importlib.util.find_spec("ziglang") is not None, "needs ziglang: `pip install 'deploy-hil[build]'`")
    layer = random_conv(np.random.default_rng(0), in_shape=(1, 14, 14, 64), out_c=64, weight_type="INT4")
    (tmp_path / "conv.tflite").write_bytes(layer.model())
    bundle = build(str(tmp_path / "conv.tflite"), name="conv").bundle
    kernels.ensure(session, "auto")
    push(session, bundle)
    with store.writer("profile", KNOWN) as writer:
        inputs = golden_inputs(bundle)
        found = profile(session, bundle.digest, bundle.model, inputs, writer, duration_s=0.1, restarts=1)

    (ran,) = [op.kernel for op in found.ops if "CONV_2D" in op.names]
    assert ran is not None
    assert "_w4_" in ran


def test_what_is_no_model_cannot_be_profiled(session: Session, store: Store) -> None:
    with pytest.raises(BuildError, match=r"net: not a \.tflite file"), store.writer("profile", KNOWN) as writer:
        profile(session, "ab" * 32, b"nothing", [], writer, subject="net")


def test_an_interval_that_touches_zero_is_not_certain() -> None:
    assert not OpTime(0, 0, (), (), 1.0, 0.0, 2.0, 0.0, None).certain
    assert OpTime(0, 0, (), (), -1.0, -2.0, -0.5, 0.0, None).certain
