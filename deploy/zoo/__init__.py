"""
Models from the literature, as Keras builders: a start for users and benchmarks, untrained.

``deploy build zoo:resnet8 --data cifar10 --recipe int8+pretrain:60 --epochs 2`` makes one for the shape and the classes
of the data, trains it and builds it.  In Python ``deploy.zoo.make("resnet8", (32, 32, 3), 10)`` is the Keras model
alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.errors import BuildError, nearest

PREFIX = "zoo:"


@dataclass(frozen=True)
class Entry:
    """
    One model.

    Attributes:
        place: ``module:function`` of the builder, which takes the shape of a sample and the number of classes.
        shape: of a sample in the literature.
        classes: in the literature; 0 where the model does not classify.
        preprocess: how raw samples become real values unless somebody says otherwise, see `deploy.data.PREPROCESS`;
            empty where the samples are real values.
        says: what it is, in a line.
    """

    place: str
    shape: tuple[int, ...]
    classes: int
    preprocess: str
    says: str


MODELS = {
    "resnet8": Entry("resnet:resnet8", (32, 32, 3), 10, "symmetric", "ResNet of MLPerf Tiny, 12.5 M MACs"),
    "resnet20": Entry("resnet:resnet20", (32, 32, 3), 10, "symmetric", "ResNet-20 of He et al., 41 M MACs"),
    "ds_cnn": Entry("ds_cnn:ds_cnn", (49, 10, 1), 12, "", "keyword spotting of MLPerf Tiny, 2.7 M MACs"),
    "mobilenet_v1_025": Entry("mobilenet:mobilenet_v1_025", (96, 96, 3), 2, "symmetric", "MobileNetV1, width 0.25"),
    "cnv": Entry("cnv:cnv", (32, 32, 3), 10, "symmetric", "VGG-like network of FINN, for binary recipes"),
    "ad_autoencoder": Entry("autoencoder:ad_autoencoder", (640,), 0, "", "anomaly detection of MLPerf Tiny"),
}


def make(name: str, shape: Sequence[int] | None = None, classes: int | None = None) -> Any:
    """
    Build a model.

    Args:
        name: of `MODELS`.
        shape: of a sample, without the batch; the literature's where None.  A grey image may lack its last extent.
        classes: of the output; the literature's where None.

    Returns:
        A functional Keras model with fresh weights, which depend on Keras's seed alone.

    Raises:
        BuildError: no such model, or one that does not take that shape.
    """
    entry = MODELS.get(name)
    if entry is None:
        raise BuildError(f"no model {PREFIX}{name}{nearest(name, MODELS)}")
    extents = tuple(shape) if shape is not None else entry.shape
    if len(extents) == 2 and len(entry.shape) == 3:
        extents = (*extents, 1)
    if len(extents) != len(entry.shape):
        raise BuildError(f"{PREFIX}{name} takes samples such as {list(entry.shape)}, not {list(extents)}")
    module, _, function = entry.place.partition(":")
    builder = getattr(importlib.import_module(f"deploy.zoo.{module}"), function)
    try:
        return builder(extents, entry.classes if classes is None else classes)
    except ValueError as error:  # Keras: an extent that is negative after a convolution, as a rule
        reason = " ".join(str(error).split())[:200]
        raise BuildError(f"{PREFIX}{name} cannot take samples of {list(extents)}: {reason}") from error
