"""
Data sets, and how their samples become a model's input.

A data set is one of

- an ``.npz`` file,
- a folder of images, ``FOLDER/CLASS/*.png`` or ``FOLDER/train|test/CLASS/*.png`` (`deploy.data.images`),
- ``digits``, ``cifar10`` or ``mnist``, fetched once and kept (`deploy.data.known`),
- ``module:function`` that returns a mapping of arrays.
"""

from deploy.data.feed import PREPROCESS, ambiguous, feed, parse_preprocess, random_inputs, refuse_ambiguous
from deploy.data.known import prepare
from deploy.data.sets import Array, Dataset, call, content_digest, is_divided, load, load_arrays, pick
from deploy.data.wire import from_wire, to_wire

__all__ = [
    "PREPROCESS",
    "Array",
    "Dataset",
    "ambiguous",
    "call",
    "content_digest",
    "feed",
    "from_wire",
    "is_divided",
    "load",
    "load_arrays",
    "parse_preprocess",
    "pick",
    "prepare",
    "random_inputs",
    "refuse_ambiguous",
    "to_wire",
]
