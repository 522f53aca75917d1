"""
A bundle's manifest: what is in it, how to feed it, what it must answer.

The manifest is JSON.  Its bytes are the identity of the bundle: their SHA-256 is the bundle's digest, and as they
name the digest of every file, nothing in a bundle can change without it.

History of the format:
    1  first
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

FORMAT = 1
MAX_BYTES = 1 << 20
MODEL = "model.tflite"
GOLDEN = "golden.npz"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """The manifest is not one: says which key, and why."""


def is_name(text: Any) -> bool:
    """Whether `text` can name a bundle: a single path component that no shell and no file system minds."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_digest(text: Any) -> bool:
    """Whether `text` is a SHA-256 in lower-case hexadecimal."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class TensorInfo:
    """
    One input or output of the model.

    ``real = scale * (q - zero_point)``; scale is 0 where the tensor is not quantized (or not per-tensor).
    A shape may hold -1 where the model leaves the extent open.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float = 0.0
    zero_point: int = 0


@dataclass(frozen=True)
class Manifest:
    """
    The parsed manifest.

    Attributes:
        name: names the bundle on the board; see `is_name`.
        files: path in the bundle -> its digest and size; always has `MODEL`, has `GOLDEN` where it was proven.
        inputs, outputs: of the default signature, in the model's order.
        preprocess: how a raw sample becomes the real value an input expects: ``real = raw * scale + offset``;
            absent where samples are fed as they are.
        shapes: input name -> shape, where the model's own must be changed before use.
        labels: names of the classes, in the order of the output; empty where unknown.
        recipe: how the model was made, as `deploy build` was told.
        seed: of everything random in the recipe.
        accuracy: on the host, by the runtime it names; absent where it was not evaluated.
        ops: operator -> how often, over all subgraphs; custom operators as ``CUSTOM:name``.
        kernel_abi: what the bundle asks of our kernels; 0 asks nothing.
        golden: {"vectors": n, "runtime": "..."}; absent where there are no golden vectors.
    """

    name: str
    files: dict[str, FileEntry]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocess: dict[str, float] | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    accuracy: dict[str, Any] | None = None
    ops: dict[str, int] = field(default_factory=dict)
    kernel_abi: int = 0
    golden: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """The JSON text; the same manifest always gives the same bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True, indent=1).encode() + b"\n"


def digest(data: bytes) -> str:
    """SHA-256 of `data`, lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes) -> Manifest:
    """
    Read a manifest, checking everything a board will rely on.

    Raises:
        ManifestError: not JSON, another format version, an unknown or missing key, or a value out of range.
    """
    if len(data) > MAX_BYTES:
        raise ManifestError(f"{len(data)} bytes; a manifest has at most {MAX_BYTES}")
    try:
        raw = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ManifestError("not a JSON object")
    found = raw.pop("format", None)
    if found != FORMAT:
        raise ManifestError(f"format {found!r}; this version reads {FORMAT}")
    known = {f.name for f in fields(Manifest)}
    for key in raw:
        if key not in known:
            raise ManifestError(f"unknown key {key!r}")
    for key in ("name", "files", "inputs", "outputs"):
        if key not in raw:
            raise ManifestError(f"no {key!r}")
    if not is_name(raw["name"]):
        raise ManifestError(f"name {raw['name']!r} is not letters, digits and ._+- (at most 64)")
    try:
        raw["files"] = {path: _file(path, entry) for path, entry in raw["files"].items()}
        raw["inputs"] = tuple(_tensor(entry) for entry in raw["inputs"])
        raw["outputs"] = tuple(_tensor(entry) for entry in raw["outputs"])
        raw["shapes"] = {str(k): tuple(int(x) for x in v) for k, v in raw.get("shapes", {}).items()}
        raw["labels"] = tuple(str(label) for label in raw.get("labels", ()))
    except ManifestError:
        raise
    except KeyError as error:
        raise ManifestError(f"a value is missing: {error}") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ManifestError(f"a value of the wrong type: {error}") from None
    if MODEL not in raw["files"]:
        raise ManifestError(f"files has no {MODEL!r}")
    if raw.get("golden") is not None and GOLDEN not in raw["files"]:
        raise ManifestError(f"golden is set but files has no {GOLDEN!r}")
    return Manifest(**raw)


def _file(path: str, entry: Any) -> FileEntry:
    if path not in (MODEL, GOLDEN):
        raise ManifestError(f"unexpected file {path!r}")
    if set(entry) != {"sha256", "bytes"} or not is_digest(entry["sha256"]):
        raise ManifestError(f"file {path!r} has no sha256")
    if type(entry["bytes"]) is not int or entry["bytes"] < 0:
        raise ManifestError(f"file {path!r} has no size")
    return FileEntry(**entry)


def _tensor(entry: Any) -> TensorInfo:
    return TensorInfo(
        name=str(entry["name"]),
        dtype=str(entry["dtype"]),
        shape=tuple(int(extent) for extent in entry["shape"]),
        scale=float(entry.get("scale", 0.0)),
        zero_point=int(entry.get("zero_point", 0)),
    )
