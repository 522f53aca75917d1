"""
Data sets, and how their samples become a model's input.

A data set is an ``.npz`` file, or ``module:function`` that returns a mapping of arrays.  Arrays are found by the names
that are in use: ``x_test``/``y_test``, ``xte``/``yte``, ``x``/``y`` and the same for training.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import BadInput, DataError
from devices.protocol.manifest import TensorInfo
from devices.protocol.tensors import TensorSpec, pack_strings

Array = NDArray[Any]

_SPLITS = {
    "test": (("x_test", "y_test"), ("xte", "yte"), ("x", "y")),
    "train": (("x_train", "y_train"), ("xtr", "ytr"), ("x", "y")),
}
MAX_SATURATED = 0.01

# What `--preprocess` may name: real = raw * scale + offset.
PREPROCESS = {
    "raw": {"scale": 1.0, "offset": 0.0},
    "unit": {"scale": 1 / 255, "offset": 0.0},
    "symmetric": {"scale": 1 / 127.5, "offset": -1.0},
}


@dataclass(frozen=True)
class Dataset:
    """
    Samples and labels of one split.

    Attributes:
        x: [N, ...].
        y: [N] class indices; None where there are none.
        source: for messages and records.
    """

    x: Array
    y: NDArray[np.int64] | None
    source: str


def load_arrays(spec: str) -> dict[str, Array]:
    """
    Every array of a data set.

    Raises:
        DataError: not there, not an .npz, or a function that returns something else.
    """
    if ":" in spec and not Path(spec).exists():
        value = call(spec, DataError)
        if not isinstance(value, Mapping):
            raise DataError(f"{spec} returned a {type(value).__name__}, not a mapping of arrays")
        return {str(key): np.asarray(array) for key, array in value.items()}
    try:
        archive = np.load(spec, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{spec}: a single array, not an .npz", "`np.savez(FILE, x=..., y=...)` makes one")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except DataError:
        raise
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
    arrays = load_arrays(spec)
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
        elif labels:
            raise DataError(f"{spec}: labels {y_name!r} are {y.dtype} {list(y.shape)}, not class indices")
        else:
            y = None
    return Dataset(x, y, spec)


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


def parse_preprocess(text: str) -> dict[str, float]:
    """
    Read ``raw``, ``unit`` (x/255), ``symmetric`` (x/127.5 - 1) or ``SCALE,OFFSET``.

    Raises:
        DataError: something else.
    """
    if text in PREPROCESS:
        return dict(PREPROCESS[text])
    try:
        scale, offset = (float(part) for part in text.split(","))
        if not (math.isfinite(scale) and math.isfinite(offset)):
            raise ValueError(text)
    except ValueError:
        names = ", ".join(PREPROCESS)
        raise DataError(f"preprocess {text!r} is none of {names} or SCALE,OFFSET such as 0.0078431,-1") from None
    return {"scale": scale, "offset": offset}


def feed(samples: Array, info: TensorInfo, preprocess: Mapping[str, float] | None = None) -> Array:
    """
    Turn raw samples into what an input takes.

    Samples of the input's own dtype pass as they are, unless `preprocess` is given.  Otherwise they are real
    values (after ``raw * scale + offset``) and are quantized with the input's scale and zero point.

    Args:
        samples: [N, ...]; extents of 1 may be missing or too many.
        info: the input, with a batch extent of 1 (or open).

    Returns:
        [N, 1, ...] of the input's dtype: one whole input tensor a sample.

    Raises:
        BadInput: shape or dtype do not fit (both are said), or more than 1 % of the values lie outside of what the
            input can hold, which nobody wants: they need a preprocess.
    """
    given = TensorSpec(info.name, samples.dtype.name, tuple(samples.shape[1:]))
    wanted = TensorSpec(info.name, info.dtype, tuple(info.shape))
    shape = _tensor_shape(info.shape, given.shape)
    if shape is None:
        raise BadInput(
            f"input {info.name!r} is {wanted}; a sample is {given}", "`deploy inspect MODEL` shows what it takes"
        )
    full = (len(samples), *shape)
    if info.dtype == "string":
        return samples.reshape(full)
    dtype = np.dtype(info.dtype)
    if samples.dtype == dtype and preprocess is None:
        return samples.reshape(full)
    if samples.dtype.kind not in "iufb":
        raise BadInput(f"input {info.name!r} is {wanted}; a sample is {given}")
    if dtype.kind in "iu" and info.scale == 0:
        if samples.dtype.kind not in "iub" or preprocess is not None:
            raise BadInput(f"input {info.name!r} is {wanted} and not quantized; a sample is {given}")
        limits = np.iinfo(dtype)
        if samples.size and not (limits.min <= samples.min() and samples.max() <= limits.max):
            raise BadInput(f"input {info.name!r} is {wanted}; the samples go from {samples.min()} to {samples.max()}")
        return samples.astype(dtype).reshape(full)
    real = samples.astype(np.float32)
    if preprocess is not None:
        real = real * np.float32(preprocess["scale"]) + np.float32(preprocess["offset"])
    if dtype.kind == "f":
        return real.astype(dtype).reshape(full)
    if dtype.kind not in "iu":
        raise BadInput(f"input {info.name!r} is {wanted}; a sample is {given}")
    return _quantize(real, info, preprocess is not None).reshape(full)


def _tensor_shape(open_shape: tuple[int, ...], sample: tuple[int, ...]) -> tuple[int, ...] | None:
    """The whole input tensor's shape for one sample; None where the sample does not fit."""
    if not open_shape:
        return () if sample in ((), (1,)) else None
    batch, *rest = open_shape
    if -1 in rest:  # nothing to reshape to: the sample must have these extents, with or without the batch
        whole = sample if len(sample) == len(open_shape) else (1, *sample)
        fits = len(whole) == len(open_shape) and all(o in (-1, e) for o, e in zip(open_shape, whole, strict=True))
        return whole if fits else None
    whole = (1 if batch == -1 else batch, *rest)
    return whole if [e for e in whole if e != 1] == [e for e in sample if e != 1] else None


def _quantize(real: Array, info: TensorInfo, stated: bool) -> Array:
    limits = np.iinfo(info.dtype)
    if nans := int(np.isnan(real).sum()):
        raise BadInput(f"{nans} of {real.size} values are NaN, which input {info.name!r}, {info.dtype}, cannot hold")
    steps = np.round(real / np.float32(info.scale) + info.zero_point)
    if not stated and steps.size:
        # One step of slack: 255/255 at a scale of 1/256 is no mistake.
        outside = float(((steps < limits.min - 1) | (steps > limits.max + 1)).mean())
        if outside > MAX_SATURATED:
            low, high = ((limit - info.zero_point) * info.scale for limit in (limits.min, limits.max))
            raise BadInput(
                f"{outside:.0%} of the values lie outside of [{low:.4g}, {high:.4g}], which is what input "
                f"{info.name!r} can hold; they go from {real.min():.4g} to {real.max():.4g}",
                "`--preprocess symmetric` is x/127.5-1, `unit` is x/255, `SCALE,OFFSET` is anything, `raw` means it",
            )
    return np.clip(steps, limits.min, limits.max).astype(info.dtype)


def random_inputs(inputs: tuple[TensorInfo, ...], count: int, seed: int) -> list[list[Array]]:
    """
    Inputs for a model nobody gave data for: `count` times one array for each input, the same for the same seed.

    Floats are uniform in [0, 1), 8- and 16-bit integers in [-128, 127] or [0, 127], wider ones (indices, as a rule)
    0 or 1, strings empty.  An open extent becomes 1.
    """
    rng = np.random.default_rng(seed)
    return [[_random(info, rng) for info in inputs] for _ in range(count)]


def _random(info: TensorInfo, rng: np.random.Generator) -> Array:
    shape = tuple(1 if extent < 0 else extent for extent in info.shape)
    if info.dtype == "string":
        return np.full(shape, b"", dtype=object)
    dtype = np.dtype(info.dtype)
    if dtype.kind == "f":
        return rng.random(shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.random(shape) + 1j * rng.random(shape)).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    low = 0 if dtype.itemsize > 2 else max(np.iinfo(dtype).min, -128)
    high = 1 if dtype.itemsize > 2 else 127
    return rng.integers(low, high, shape, endpoint=True).astype(dtype)


def to_wire(name: str, array: Array) -> tuple[TensorSpec, bytes]:
    """One tensor as `devices.protocol.tensors.pack` takes it."""
    if array.dtype.kind in "OSU":
        strings = [s if isinstance(s, bytes) else str(s).encode() for s in array.reshape(-1).tolist()]
        return TensorSpec(name, "string", array.shape), pack_strings(strings)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return TensorSpec(name, array.dtype.name, array.shape), little.tobytes()


def from_wire(spec: TensorSpec, values: bytes) -> Array:
    """Undo `to_wire`."""
    from devices.protocol.tensors import unpack_strings

    if spec.dtype == "string":
        return np.array(unpack_strings(values, spec.elements), dtype=object).reshape(spec.shape)
    return np.frombuffer(values, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)


def _listed(arrays: Mapping[str, Array]) -> str:
    return ", ".join(f"{name!r} {list(array.shape)}" for name, array in arrays.items()) or "nothing"
