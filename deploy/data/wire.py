"""Arrays as the protocol carries them."""

from __future__ import annotations

import numpy as np

from deploy.data.sets import Array
from devices.protocol.tensors import TensorSpec, pack_strings, unpack_strings


def to_wire(name: str, array: Array) -> tuple[TensorSpec, bytes]:
    """One tensor as `devices.protocol.tensors.pack` takes it."""
    if array.dtype.kind in "OSU":
        strings = [s if isinstance(s, bytes) else str(s).encode() for s in array.reshape(-1).tolist()]
        return TensorSpec(name, "string", array.shape), pack_strings(strings)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return TensorSpec(name, array.dtype.name, array.shape), little.tobytes()


def from_wire(spec: TensorSpec, values: bytes) -> Array:
    """Undo `to_wire`."""
    if spec.dtype == "string":
        return np.array(unpack_strings(values, spec.elements), dtype=object).reshape(spec.shape)
    return np.frombuffer(values, np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
