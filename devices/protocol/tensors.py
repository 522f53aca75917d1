"""
Tensors on the wire: a list of descriptions in the header, the values end to end in the payload.

Values are little-endian, in C order.  Strings (LiteRT's own tensor type) are each a 4-byte length and the bytes.
The code needs no numpy: the agent's main process passes tensors on without ever importing it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Bytes per element; 0 where the length lies in the values.
ITEM_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "int32": 4,
    "uint32": 4,
    "float32": 4,
    "int64": 8,
    "uint64": 8,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
    "string": 0,
}
_LENGTH = struct.Struct("<I")
MAX_RANK = 16


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of one tensor.  dtype is a key of `ITEM_BYTES`; every extent is >= 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Product of the extents; 1 for a scalar."""
        product = 1
        for extent in self.shape:
            product *= extent
        return product

    def __str__(self) -> str:
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


def pack(tensors: Iterable[tuple[TensorSpec, bytes]]) -> tuple[list[dict[str, Any]], bytes]:
    """Return the descriptions for a header, and the payload."""
    described = []
    parts = []
    for spec, values in tensors:
        described.append({"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "bytes": len(values)})
        parts.append(values)
    return described, b"".join(parts)


def unpack(described: Any, payload: bytes) -> list[tuple[TensorSpec, bytes]]:
    """
    Undo `pack`, believing nothing.

    Raises:
        ValueError: a description is not what `pack` makes, or the lengths do not add up to the payload.
    """
    if not isinstance(described, list):
        raise ValueError("tensors is not a list")
    out = []
    at = 0
    for entry in described:
        spec, size = _parse(entry)
        expected = ITEM_BYTES[spec.dtype] * spec.elements
        if spec.dtype != "string" and size != expected:
            raise ValueError(f"tensor {spec.name!r} is {spec} and so {expected} bytes, not {size}")
        if at + size > len(payload):
            raise ValueError(f"tensor {spec.name!r} ends at byte {at + size} of a payload of {len(payload)}")
        out.append((spec, payload[at : at + size]))
        at += size
    if at != len(payload):
        raise ValueError(f"{len(payload) - at} bytes of payload belong to no tensor")
    return out


def _parse(entry: Any) -> tuple[TensorSpec, int]:
    if not isinstance(entry, dict):
        raise ValueError("a tensor's description is not an object")
    name, dtype, shape, size = (entry.get(key) for key in ("name", "dtype", "shape", "bytes"))
    if not isinstance(name, str):
        raise ValueError("a tensor has no name")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_RANK
        or not all(type(extent) is int and 0 <= extent < 2**31 for extent in shape)
    ):
        raise ValueError(f"tensor {name!r} has no usable shape: {shape!r}")
    if type(size) is not int or size < 0:
        raise ValueError(f"tensor {name!r} has no usable length: {size!r}")
    return TensorSpec(name, dtype, tuple(shape)), size


def pack_strings(strings: Sequence[bytes]) -> bytes:
    """The values of a string tensor, as `pack` takes them."""
    return b"".join(_LENGTH.pack(len(value)) + value for value in strings)


def unpack_strings(values: bytes, count: int) -> list[bytes]:
    """
    Undo `pack_strings`.

    Raises:
        ValueError: the bytes do not hold exactly `count` strings.
    """
    out: list[bytes] = []
    at = 0
    while at < len(values) and len(out) < count:
        if at + _LENGTH.size > len(values):
            break
        (size,) = _LENGTH.unpack_from(values, at)
        at += _LENGTH.size
        out.append(values[at : at + size])
        at += size
    if at != len(values) or len(out) != count:
        raise ValueError(f"{len(values)} bytes do not hold {count} strings")
    return out
