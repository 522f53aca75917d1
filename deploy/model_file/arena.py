"""
How much memory a .tflite's activations need: an estimate, from when each of them lives.

Planned greedily by size, the largest first, each at the lowest place where it fits (Y. Pisarchyk, J. Lee: Efficient
Memory Management for Deep Neural Net Inference, 2020), as TFLite and TFLite Micro do.  What operators need beside their
tensors, such as im2col buffers, packed weights and what a delegate keeps, comes on top and is not estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploy.model_file.layers import sources, width
from deploy.model_file.parse import Model, elements

ALIGNMENT = 64  # of TFLite's tensors


@dataclass(frozen=True)
class Arena:
    """
    Attributes:
        bytes: the whole plan.
        live: the most that is alive at one operator: no plan can do with less.
        unknown: tensors whose size the file does not say.
    """

    bytes: int
    live: int
    unknown: int = 0


@dataclass(frozen=True)
class Lifetime:
    """A tensor of `bytes`, alive from operator `first` to operator `last`, both included."""

    bytes: int
    first: int
    last: int


def arena(data: bytes, name: str) -> Arena:
    """
    Plan the main subgraph.

    Args:
        name: of the file, for messages.

    Raises:
        BuildError: not a TFLite file, or one that ends too early.
    """
    model = Model(data, name)
    with model.reading():
        lifetimes, unknown = _lifetimes(model, model.graphs[0])
    offsets = plan(lifetimes)
    ends = [offset + tensor.bytes for offset, tensor in zip(offsets, lifetimes, strict=True)]
    steps = {step for tensor in lifetimes for step in (tensor.first, tensor.last)}
    live = (sum(t.bytes for t in lifetimes if t.first <= step <= t.last) for step in steps)
    return Arena(max(ends, default=0), max(live, default=0), unknown)


def plan(lifetimes: list[Lifetime]) -> list[int]:
    """The offset of each; no two that live at once share a byte."""
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, int]] = []  # (offset, which), in the order of offsets
    for which in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].bytes, lifetimes[i].first, i)):
        tensor, offset = lifetimes[which], 0
        for start, other in placed:
            neighbour = lifetimes[other]
            if neighbour.last < tensor.first or tensor.last < neighbour.first:
                continue
            if start - offset >= tensor.bytes:
                break
            offset = max(offset, start + neighbour.bytes)
        offsets[which] = offset
        placed = sorted([*placed, (offset, which)])
    return offsets


def _lifetimes(model: Model, graph: Any) -> tuple[list[Lifetime], int]:
    operators = list(graph.operators if graph.operators is not None else ())
    constants = sources(model, graph)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for tensor in (int(i) for i in graph.inputs):
        first[tensor], last[tensor] = 0, 0
    for step, op in enumerate(operators):
        for tensor in (int(i) for i in (op.inputs if op.inputs is not None else ())):
            last[tensor] = step
        for tensor in (int(i) for i in (op.outputs if op.outputs is not None else ())):
            first.setdefault(tensor, step)
            last.setdefault(tensor, step)
    for tensor in (int(i) for i in graph.outputs):
        last[tensor] = max(len(operators) - 1, 0)
    found, unknown = [], 0
    for tensor, start in first.items():
        if tensor in constants or tensor < 0:
            continue
        described = graph.tensors[tensor]
        bits = width(model.dtype(described))
        if bits is None:
            unknown += 1
            continue
        size = -(-elements(described) * bits // 8)
        whole = described.isVariable
        aligned = -(-size // ALIGNMENT) * ALIGNMENT
        found.append(Lifetime(aligned, 0 if whole else start, len(operators) if whole else last[tensor]))
    return found, unknown
