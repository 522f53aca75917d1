"""
Training towards the integers of the file: quantization-aware, pruned, distilled.

`train` takes a `Graph` and a recipe and returns the trained graph with its integers.  Importing it imports TensorFlow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deploy.build.calibrate import calibrate, grids
from deploy.build.from_keras import from_keras
from deploy.build.graph import Floats, Graph, Node, fold, folded
from deploy.build.posttraining import Options, quantize
from deploy.build.prune import prunable
from deploy.build.quantized import Quantized
from deploy.build.recipe import Recipe
from deploy.build.repair import SAMPLES, pruned
from deploy.build.source import limit_threads
from deploy.build.train import samples as sample_sets
from deploy.build.train.layers import KINDS, array
from deploy.build.train.loop import Progress, Report, Settings, Trainer, settle
from deploy.build.train.loss import distilled
from deploy.build.train.network import Network, unclamped
from deploy.build.train.structure import restructured
from deploy.data import Dataset
from deploy.errors import BuildError

__all__ = ["Progress", "Trained", "is_fresh", "kinds_of", "restructured", "train"]

RATE = 1e-3
ROUNDING_RATE = 3e-4
EIGHT_BIT_RATE = 1e-4
BINARY_RATE = 3e-3
SEARCHING_RATE = 1e-2
"""The highest learning rates, for Adam; README.md says what was tried."""


@dataclass(frozen=True)
class Trained:
    """
    Attributes:
        graph: with the trained weights in float, zeros where they were pruned.
        quantized: the integers; None for a float recipe.
        history: for each epoch: epoch, loss, accuracy (of the training samples) and test_accuracy if there was a test.
        accuracy: of the training graph, not training, on the test samples; None without.
        rate: the learning rate at its highest.
        answers: of real inputs [N, ...], what each node of the training graph computes, not training.
    """

    graph: Graph
    quantized: Quantized | None
    history: list[dict[str, Any]]
    accuracy: float | None
    rate: float
    answers: Callable[[Floats], dict[str, Floats]]


def train(
    graph: Graph,
    recipe: Recipe,
    data: Dataset,
    *,
    test: Dataset | None = None,
    preprocess: Mapping[str, float] | None = None,
    teacher: Any = None,
    adapted: bool = False,
    folder: Path | None = None,
    resume: bool = False,
    report: Report | None = None,
    optimizer: str = "adam",
) -> Trained:
    """
    Train `graph` by `recipe`.

    Args:
        graph: what training begins with; it is not changed.
        recipe: with epochs >= 1; its structure, and channels, are those of `graph` already.
        data: training samples with labels; some of them calibrate.
        test: measured after each epoch.
        preprocess: ``scale`` and ``offset`` that make real values of samples.
        teacher: a Keras model with the same classes and inputs; None trains against the labels alone.
        adapted: `graph` was trained with the structure and the zeros of `recipe` before; they stay where they are.
        folder: gets a checkpoint after each epoch.
        resume: go on from the checkpoint in `folder`.
        report: called after each step.

    Raises:
        DataError: nothing, one class only, or something else in `data` that `samples.check` refuses.
        BuildError: a graph that cannot be trained so, a loss that is not finite, a checkpoint of something else.
    """
    if recipe.epochs < 1:
        raise BuildError(f"recipe {recipe.text} trains for no epoch", "`--epochs N` trains")
    deterministic(recipe.seed)
    ready = sample_sets.fit(graph, data, preprocess)
    tested = None if test is None else sample_sets.fit(graph, test, preprocess, one_class=True)
    kinds = kinds_of(graph, recipe)
    network = _network(_settled(graph, ready, recipe, kinds, adapted), recipe, kinds, ready, adapted)
    zeros = recipe.pruning(channel=False)
    settings = Settings(
        epochs=recipe.epochs,
        batch=recipe.batch,
        rate=recipe.rate or _rate(graph, recipe, kinds, adapted),
        optimizer=optimizer,
        seed=recipe.seed,
        augment=recipe.augment,
        prune=zeros if recipe.schedule == "cubic" and not adapted else None,
    )
    loss = distilled(_teacher(teacher, network), recipe.temperature, recipe.balance)
    trainer = Trainer(network, ready, settings, loss)
    mark = _fingerprint(graph, recipe, ready, f"{optimizer} {settings.rate}", teacher)
    history = trainer.run(tested, folder, mark, resume, report)
    quantized = None if recipe.is_float else network.export()

    def answers(x: Floats) -> dict[str, Floats]:
        return {name: array(value) for name, value in network.values(tf.constant(x)).items()}

    return Trained(network.trained(), quantized, history, history[-1].get("test_accuracy"), settings.rate, answers)


def deterministic(seed: int) -> None:
    """Make what follows depend on `seed` alone; `deploy.build.source.start` does so for a build."""
    limit_threads(tf)
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def _rate(graph: Graph, recipe: Recipe, kinds: Mapping[str, str], adapted: bool) -> float:
    """
    High where weights must find new places in float, and low where they only make up for rounding: with large steps
    they would lose what they know, on grids of 8 bits, too.
    """
    if max(kinds.values(), key=list(kinds.values()).count, default="") == "binary":
        return BINARY_RATE
    moved = is_fresh(graph) or ((recipe.changes or recipe.prune) and not adapted)
    if recipe.is_float and moved:
        return SEARCHING_RATE
    if recipe.is_float or moved:
        return RATE
    return EIGHT_BIT_RATE if set(kinds.values()) == {"w8"} else ROUNDING_RATE


def is_fresh(graph: Graph) -> bool:
    """Whether a normalization was never trained, and so none of the weights; without one nobody can tell."""
    norms = [node.norm for node in graph.weighted() if node.norm is not None]
    return any(not norm.mean.any() and (norm.variance == 1).all() for norm in norms)


def kinds_of(graph: Graph, recipe: Recipe) -> dict[str, str]:
    """
    Weighted node -> what its weights become: float, w8, w4, w2, ternary or binary.

    Raises:
        BuildError: a mixed recipe names a layer that is not there.
    """
    if recipe.is_float:
        return {node.name: "float" for node in graph.weighted()}
    learned = [node for node in graph.weighted() if not node.attrs.get("fixed")]
    recipe.check_layers(_layer(node) for node in learned)
    edges = {learned[0].name, learned[-1].name} if learned else set()
    kinds = {node.name: str(recipe.weights_of(_layer(node), node.name in edges)) for node in learned}
    if recipe.precision != "mixed":
        # Depthwise convolutions hold few weights and lose most; no runtime gains from fewer bits there.
        kinds |= {node.name: "w8" for node in learned if node.op == "depthwise"}
    return {node.name: kinds.get(node.name, "w8") for node in graph.weighted()}


def _layer(node: Node) -> str:
    """What a recipe calls a node: the Keras layer that has its weights, of which it may be a part (``dense/sum``)."""
    return node.layers[0] if node.layers else node.name.rpartition("/")[0] or node.name


def _settled(
    graph: Graph, ready: sample_sets.Samples, recipe: Recipe, kinds: Mapping[str, str], adapted: bool
) -> Graph:
    """
    The graph that is trained, without activations in front of binary layers, and with normalizations that fit its
    layers where they do not: in a model that was never trained, whose structure is new, or that lost activations.
    Ranges that calibration finds would mean nothing otherwise: those of a CNV came out up to 28 times too wide.
    """
    bare = unclamped(graph, kinds)
    if not is_fresh(graph) and "binary" not in kinds.values() and (adapted or not recipe.changes):
        return bare
    network = Network(bare, {})
    settle(network, ready, Settings(1, recipe.batch, seed=recipe.seed))
    return network.trained()


def _network(
    graph: Graph, recipe: Recipe, kinds: Mapping[str, str], ready: sample_sets.Samples, adapted: bool
) -> Network:
    """The network where training begins: with its zeros, unless they come gradually, its grids, and its integers."""
    zeros = recipe.pruning(channel=False) if recipe.schedule == "once" or adapted else None
    if zeros and not adapted:
        graph = pruned(graph, zeros, ready.some(graph.inputs[0], SAMPLES, recipe.seed))
    if recipe.is_float:
        network = Network(graph, kinds)
    else:
        feeds = ready.some(graph.inputs[0], recipe.samples, recipe.seed)
        network = _on_grids(graph, recipe, kinds, feeds)
    for node in prunable(graph) if zeros else ():
        layer = network.weighted[node.name]
        layer.mask.assign(node.kernel != 0)
        layer.masked = True
    return network


def _on_grids(graph: Graph, recipe: Recipe, kinds: Mapping[str, str], feeds: Mapping[str, Any]) -> Network:
    """The network with the grids of calibration; weights of few bits begin as rounding without training leaves them."""
    bits = 16 if recipe.precision == "int16x8" else 8
    few = {name: KINDS[kind] for name, kind in kinds.items() if kind in KINDS and kind != "w8"}
    if not few:
        ranges = calibrate(graph, feeds, recipe.observer)
        network = Network(graph, kinds, grids(graph, ranges, bits))
        network.ranges = ranges
        return network
    options = Options(observer=recipe.observer, rounding=recipe.rounding, activation_bits=bits)
    start = quantize(graph, feeds, few, options)
    network = Network(graph, kinds, start.grids)
    network.ranges = start.ranges
    for name in few:
        in_scale = float(start.grids[graph[name].inputs[0]].scale[0])
        network.weighted[name].begin(start.weights[name], in_scale, folded(graph[name])[0])
    return network


def _teacher(model: Any, network: Network) -> Any:
    if model is None:
        return None
    whole = model if isinstance(model, Graph) else from_keras(model)
    teacher = Network(fold(whole), {})  # a third less to compute for who only answers
    ours, theirs = (n.graph[n.logits].shape for n in (network, teacher))
    given, taken = (n.graph[n.graph.inputs[0]].shape for n in (network, teacher))
    if ours != theirs or given != taken:
        raise BuildError(
            f"the teacher takes {list(taken)} and answers {list(theirs)}; this model takes {list(given)} and answers "
            f"{list(ours)}"
        )
    teacher.trainable = False
    return lambda x: teacher.values(x)[teacher.logits]


def _fingerprint(graph: Graph, recipe: Recipe, ready: sample_sets.Samples, how: str, teacher: Any) -> str:
    sha = hashlib.sha256(f"{recipe.text} {how} {ready.scale} {ready.offset}\n".encode())
    sources = [graph] if teacher is None else [graph, teacher if isinstance(teacher, Graph) else from_keras(teacher)]
    for source in sources:
        for node in source:
            sha.update(f"{node.name} {node.op} {node.inputs} {node.shape}\n".encode())
            if node.kernel is not None:
                sha.update(node.kernel.tobytes())
    for samples in (ready.x, ready.y):
        sha.update(np.ascontiguousarray(samples).tobytes())
    return sha.hexdigest()
