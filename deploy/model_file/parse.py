"""A .tflite in the schema's object form, and the integers and floats of its constants."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import BuildError

_IDENTIFIER = b"TFL3"
_HINT = "`deploy build` takes .tflite, .keras, .h5, a SavedModel folder or module:function"
_WHOLE_BYTES = {"bool": "?", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
                "int64": "i8", "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8"}  # fmt: skip
PACKED = {"int4": 4, "uint4": 4, "int2": 2}
"""Types of which several values share a byte, the first in its lowest bits."""


class Model:
    """
    A parsed file.

    Attributes:
        root: the schema's ModelT.
        bytes: of the file.
        name: of the file, for messages.
    """

    def __init__(self, data: bytes, name: str) -> None:
        """
        Raises:
            BuildError: not a TFLite file, or one that ends too early.
        """
        from ai_edge_litert import schema_py_generated as schema

        self.bytes, self.name = len(data), name
        if not data:
            raise BuildError(f"{name}: not a TFLite file (it is empty)", _HINT)
        if data[4:8] != _IDENTIFIER:
            raise BuildError(f"{name}: not a TFLite file (no 'TFL3' at byte 4, but {data[4:8]!r})", _HINT)
        self._types = _reverse(schema.TensorType)
        self._operators = _reverse(schema.BuiltinOperator)
        with self.reading():
            self.root: Any = schema.ModelT.InitFromPackedBuf(data, 0)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Whatever a damaged file makes of reading it becomes one BuildError."""
        try:
            yield
        except (struct.error, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError):
            raise BuildError(f"{self.name}: not a TFLite file, or cut short ({self.bytes} bytes)", _HINT) from None

    @property
    def graphs(self) -> list[Any]:
        graphs = list(self.root.subgraphs if self.root.subgraphs is not None else ())
        if not graphs:
            raise BuildError(f"{self.name}: no subgraph in the model")
        return graphs

    def operator(self, op: Any) -> str:
        """An operator's name; ``CUSTOM:name``, and ``BUILTIN:n`` of a newer schema."""
        code = self.root.operatorCodes[op.opcodeIndex]
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)
        operator = self._operators.get(builtin, f"BUILTIN:{builtin}")
        return f"CUSTOM:{text(code.customCode)}" if operator == "CUSTOM" else operator

    def dtype(self, tensor: Any) -> str:
        return self._types[tensor.type].lower()

    def content(self, tensor: Any) -> NDArray[np.uint8] | None:
        """The stored bytes of a constant; None for what is computed."""
        stored = self.root.buffers[tensor.buffer].data if tensor.buffer < len(self.root.buffers) else None
        return None if stored is None or len(stored) == 0 else np.asarray(stored, np.uint8)

    def stored(self, tensor: Any) -> NDArray[Any] | None:
        """The stored values of a constant, flat; None for what is computed, and for types that are not read here."""
        content, dtype = self.content(tensor), self.dtype(tensor)
        if content is None:
            return None
        if dtype in _WHOLE_BYTES:
            width = np.dtype(_WHOLE_BYTES[dtype]).itemsize
            return np.frombuffer(content[: content.size // width * width].tobytes(), "<" + _WHOLE_BYTES[dtype])
        if dtype not in PACKED:
            return None
        bits = PACKED[dtype]
        values = (content[:, np.newaxis] >> np.arange(0, 8, bits, dtype=np.uint8)) & ((1 << bits) - 1)
        # All of a byte may be padding but its first value.
        flat = values.reshape(-1)[: max(elements(tensor), 1)] if tensor.sparsity is None else values.reshape(-1)
        if dtype.startswith("u"):
            return flat
        sign = np.int8(1 << (bits - 1))
        return np.asarray((flat.astype(np.int8) ^ sign) - sign, np.int8)


def shape(tensor: Any) -> tuple[int, ...]:
    """As it is without a resize."""
    return tuple(int(extent) for extent in (tensor.shape if tensor.shape is not None else ()))


def elements(tensor: Any) -> int:
    return int(np.prod(shape(tensor), dtype=np.int64))


def scales(tensor: Any) -> NDArray[np.float32]:
    """[channels], [1] or, where the tensor is not quantized, []."""
    quantization = tensor.quantization
    found = quantization.scale if quantization is not None and quantization.scale is not None else ()
    return np.asarray(found, np.float32)


def zero_points(tensor: Any) -> NDArray[np.int64]:
    quantization = tensor.quantization
    found = quantization.zeroPoint if quantization is not None and quantization.zeroPoint is not None else ()
    return np.asarray(found, np.int64)


def text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else (value or "")


def _reverse(enum: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if isinstance(value, int)}
