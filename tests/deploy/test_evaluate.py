"""Accuracy: counted right, and the same as stock LiteRT's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy import inference
from deploy.data import Dataset
from deploy.errors import BadInput, DataError
from deploy.evaluate import count, evaluate, wilson
from deploy.session import Session
from devices.protocol.manifest import digest
from tests import oracle
from tests.conftest import GOLDEN
from tests.models import elementwise

DIGITS = GOLDEN / "digits_int8.tflite"


@pytest.fixture
def loaded(session: Session) -> Callable[[bytes], inference.Loaded]:
    """Load a model on the board."""

    def load(model: bytes) -> inference.Loaded:
        session.upload(digest(model), model)
        return inference.load(session, sha256=digest(model))

    return load


def dataset(x: np.ndarray, *labels: int) -> Dataset:
    return Dataset(x, np.array(labels, np.int64), "data.npz")


# Wilson's interval


@pytest.mark.parametrize(
    ("correct", "samples", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_equals_the_published_values(correct: int, samples: int, low: float, high: float) -> None:
    assert (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5)) == wilson(correct, samples)


@pytest.mark.parametrize(("correct", "samples"), [(1, 2), (434, 449), (10_000, 10_000), (1, 10_000)])
def test_wilsons_interval_ends_where_the_proportion_is_196_standard_errors_away(correct: int, samples: int) -> None:
    """Its definition: the bounds solve |p - bound| = z sqrt(bound (1 - bound) / n)."""
    p = correct / samples
    for bound in wilson(correct, samples):
        assert pytest.approx(abs(p - bound), abs=1e-9) == 1.959964 * (bound * (1 - bound) / samples) ** 0.5


def test_no_samples_leave_everything_possible() -> None:
    assert (0.0, 1.0) == wilson(0, 0)


def test_the_interval_of_all_or_none_stays_within_0_and_1() -> None:
    assert 0.0 == wilson(0, 7)[0]
    assert 1.0 == wilson(7, 7)[1]


def test_only_as_many_labels_count_as_there_are_predictions() -> None:
    """A run that was cut."""
    found = count([3, 1, 2], np.array([3, 0, 2, 9, 9]))

    assert (2, 3, 2 / 3) == (found.correct, found.samples, found.value)
    assert wilson(2, 3) == (found.low, found.high)


# On a board


def test_the_accuracy_on_a_board_is_that_of_stock_litert_s_answers(
    session: Session, loaded: Callable[[bytes], inference.Loaded], tmp_path: Path
) -> None:
    """The oracle is ai_edge_litert, called directly in a process of its own, and numpy's argmax."""
    rng = np.random.default_rng(7)
    n = 300  # more than one request's worth
    x = rng.integers(-128, 128, (n, 8, 8, 1), dtype=np.int8)
    answers = oracle.answers(DIGITS, [[sample[np.newaxis]] for sample in x], tmp_path)
    expected = np.array([outputs[0].argmax() for outputs in answers])
    labels = np.where(rng.random(n) < 0.7, expected, (expected + 1) % 10)
    done: list[int] = []

    found = evaluate(session, loaded(DIGITS.read_bytes()), dataset(x, *labels), progress=done.append)

    np.testing.assert_array_equal(expected, found.predicted)
    assert (int((labels == expected).sum()), n) == (found.correct, found.samples)
    assert (n, sorted(done)) == (done[-1], done) and len(done) > 1
    assert len(set(expected)) > 1


def test_labels_outside_of_the_outputs_are_refused(
    session: Session, loaded: Callable[[bytes], inference.Loaded]
) -> None:
    """Classes that count from 1 would otherwise be an accuracy that is merely poor."""
    model = loaded(DIGITS.read_bytes())
    x = np.zeros((3, 8, 8, 1), np.int8)

    with pytest.raises(DataError) as above:
        evaluate(session, model, dataset(x, 1, 5, 10))
    with pytest.raises(DataError) as below:
        evaluate(session, model, dataset(x, -1, 0, 0))

    name = model.outputs[0].name
    assert f"data.npz: labels go from 1 to 10, output {name!r} has 10 values" == str(above.value)
    assert f"data.npz: labels go from -1 to 0, output {name!r} has 10 values" == str(below.value)


def test_a_data_set_without_labels_is_refused(session: Session, loaded: Callable[[bytes], inference.Loaded]) -> None:
    with pytest.raises(DataError, match=r"^data\.npz has no labels$"):
        evaluate(session, loaded(DIGITS.read_bytes()), Dataset(np.zeros((1, 8, 8, 1), np.int8), None, "data.npz"))


def test_a_model_of_two_inputs_is_refused(session: Session, loaded: Callable[[bytes], inference.Loaded]) -> None:
    with pytest.raises(BadInput, match=r"^sum: accuracy needs one input; the model has 2$"):
        evaluate(session, loaded(elementwise()), dataset(np.zeros((1, 4), np.float32), 0), subject="sum")


def test_the_predictions_of_a_run_that_is_cut_are_not_lost(
    session: Session, loaded: Callable[[bytes], inference.Loaded]
) -> None:
    model = loaded(DIGITS.read_bytes())
    arrived: list[int] = []
    n = 1000  # several requests' worth

    def cut(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(session, model, dataset(np.zeros((n, 8, 8, 1), np.int8), *[0] * n), progress=cut, arrived=arrived)

    assert 0 < len(arrived) < n
