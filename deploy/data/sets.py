"""
Where samples come from: files, folders, functions and known data sets, as one split with its labels.

Arrays are found by the names that are in use: ``x_test``/``y_test``, ``xte``/``yte``, ``x``/``y`` and the same for
training; ``classes`` may hold the classes' names.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.data import images, known
from deploy.errors import DataError, nearest

Array = NDArray[Any]

_SPLITS = {
    "test": (("x_test", "y_test"), ("xte", "yte"), ("x", "y")),
    "train": (("x_train", "y_train"), ("xtr", "ytr"), ("x", "y")),
}


@dataclass(frozen=True)
class Dataset:
    """
    Samples and labels of one split.

    Attributes:
        x: [N, ...].
        y: [N] class indices; None where there are none.
        source: for messages and records.
        classes: their names, in the order of the indices; empty where unknown.
    """

    x: Array
    y: NDArray[np.int64] | None
    source: str
    classes: tuple[str, ...] = ()


def load_arrays(spec: str) -> dict[str, Array]:
    """
    Every array of a data set.

    Raises:
        DataError: not there, not an .npz, no folder of images, or a function that returns something else.
    """
    if spec in known.NAMES:  # a file or folder of that name is ./NAME
        return known.load_known(spec)
    if Path(spec).is_dir():
        return images.load_folder(Path(spec))
    if ":" in spec and not Path(spec).exists():
        value = call(spec, DataError)
        if not isinstance(value, Mapping):
            raise DataError(f"{spec} returned a {type(value).__name__}, not a mapping of arrays")
        return {str(key): np.asarray(array) for key, array in value.items()}
    try:
        with open(spec, "rb") as file:  # numpy leaves one open that it was given by name and found damaged
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{spec}: a single array, not an .npz", "`np.savez(FILE, x=..., y=...)` makes one")
            arrays = {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except FileNotFoundError:
        near = nearest(spec, known.NAMES) if Path(spec).name == spec and "." not in spec else ""
        raise DataError(f"{spec}: No such file or directory{near}") from None
    except OSError as error:
        raise DataError(f"{spec}: {error.strerror or error}") from None
    except Exception as error:  # of a damaged file: whatever zlib, Python's tokenizer or numpy felt like
        raise DataError(f"{spec}: not an .npz of plain arrays ({error})") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{spec}: not an .npz of plain arrays ({name!r} is none)")
    return arrays


def load(spec: str, split: str, labels: bool = False) -> Dataset:
    """
    Load one split.

    Args:
        split: ``train`` or ``test``.
        labels: they must be there.

    Raises:
        DataError: as `load_arrays`; or no array has a name that is expected, lengths differ, nothing is in it.
    """
    return pick(load_arrays(spec), spec, split, labels)


def pick(arrays: Mapping[str, Array], spec: str, split: str, labels: bool = False) -> Dataset:
    """
    One split of what `load_arrays` gave for `spec`.

    Raises:
        DataError: as `load`.
    """
    names = next((pair for pair in _SPLITS[split] if pair[0] in arrays), None)
    if names is None:
        expected = " or ".join(repr(x) for x, _ in _SPLITS[split])
        raise DataError(f"{spec} has no {split} data: expected {expected}, found {_listed(arrays)}")
    x_name, y_name = names
    x, y = arrays[x_name], arrays.get(y_name)
    if y is None and labels:
        raise DataError(f"{spec} has no labels for {x_name!r}: expected {y_name!r}, found {_listed(arrays)}")
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{spec}: {x_name!r} holds no samples")
    if y is not None:
        count = len(y) if y.ndim else 0
        if count != len(x):
            raise DataError(f"{spec}: {len(x)} samples in {x_name!r}, {count} labels in {y_name!r}")
        if y.dtype.kind in "iu" and y.size == count:
            y = y.reshape(-1).astype(np.int64)  # Keras's own data sets have labels of [N, 1]
        elif _is_one_hot(y):
            y = y.argmax(axis=1).astype(np.int64)
        elif labels:
            raise DataError(f"{spec}: labels {y_name!r} are {y.dtype} {list(y.shape)}, not class indices")
        else:
            y = None
    classes = arrays["classes"] if "classes" in arrays else np.array([])
    return Dataset(x, y, spec, tuple(str(name) for name in classes.reshape(-1)))


def _is_one_hot(y: Array) -> bool:
    """[N, classes] with a single 1 in each row, as `keras.utils.to_categorical` makes it."""
    if y.ndim != 2 or y.shape[1] < 2 or y.dtype.kind not in "iufb":
        return False
    return bool(((y == 0) | (y == 1)).all() and (y.sum(axis=1) == 1).all())


def is_divided(arrays: Mapping[str, Array]) -> bool:
    """Whether there are samples for testing that are not those for training."""
    train, test = (next((x for x, _ in _SPLITS[split] if x in arrays), None) for split in ("train", "test"))
    return train is not None and test is not None and train != test


def content_digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, dtypes, shapes and values; the same data in another file has the same digest."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def call(spec: str, error: type[Exception]) -> Any:
    """
    Call ``module:function`` without arguments; modules of the current folder are found too.

    Raises:
        error: no such module or function, or it raised.
    """
    module_name, _, function_name = spec.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as cause:  # a module runs what it likes when it is imported
        raise error(f"{spec}: cannot import {module_name!r}: {cause}") from cause
    function = getattr(module, function_name, None)
    if not callable(function):
        raise error(f"{spec}: {module_name!r} has no function {function_name!r}")
    try:
        return function()
    except Exception as cause:
        raise error(f"{spec} raised {type(cause).__name__}: {cause}") from cause


def _listed(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name!r} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
