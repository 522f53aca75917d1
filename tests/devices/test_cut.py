"""Cutting a model: what comes out at the cut is what the whole model computes there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devices.protocol.cut import CutError, Graph
from tests import oracle
from tests.conftest import GOLDEN
from tests.models import elementwise

DIGITS = (GOLDEN / "digits_int8.tflite").read_bytes()

# Without delegates, whose kernels round otherwise when they see other neighbours.
_COMPARE = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

def run(path, keep):
    made = Interpreter(model_path=path, experimental_preserve_all_tensors=keep,
                       experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    made.allocate_tensors()
    detail = made.get_input_details()[0]
    made.set_tensor(detail["index"], np.random.default_rng(0).integers(-128, 128, detail["shape"]).astype(np.int8))
    made.invoke()
    return made

whole = run(sys.argv[1], True)
for path in sys.argv[2:]:
    cut = run(path, False)
    outputs = [detail["index"] for detail in cut.get_output_details()]
    same = all(np.array_equal(whole.get_tensor(i), cut.get_tensor(i)) for i in outputs)
    print(same, *outputs)
"""


def test_every_cut_of_a_branching_model_computes_what_the_whole_one_does(corpus: Path, tmp_path: Path) -> None:
    """ResNet-8, bit for bit; at several cuts two tensors are still needed, one on each branch."""
    path = corpus / "models" / "tiny_ic_resnet8_int8.tflite"
    graph = Graph(path.read_bytes())
    cuts = graph.cuts()[1:]
    files = [tmp_path / f"{count}.tflite" for count in cuts]
    for file, count in zip(files, cuts, strict=True):
        file.write_bytes(graph.cut(count))

    words = [sys.executable, "-c", _COMPARE, str(path), *map(str, files)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)

    assert [" ".join(map(str, (True, *graph.live(count)))) for count in cuts] == done.stdout.splitlines()
    assert sum(len(graph.live(count)) > 1 for count in cuts) >= 3


def test_the_whole_model_as_a_cut_answers_bit_for_bit_as_the_file_does(tmp_path: Path) -> None:
    graph = Graph(DIGITS)
    (tmp_path / "cut.tflite").write_bytes(graph.cut(len(graph.operators)))
    samples = [[np.random.default_rng(s).integers(-128, 128, (1, 8, 8, 1)).astype(np.int8)] for s in range(5)]

    expected = oracle.answers(GOLDEN / "digits_int8.tflite", samples, tmp_path)
    found = oracle.answers(tmp_path / "cut.tflite", samples, tmp_path)

    for (before,), (after,) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_model_without_any_operator_hands_its_inputs_back(tmp_path: Path) -> None:
    given = [np.float32([[1, 2, 3, 4]]), np.float32([[5, 6, 7, 8]])]
    (tmp_path / "cut.tflite").write_bytes(Graph(elementwise()).cut(0))

    (answers,) = oracle.answers(tmp_path / "cut.tflite", [given], tmp_path)

    np.testing.assert_array_equal(given, answers)


def test_operators_are_cut_one_by_one_or_in_groups() -> None:
    graph = Graph(DIGITS)
    every = len(graph.operators)

    assert list(range(every + 1)) == graph.cuts()
    assert sorted({*range(0, every, 4), every}) == graph.cuts(4)


@pytest.mark.parametrize("count", [-1, 2])
def test_there_is_no_cut_beyond_the_last_operator(count: int) -> None:
    with pytest.raises(CutError, match=f"{count} operators of 1"):
        Graph(elementwise()).cut(count)


@pytest.mark.parametrize("end", [0, 3, 8, 40, 200, len(DIGITS) // 2])
def test_a_file_that_ends_too_early_is_refused(end: int) -> None:
    """It comes from whoever pushed it: nothing else may happen."""
    with pytest.raises(CutError):
        Graph(DIGITS[:end]).cut(2)


def test_noise_is_refused_or_read_and_never_crashes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(DIGITS)
        for at in rng.integers(0, len(damaged), 8):
            damaged[at] = rng.integers(0, 256)
        try:
            Graph(bytes(damaged)).cut(1)
        except CutError:
            pass
