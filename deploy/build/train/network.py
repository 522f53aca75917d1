"""
A `Graph` as a model that can be trained, on the grids that its file will have; and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deploy.build.graph import Graph, Node, Norm, tied
from deploy.build.grid import SOFTMAX, SOFTMAX_16, Grid, weight_grid
from deploy.build.quantized import Binary, Quantized, Weights, bias_integers, roomy
from deploy.build.train.layers import KINDS, ActivationGrid, Binarize, Weighted, array, requantized
from deploy.errors import BuildError

_RELU = {"relu": tf.nn.relu, "relu6": tf.nn.relu6, "none": lambda x: x}
_TRANSPARENT = ("max_pool", "reshape")  # what one-bit activations may pass between a layer and the next


class Network(keras.Model):  # type: ignore[misc]
    """
    What `graph` computes up to a softmax at its end, which is left to the loss.

    Attributes:
        graph: as it was given, without the activations that binary layers replace.
        grids: first node of a group that shares a grid -> its layer; empty where activations are float.
        signed: nodes of which nothing but the sign is read.  A training step leaves out their grids, a tenth of its
            time in a CNV, and binary layers turn at half a step below 0, where the grid would round.
        weighted: node -> its layer.
    """

    def __init__(self, graph: Graph, kinds: Mapping[str, str], grids: Mapping[str, Grid] | None = None) -> None:
        """
        Args:
            kinds: weighted node -> float, binary or one of `deploy.build.train.layers.KINDS`; what is not named is
                float.
            grids: node -> where the grid of its output begins; None leaves activations float.

        Raises:
            BuildError: the graph cannot be trained, or a layer not binarized; which, and why.
        """
        super().__init__()
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            count = f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            raise BuildError(f"training takes a model with one input and one output; this one has {count}")
        self.graph = unclamped(graph, kinds)
        self.group = tied(self.graph)
        last = self.graph[self.graph.outputs[0]]
        self.logits = last.inputs[0] if last.op == "softmax" else last.name
        self.softmax = last.op == "softmax"
        self.ranges: dict[str, tuple[float, float]] = {}  # of calibration, for `Quantized.ranges`
        self.weighted = {node.name: Weighted(node, kinds.get(node.name, "float")) for node in self.graph.weighted()}
        self.binarize: dict[str, Binarize] = {}
        self.grids: dict[str, ActivationGrid] = {}
        self._answering: dict[tuple[bool, bool], Any] = {}
        self._make_grids(grids or {})
        for name, layer in self.weighted.items():
            if layer.kind == "binary":
                self._make_binary(name, layer)
        learned = {self.group[self.graph[name].inputs[0]] for name, one in self.binarize.items() if one.learned}
        self.signed = {
            node.name
            for node in self.graph
            if node.op != "avg_pool"  # rounds by itself
            and self.group[node.name] not in learned
            and _only_binary(self.graph, kinds, node.name)
        }

    def _make_grids(self, grids: Mapping[str, Grid]) -> None:
        for name, grid in grids.items():
            first = self.group[name]
            if first not in self.grids and self.graph[first].op != "softmax":
                # The data's own grid is a fact: pixels from 0 to 255 lie on it exactly.
                inputs = any(self.group[source] == first for source in self.graph.inputs)
                self.grids[first] = ActivationGrid(grid, learned=not inputs)

    def _make_binary(self, name: str, layer: Weighted) -> None:
        node = layer.node
        if node.op == "depthwise" or node.attrs.get("groups", 1) != 1:
            raise BuildError(
                f"layer {name!r} cannot be binary: only convolutions without groups and dense layers can",
                "`--recipe mixed:FILE` gives each layer its bits",
            )
        source = self.graph[node.inputs[0]]
        grid = self.grid_of(source.name)
        if grid is None or grid.grid.bits != 8:
            raise BuildError(f"layer {name!r} cannot be binary: its input has no 8-bit grid")
        low, high = grid.grid.range
        # What is never negative is cut in the middle of its lower half, where a ReLU's values lie.
        threshold = np.full(source.channels, 0.0 if low < 0 else high / 4, np.float32)
        self.binarize[name] = Binarize(threshold, learned=low >= 0)

    def values(self, x: Any, live: bool = False, gates: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """
        The output of every node but a final softmax.

        Args:
            x: [N, ...] real values.
            gates: node -> factors [C] of its output, for gradients that tell which channels matter.
        """
        made: dict[str, Any] = {}
        for node in self.graph:
            if node.name == self.graph.outputs[0] and self.softmax:
                break
            given = [made[name] for name in node.inputs]
            value = x if node.op == "input" else self._compute(node, given, live)
            if gates and node.name in gates:
                value = value * gates[node.name]
            made[node.name] = value if live and node.name in self.signed else self._settle(node, value)
        return made

    def call(self, x: Any, training: bool = False) -> Any:
        """Logits, or whatever the last node makes: [N, ...]."""
        return self.values(x, live=training)[self.logits]

    @property
    def stage_float(self) -> bool:
        """Whether binary layers still have float weights."""
        return any(layer.stage_float for layer in self.weighted.values())

    def answering(self, live: bool) -> Any:
        """A compiled function of a batch of real values [N, ...] that gives its logits; it is traced once."""
        key = live, self.stage_float
        if key not in self._answering:
            self._answering[key] = tf.function(lambda x: self.values(x, live=live)[self.logits], autograph=False)
        return self._answering[key]

    def follow(self, momentum: float) -> None:
        """How much of their value running means and variances keep at the next batch, in [0, 1)."""
        for layer in self.weighted.values():
            layer.momentum.assign(momentum)

    def grid_of(self, name: str) -> ActivationGrid | None:
        return self.grids.get(self.group[name])

    def _settle(self, node: Node, value: Any) -> Any:
        grid = self.grid_of(node.name)
        if grid is None or node.op in ("max_pool", "reshape", "pad"):  # their inputs lie on the grid already
            return value
        if node.op != "avg_pool":
            return grid(value)
        # TFLite divides the stored integers and rounds halves away from zero: ties are common, so it matters.
        stored = value / grid.step + grid.grid.zero_point
        steps = tf.sign(stored) * tf.floor(tf.abs(stored) + (0.5 + 1e-3))
        return value + tf.stop_gradient((steps - grid.grid.zero_point) * grid.step - value)

    def _compute(self, node: Node, given: list[Any], live: bool) -> Any:
        attrs = node.attrs
        if node.weighted:
            layer, value = self.weighted[node.name], given[0]
            source = self.grid_of(node.inputs[0])
            target = self.grid_of(node.name)
            step = None if source is None else source.step
            out_step = None if target is None else target.step
            if node.name in self.binarize:
                if live and source is not None and node.inputs[0] in self.signed:
                    value = value + tf.stop_gradient(source.step) / 2
                value, step = self.binarize[node.name](value), 1.0
            return _RELU[node.activation](layer(value, in_step=step, out_step=out_step, live=live))
        if node.op == "add":
            return _RELU[node.activation](given[0] + given[1])
        if node.op == "relu":
            return _RELU[node.activation](given[0])
        if node.op == "concat":
            return tf.concat(given, attrs["axis"])
        if node.op in ("max_pool", "avg_pool"):
            pool = tf.nn.max_pool2d if node.op == "max_pool" else tf.nn.avg_pool2d
            return pool(given[0], list(attrs["size"]), list(attrs["strides"]), attrs["padding"].upper())
        if node.op == "mean":
            return self._mean(node, given[0], live)
        if node.op == "reshape":
            return tf.reshape(given[0], [-1, *node.shape])
        if node.op == "pad":
            return tf.pad(given[0], [(0, 0), *attrs["paddings"], (0, 0)])
        if node.op == "softmax":
            return tf.nn.softmax(given[0])
        return attrs["call"](*given)

    def _mean(self, node: Node, value: Any, live: bool) -> Any:
        mean = tf.reduce_mean(value, axis=[1, 2], keepdims=node.attrs["keepdims"])
        source, target = self.grid_of(node.inputs[0]), self.grid_of(node.name)
        if live or source is None or target is None:
            return mean
        # TFLite takes the power of two in the count out of its multiplier and puts it into the shift.
        count = int(value.shape[1]) * int(value.shape[2])
        return requantized(mean, source.step / 2 ** (count.bit_length() - 1), target.step)

    def trained(self) -> Graph:
        """The graph with the weights as they are now, before rounding; zeros are zeros."""
        nodes = {}
        for node in self.graph:
            copy = replace(node, attrs=dict(node.attrs))
            if node.weighted:
                layer = self.weighted[node.name]
                copy.kernel = array(layer.kernel) * array(layer.mask)
                if node.norm is not None:
                    gamma, beta, mean, var = (array(v) for v in (layer.gamma, layer.beta, layer.mean, layer.variance))
                    copy.norm, copy.bias = Norm(gamma, beta, mean, var, node.norm.epsilon), None
                else:
                    copy.bias = array(layer.bias)
            nodes[node.name] = copy
        return replace(self.graph, nodes=nodes)

    def export(self) -> Quantized:
        """
        The integers of the file.  Its answers are those of this network when it is not training; a value differs by
        one step where float32 and the file's fixed-point multipliers round a tie apart.
        """
        grids = {node.name: self._output_grid(node) for node in self.graph}
        made = {name: grid for name, grid in grids.items() if grid is not None}
        weights = {name: self._weights(layer, made) for name, layer in self.weighted.items() if name in made}
        return Quantized(self.trained(), made, weights, dict(self.ranges))

    def _output_grid(self, node: Node) -> Grid | None:
        if node.op == "softmax":
            wide = any(layer.grid.bits == 16 for layer in self.grids.values())
            return SOFTMAX_16 if wide else SOFTMAX
        layer = self.grid_of(node.name)
        return None if layer is None else layer.export()

    def _weights(self, layer: Weighted, grids: Mapping[str, Grid]) -> Weights:
        source = grids[layer.node.inputs[0]]
        binary = None
        if layer.kind == "binary":
            binary = Binary(self.binarize[layer.node.name].export(source))
        in_scale = 1.0 if binary else float(source.scale[0])
        offset = array(layer.offset())
        real = array(layer.scale() * layer.factor())
        scale = roomy(real, offset, in_scale)
        values = layer.integers()
        if (scale != real).any():
            columns = np.rint(values.reshape(-1, scale.size) * (real / scale))
            values = columns.astype(np.int8).reshape(values.shape)
        grid = weight_grid(scale, "8" if binary else KINDS[layer.kind])
        return Weights(values, grid, bias_integers(offset, in_scale, grid, source.bits), binary)


def unclamped(graph: Graph, kinds: Mapping[str, str]) -> Graph:
    """
    `graph` without the activations in front of binary layers: one bit per value wants both signs.

    An activation goes where nothing but binary layers read the node, directly or through pools and reshapes.
    """

    nodes = {}
    for node in graph:
        drop = node.activation != "none" and node.op != "relu" and _only_binary(graph, kinds, node.name)
        nodes[node.name] = replace(node, activation="none") if drop else node
    return replace(graph, nodes=nodes)


def _only_binary(graph: Graph, kinds: Mapping[str, str], name: str) -> bool:
    """Whether nothing but binary layers read a node, directly or through pools and reshapes."""
    readers = graph.consumers(name)
    return bool(readers) and all(
        kinds.get(node.name) == "binary" or (node.op in _TRANSPARENT and _only_binary(graph, kinds, node.name))
        for node in readers
    )
