"""
Training samples: checked once, then handed out in batches that depend on nothing but seed, epoch and position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.build.graph import Floats, Graph
from deploy.data import Dataset
from deploy.errors import BuildError, DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class Samples:
    """
    Attributes:
        x: [N, ...] as they were given, in the shape of the model's input.
        y: [N] class indices.
        scale, offset: real value = ``x * scale + offset``.
        source: for messages.
    """

    x: Array
    y: NDArray[np.int64]
    scale: float = 1.0
    offset: float = 0.0
    source: str = "data"

    def __len__(self) -> int:
        return len(self.x)

    def real(self, x: Array) -> Floats:
        return np.asarray(x, np.float32) * np.float32(self.scale) + np.float32(self.offset)

    def some(self, name: str, count: int, seed: int) -> dict[str, Floats]:
        """`name` -> real values of at most `count` samples, drawn by `seed`."""
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return {name: self.real(self.x[chosen])}

    def batches(self, size: int) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        """All of it once, in order."""
        for start in range(0, len(self), size):
            yield self.real(self.x[start : start + size]), self.y[start : start + size]

    def shuffled(
        self, size: int, seed: int, epoch: int, augment: bool = False
    ) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        """
        One epoch of whole batches; what is left over takes its turn in another epoch.

        Args:
            size: of a batch; a set that is smaller is one batch.
            augment: shift images, and mirror those that have colours.
        """
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(self))
        size = min(size, len(self))
        for start in range(0, len(self) - size + 1, size):
            chosen = order[start : start + size]
            x = self.x[chosen]
            yield self.real(_augmented(x, rng) if augment and is_image(x) else x), self.y[chosen]


def is_image(x: Array) -> bool:
    """[N, H, W, 1 or 3] with sides of 8 or more."""
    return x.ndim == 4 and x.shape[-1] in (1, 3) and min(x.shape[1:3]) >= 8


def _augmented(x: Array, rng: np.random.Generator) -> Array:
    """
    Shift by up to an eighth of a side, with the border's values moving in; mirror half of the images.

    Images of one channel are not mirrored: as a rule they are writing or spectrograms.
    """
    count, height, width, channels = x.shape
    up, left = height // 8, width // 8
    wide = np.pad(x, ((0, 0), (up, up), (left, left), (0, 0)), mode="reflect")
    rows = np.arange(height) + rng.integers(0, 2 * up, (count, 1), endpoint=True)
    columns = np.arange(width) + rng.integers(0, 2 * left, (count, 1), endpoint=True)
    if channels == 3:
        columns = np.where(rng.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    return np.asarray(wide[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]])


def check(
    data: Dataset,
    shape: tuple[int, ...],
    classes: int,
    preprocess: Mapping[str, float] | None = None,
    one_class: bool = False,
) -> Samples:
    """
    A data set as training takes it.

    Args:
        shape: of one sample, as the model's input has it; extents of 1 may be missing or too many in the data.
        classes: outputs of the model.

    Raises:
        DataError: nothing in it, no labels, samples of another shape, values that are not finite, a label that the
            model has no output for, or one class only.
    """
    if len(data.x) == 0:
        raise DataError(f"{data.source} holds no samples to train on")
    if data.y is None:
        raise DataError(f"{data.source} has no labels to train on", "an .npz with x_train and y_train has them")
    given = tuple(data.x.shape[1:])
    if [n for n in given if n != 1] != [n for n in shape if n != 1]:
        raise DataError(f"{data.source}: a sample is {list(given)}, the model takes {list(shape)}")
    if data.x.dtype.kind not in "iufb":
        raise DataError(f"{data.source}: samples are {data.x.dtype}, not numbers")
    if data.x.dtype.kind == "f" and not np.isfinite(data.x).all():
        bad = int(np.argmin(np.isfinite(data.x.reshape(len(data.x), -1)).all(axis=1)))
        raise DataError(f"{data.source}: sample {bad} holds a value that is not finite")
    low, high = int(data.y.min()), int(data.y.max())
    if low < 0 or high >= classes:
        raise DataError(f"{data.source}: labels go from {low} to {high}, the model has {classes} outputs")
    if low == high and not one_class:
        raise DataError(
            f"{data.source}: all {len(data.y)} samples are of class {low}: nothing can be learned from them"
        )
    scale, offset = (preprocess or {}).get("scale", 1.0), (preprocess or {}).get("offset", 0.0)
    return Samples(data.x.reshape(len(data.x), *shape), data.y, scale, offset, data.source)


def fit(graph: Graph, data: Dataset, preprocess: Mapping[str, float] | None = None, one_class: bool = False) -> Samples:
    """
    `check` against what `graph` takes and answers.

    Raises:
        BuildError: it has several inputs or outputs, or answers something else than one value for each class.
        DataError: as `check`.
    """
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        count = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        raise BuildError(f"training takes a model with one input and one output; this one has {count}")
    out = graph[graph.outputs[0]]
    if len(out.shape) != 1 or out.channels < 2:
        raise BuildError(f"training takes a classifier; this model answers {list(out.shape)} for each sample")
    return check(data, graph[graph.inputs[0]].shape, out.channels, preprocess, one_class)
