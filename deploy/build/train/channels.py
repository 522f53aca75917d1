"""
Which channels a network can do without, and what goes with them.

Every output channel has an identity.  Operators pass identities on; an addition makes two of them one, so that
channels coupled by residual connections stay or go together.  A channel's worth is the squared slope of the loss
against a factor in front of it (Molchanov et al. 2019), summed over all that is one with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from deploy.build.graph import Graph, Node
from deploy.build.repair import Progress
from deploy.build.train.loss import cross_entropy
from deploy.build.train.network import Network
from deploy.errors import BuildError

Identities = NDArray[np.int64]

MULTIPLE = 4
"""Channels are left in multiples of it where there were more: kernels take so many at a time."""

COST_POWER = 1.5
"""A worth is divided by this power of the multiplications that it costs.  With 1, few channels go from layers that see
many places, where one costs most, and too many from the late ones, which hold most of the weights: half a ResNet-8 then
kept 36 % of its weights instead of 57 %, and after four epochs answered 82.0 % of CIFAR-10's test images right instead
of 83.5 %.  2 takes the same channels as 1.5."""

LEAST_KEPT = 0.125
"""Of the channels that a layer had, at least one: a layer without any would cut the network."""


class Channels:
    """
    Attributes:
        of: node -> identities [C] of its output's channels.
        locked: identities that must stay: of inputs and outputs, and of what passes through something unknown.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.of: dict[str, Identities] = {}
        self.locked: set[int] = set()
        self._parent: list[int] = []
        shared = [layer for node in graph.weighted() for layer in node.layers[:1]]
        for node in graph:
            self.of[node.name] = self._pass(node, shared.count(next(iter(node.layers), "")) > 1)
        for name in (*graph.inputs, *graph.outputs):
            self._lock(name)
        self.of = {name: self._roots(ids) for name, ids in self.of.items()}
        self.locked = {self._root(i) for i in self.locked}

    def _pass(self, node: Node, shared: bool) -> Identities:
        given = [self.of[name] for name in node.inputs]
        if node.op in ("relu", "max_pool", "avg_pool", "mean", "pad", "softmax"):
            return given[0]
        if node.op == "add":
            for a, b in zip(*given, strict=True):
                self._parent[self._root(max(a, b))] = self._root(min(a, b))
            return given[0]
        if node.op == "concat" and node.attrs["axis"] == len(node.shape):
            return np.concatenate(given)
        if node.op == "depthwise" and not shared and node.kernel is not None:
            return np.repeat(given[0], node.kernel.shape[3])
        if node.op == "reshape":
            source = self.graph[node.inputs[0]]
            if node.channels == source.channels:
                return given[0]
            if len(node.shape) == 1:
                return np.tile(given[0], int(np.prod(source.shape[:-1])))
        if node.op not in ("input", "conv", "dense") or shared or node.attrs.get("groups", 1) != 1:
            for name in node.inputs:
                self._lock(name)
            new = self._new(node.channels)
            self.locked.update(new.tolist())
            return new
        return self._new(node.channels)

    def _new(self, count: int) -> Identities:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def _lock(self, name: str) -> None:
        self.locked.update(self.of[name].tolist())

    def _root(self, i: int) -> int:
        while self._parent[i] != i:
            i = self._parent[i]
        return i

    def _roots(self, ids: Identities) -> Identities:
        return np.array([self._root(int(i)) for i in ids], np.int64)

    def without(self, gone: Iterable[int]) -> dict[str, NDArray[np.bool_]]:
        """Node -> [C], which channels of its output are left."""
        lost = np.array(sorted(gone), np.int64)
        return {name: ~np.isin(ids, lost) for name, ids in self.of.items()}

    def macs(self, gone: Iterable[int] = ()) -> int:
        """Multiply-accumulates of one invocation without the channels `gone`."""
        removed = np.array(sorted(gone), np.int64)
        total = 0
        for node in self.graph.weighted():
            assert node.kernel is not None
            outputs = int((~np.isin(self.of[node.name], removed)).sum())
            places = int(np.prod(node.shape[:-1], dtype=np.int64))
            if node.op == "depthwise":
                total += places * int(np.prod(node.kernel.shape[:2])) * outputs
                continue
            inputs = int((~np.isin(self.of[node.inputs[0]], removed)).sum())
            per_group = inputs // node.attrs.get("groups", 1)
            total += places * int(np.prod(node.kernel.shape[:-2], dtype=np.int64)) * per_group * outputs
        return total


def worth(graph: Graph, channels: Channels, batches: Iterable[tuple[Any, Any]]) -> dict[int, float]:
    """
    The worth of every channel that may go.

    Args:
        batches: real inputs and labels.
    """
    network = Network(graph, {})
    names = [node.name for node in graph.weighted() if node.name != network.logits]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def slopes(x: Any, y: Any) -> Any:
        gates = {name: tf.ones([graph[name].channels]) for name in names}
        with tf.GradientTape() as tape:
            tape.watch(gates)
            loss = cross_entropy(network.values(x, gates=gates)[network.logits], y)
        return tape.gradient(loss, gates, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    found: dict[int, float] = {}
    for x, y in batches:
        batch: dict[int, float] = {}
        for name, slope in slopes(tf.constant(x), tf.constant(y)).items():
            for i, value in zip(channels.of[name].tolist(), np.asarray(slope).tolist(), strict=True):
                batch[i] = batch.get(i, 0.0) + value
        for i, value in batch.items():
            found[i] = found.get(i, 0.0) + value**2
    return {i: value for i, value in found.items() if i not in channels.locked}


def superfluous(
    channels: Channels, worths: dict[int, float], share: float, progress: Progress | None = None
) -> set[int]:
    """
    The channels that go: always those with the least worth for what they cost, see `COST_POWER`.

    They go `MULTIPLE` at a time from each layer, and a layer's first ones so that a multiple of it is left; the last to
    go are those of the least worth that suffice.

    Args:
        worths: channel -> worth.
        share: of the multiply-accumulates, that is to go.
        progress: called with what is being done, how much of it is done, and how much there is.

    Raises:
        BuildError: so much cannot go.
    """
    whole = channels.macs()
    target = (1 - share) * whole
    gone: set[int] = set()
    counts = {
        node.name: (channels.of[node.name], max(1, int(LEAST_KEPT * node.channels)))
        for node in channels.graph.weighted()
    }
    left = _parts(channels, worths)
    now = whole
    while now > target:
        costs = {part: max(now - channels.macs(gone.union(part)), 1) for part in left}
        best = min(left, key=lambda part: (left[part] / costs[part] ** COST_POWER, part), default=None)
        if best is None:
            raise BuildError(
                f"channel:{share:g}: only {1 - now / whole:.0%} of the multiplications can go; the rest stands "
                "in layers whose channels cannot be taken, or are the last eighth of their layer"
            )
        enough = [part for part in left if now - costs[part] <= target]
        if best in enough:
            best = min(enough, key=lambda part: (left[part], part))
        del left[best]
        after = gone.union(best)
        touched = [(ids, least) for ids, least in counts.values() if np.isin(best, ids).any()]
        if all((~np.isin(ids, list(after))).sum() >= least for ids, least in touched):
            gone, now = after, channels.macs(after)
            if progress:
                progress("choosing channels", min(whole - now, int(whole - target)), int(whole - target))
    return gone


def _parts(channels: Channels, worths: dict[int, float]) -> dict[tuple[int, ...], float]:
    """Channels that go together -> their worth; the least worthy of each layer first."""
    parts: dict[tuple[int, ...], float] = {}
    taken: set[int] = set()
    for node in channels.graph.weighted():
        ids = set(channels.of[node.name].tolist())
        free = sorted(ids.intersection(worths) - taken, key=lambda i: (worths[i], i))
        taken.update(free)
        size = MULTIPLE if len(ids) > MULTIPLE else 1
        ends = range(len(ids) % size or size, len(free) + 1, size)
        for start, end in pairwise((0, *ends)):
            parts[tuple(free[start:end])] = sum(worths[i] for i in free[start:end])
    return parts
