"""
A model that was compiled for the accelerator: what the board runs on it, and what stays with the CPU.

The file begins with 16 bytes (`DHAC`, version, length of the header, all little-endian, and 4 bytes of zeros), then the
header as JSON, then what its spans point at.  The model runs as `steps`, in order; a step reads and makes tensors,
which go by their numbers in the original file::

    {"kind": "cpu", "model": span, "inputs": [tensor, ...], "outputs": [tensor, ...], "nodes": [...]}
    {"kind": "pl", "image": span, "prepare": program, "run": program, "resident": bool,
     "inputs": [port, ...], "outputs": [port, ...], "input_bytes": n, "output_bytes": n, "nodes": [...],
     "layers": [[words, [node, ...]], ...]}

A span is an offset behind the header and a length.  A program is ``[offset, words, limit]``: 64-bit words at an offset
of the image, and a number of cycles that it stays far below.  `layers` says, in order, which nodes `run` has computed
after so many of its words.  A port is ``{"tensor", "offset", "pad", "size", "shape", "gather": span}``: `size` bytes at
`offset` of the buffer, and for each the number of the value it holds (int32; -1: none, `pad` instead).

A release names the file that belongs to it, or why there is none, in ``accelerated.json`` (`Entry`).

History: 1, the first.  2: limits of programs; layers.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

from devices.protocol.manifest import is_digest

VERSION = 2
FILE = "accelerated.json"
_MAGIC = b"DHAC"
_HEAD = struct.Struct("<4sIII")


class FormatError(ValueError):
    """The file is no compiled model, or one of another version."""


@dataclass(frozen=True)
class Entry:
    """
    What a release says of the compiled model: which it is, or why there is none.

    Attributes:
        sha256: of the file, in the board's store.
        golden: of another one: the golden vectors of the bundle, answered by TFLite's reference kernels; None where the
            bundle has none.
        why: there is none, in a few words.
    """

    sha256: str | None = None
    golden: str | None = None
    why: str | None = None

    def files(self) -> set[str]:
        """Digests of what must be in the store."""
        return {digest for digest in (self.sha256, self.golden) if digest is not None}

    def encode(self) -> bytes:
        return json.dumps(vars(self), sort_keys=True).encode()


def entry(given: Any) -> Entry:
    """
    The entry of what JSON holds, or of the bytes of `FILE`.

    Raises:
        FormatError: it is none.
    """
    try:
        fields = json.loads(given) if isinstance(given, bytes) else given
        made = Entry(**fields)
    except (TypeError, ValueError) as error:
        raise FormatError(f"no entry for a compiled model: {error}") from error
    if not (isinstance(made.why, str) if made.sha256 is None else all(map(is_digest, made.files()))):
        raise FormatError("an entry for a compiled model names it, or says why there is none")
    return made


@dataclass(frozen=True)
class Accelerated:
    """
    Attributes:
        identity: what the overlay's IDENTITY register must hold, and `shape` its SHAPE register.
        model_sha256: of the .tflite file that was compiled.
        inputs, outputs: of the model, by number.
        nodes: of the model: `op`, `kernel` (None: LiteRT's) and `reason`.
        steps: see above.
        body: what spans point into.
    """

    identity: int
    shape: int
    model_sha256: str
    inputs: list[int]
    outputs: list[int]
    nodes: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    body: bytes

    def span(self, where: list[int]) -> bytes:
        """
        The bytes of a span.

        Raises:
            FormatError: it ends behind the file.
        """
        offset, length = int(where[0]), int(where[1])
        if offset < 0 or length < 0 or offset + length > len(self.body):
            raise FormatError(f"bytes {offset} to {offset + length} of {len(self.body)}")
        return self.body[offset : offset + length]

    def encode(self) -> bytes:
        fields = {name: value for name, value in self.__dict__.items() if name != "body"}
        header = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        return _HEAD.pack(_MAGIC, VERSION, len(header), 0) + header + self.body


def decode(data: bytes) -> Accelerated:
    """
    What `Accelerated.encode` made.

    Raises:
        FormatError: it is something else, of another version, or cut short.
    """
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise FormatError("not a model that was compiled for the accelerator")
    _, version, length, _ = _HEAD.unpack_from(data)
    if version != VERSION:
        raise FormatError(f"format {version}, and this is {VERSION}")
    try:
        fields = json.loads(data[_HEAD.size : _HEAD.size + length])
        return Accelerated(body=data[_HEAD.size + length :], **fields)
    except (TypeError, ValueError) as error:
        raise FormatError(f"a damaged header: {error}") from error
