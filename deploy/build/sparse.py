"""
The schema's sparse encoding, blocks of 16 along the input channels: 1x16 of a dense layer.

Stock LiteRT computes a 1x16 dense layer as it is, and a convolution after DENSIFY has made it dense again; our delegate
reads both.  It pays for storage alone: `kernels/README.md` says what runs fast.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

BLOCK = 16


def block_sparsity(values: NDArray[np.int8]) -> tuple[schema.SparsityParametersT, NDArray[np.int8]]:
    """
    Which blocks are kept, and their values.

    Args:
        values: [..., in_c] as TFLite keeps weights, in_c a multiple of `BLOCK`; blocks of nothing but zeros go.
    """
    *outer, channels = values.shape
    blocks = values.reshape(-1, channels // BLOCK, BLOCK)
    kept = blocks.any(axis=2)
    segments = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    dimensions = [_dense(extent) for extent in outer]
    dimensions += [_compressed(segments, np.nonzero(kept)[1]), _dense(BLOCK)]
    sparsity = schema.SparsityParametersT()
    sparsity.traversalOrder = list(range(values.ndim + 1))
    sparsity.blockMap = [values.ndim - 1]
    sparsity.dimMetadata = dimensions
    return sparsity, np.ascontiguousarray(blocks[kept])


def _dense(extent: int) -> schema.DimensionMetadataT:
    dimension = schema.DimensionMetadataT()
    dimension.format, dimension.denseSize = schema.DimensionType.DENSE, int(extent)
    return dimension


def _compressed(segments: NDArray[np.int64], indices: NDArray[np.int64]) -> schema.DimensionMetadataT:
    dimension = schema.DimensionMetadataT()
    dimension.format = schema.DimensionType.SPARSE_CSR
    dimension.arraySegmentsType, dimension.arraySegments = _vector(segments)
    dimension.arrayIndicesType, dimension.arrayIndices = _vector(indices)
    return dimension


def _vector(values: NDArray[np.int64]) -> tuple[int, schema.Int32VectorT]:
    vector = schema.Int32VectorT()
    vector.values = values.astype(np.int32)
    return schema.SparseIndexVector.Int32Vector, vector
