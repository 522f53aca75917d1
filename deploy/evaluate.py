"""
Evaluate: accuracy on the board, on real data.

Every sample runs there and its whole output comes back; the class is chosen here.  Each answer belongs to a sample
by its index, so none is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy import inference
from deploy.data import Dataset, feed, refuse_ambiguous
from deploy.errors import BadInput, DataError
from deploy.results.store import RunWriter
from deploy.session import Session


@dataclass(frozen=True)
class Accuracy:
    """
    Top-1 accuracy.

    Attributes:
        predicted: class of each sample, in the order of the data set; shorter than it when the run was cut.
        correct, samples: counts over `predicted`.
        low, high: Wilson's 95 % interval of the accuracy.
    """

    predicted: NDArray[np.int64]
    correct: int
    samples: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.correct / self.samples


def evaluate(
    session: Session,
    model: inference.Loaded,
    dataset: Dataset,
    preprocess: Mapping[str, float] | None = None,
    *,
    limit_s: float | None = None,
    subject: str = "",
    progress: Callable[[int], Any] | None = None,
    arrived: list[int] | None = None,
) -> Accuracy:
    """
    Run every sample of `dataset` through `model` and count how often the largest output is the label.

    Args:
        progress: called with how many samples are done.
        arrived: gets the predictions as they come, so that they are not lost when the run is cut.

    Raises:
        BadInput: the samples do not fit, only a preprocess could say what they mean, or the model has more than one
            input.
        DataError: no labels, or the label of a sample is not among the outputs.
    """
    if len(model.inputs) != 1:
        raise BadInput(f"{subject}: accuracy needs one input; the model has {len(model.inputs)}")
    if dataset.y is None:
        raise DataError(f"{dataset.source} has no labels")
    if preprocess is None:
        refuse_ambiguous(dataset.x, model.inputs[0], dataset.source)
    fed = feed(dataset.x, model.inputs[0], preprocess)
    predicted = arrived if arrived is not None else []
    answers = inference.infer(
        session, model, ([sample] for sample in fed), limit_s=limit_s, subject=subject, progress=progress
    )
    for outputs in answers:
        scores = outputs[0].reshape(-1)
        if not predicted and not 0 <= dataset.y.min() <= dataset.y.max() < scores.size:
            raise DataError(
                f"{dataset.source}: labels go from {dataset.y.min()} to {dataset.y.max()}, "
                f"output {model.outputs[0].name!r} has {scores.size} values"
            )
        predicted.append(int(scores.argmax()))
    return count(predicted, dataset.y)


def keep(writer: RunWriter, arrived: list[int], dataset: Dataset) -> Accuracy:
    """Store the predictions that came back, all or not, with what they make."""
    assert dataset.y is not None
    so_far = count(arrived, dataset.y)
    writer.append("predicted", so_far.predicted, "class")
    writer.append("expected", dataset.y[: so_far.samples], "class")
    counted = {"metric": "top-1", "correct": so_far.correct, "samples": so_far.samples}
    writer.set(accuracy={**counted, "low": so_far.low, "high": so_far.high})
    return so_far


def count(predicted: list[int], labels: NDArray[np.int64]) -> Accuracy:
    """Compare the first ``len(predicted)`` labels."""
    classes = np.asarray(predicted, np.int64)
    correct = int((classes == labels[: len(classes)]).sum())
    low, high = wilson(correct, len(classes))
    return Accuracy(classes, correct, len(classes), low, high)


def wilson(correct: int, samples: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (E. B. Wilson, 1927); z = 1.96 gives 95 %."""
    if samples == 0:
        return 0.0, 1.0
    p = correct / samples
    centre = (p + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * (p * (1 - p) / samples + z * z / (4 * samples**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
