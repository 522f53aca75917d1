"""Samples with labels that travel with a plan, so that whoever has the board can say how often it answers right."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from deploy.data import Dataset, load
from deploy.errors import DataError


@dataclass(frozen=True)
class Labelled:
    """
    Attributes:
        data: an .npz with x_test and y_test.
    """

    data: bytes

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def packed(self) -> bytes:
        """As a bundle: what is brought to gateways."""
        return self.data

    def dataset(self) -> Dataset:
        """
        Raises:
            DataError: it is not what `read` packed.
        """
        try:
            with np.load(io.BytesIO(self.data), allow_pickle=False) as arrays:
                return Dataset(arrays["x_test"], arrays["y_test"], f"data {self.digest[:12]}")
        except (ValueError, OSError, LookupError) as error:
            raise DataError(f"what came are no samples with labels: {error}") from None


def read(spec: str, samples: int | None) -> Labelled:
    """
    The first so many test samples of a data set, or all of them.

    Args:
        spec: as `deploy.data.load` takes it.

    Raises:
        DataError: as `deploy.data.load`.
    """
    whole = load(spec, "test", labels=True)
    assert whole.y is not None
    out = io.BytesIO()
    np.savez_compressed(out, x_test=whole.x[:samples], y_test=whole.y[:samples])
    return Labelled(out.getvalue())
