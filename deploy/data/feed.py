"""How raw samples become a model's input: the same on the host and on a board."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from deploy.data.sets import Array
from deploy.errors import BadInput, DataError
from devices.protocol.manifest import TensorInfo
from devices.protocol.tensors import TensorSpec

MAX_SATURATED = 0.01

# What `--preprocess` may name: real = raw * scale + offset.
PREPROCESS = {
    "raw": {"scale": 1.0, "offset": 0.0},
    "unit": {"scale": 1 / 255, "offset": 0.0},
    "symmetric": {"scale": 1 / 127.5, "offset": -1.0},
}


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


def ambiguous(samples: Array, info: TensorInfo) -> bool:
    """
    Whether only a preprocess can say what the samples mean: they are whole numbers, such as pixels, and the input takes
    real ones (as they are, or quantized to another type).
    """
    real = info.scale != 0 or info.dtype.startswith(("float", "bfloat"))
    return real and samples.dtype.kind in "iub" and samples.dtype.name != info.dtype


def refuse_ambiguous(samples: Array, info: TensorInfo, source: str) -> None:
    """
    For where no preprocess is known, and a wrong one would give answers that look like answers.

    Args:
        source: of the samples, for the message.

    Raises:
        BadInput: they are `ambiguous`.
    """
    if ambiguous(samples, info):
        raise BadInput(
            f"{source}: samples are {samples.dtype}, input {info.name!r} takes real values: only a preprocess can say "
            "what they mean",
            "`--preprocess raw`, `unit` (x/255), `symmetric` (x/127.5-1) or SCALE,OFFSET, as in training",
        )


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
