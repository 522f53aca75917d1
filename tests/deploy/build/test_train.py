"""
Training on digits, in seconds: not how good it gets, but that the file answers what was trained, that it comes out the
same every time, and what happens when it goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow: `pip install 'deploy-hil[build]'`")
pytest.importorskip("sklearn", reason="needs the digits of scikit-learn: `pip install 'deploy-hil[build]'`")

import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from deploy.build import train as training
from deploy.build.from_keras import from_keras
from deploy.build.graph import Graph
from deploy.build.posttraining import quantize
from deploy.build.quantized import Quantized
from deploy.build.recipe import Recipe, parse
from deploy.build.repair import pruned
from deploy.build.train import Progress, Trained, checkpoint, train
from deploy.build.train.layers import BINARY, KINDS
from deploy.build.train.network import Network
from deploy.build.write import write
from deploy.data import Dataset
from deploy.errors import BuildError
from deploy.examples import digits

OPTIONS = "+batch:64+augment:off+samples:128"


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Dataset]:
    arrays = digits.data()
    return Dataset(arrays["x_train"], arrays["y_train"], "digits"), Dataset(
        arrays["x_test"], arrays["y_test"], "digits"
    )


@pytest.fixture(scope="module")
def graph(data: tuple[Dataset, Dataset]) -> Graph:
    """Trained in float: normalization, a residual, a depthwise convolution with ReLU6, a concatenation, pools."""
    import keras

    training.deterministic(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Rescaling(1 / 16)(inputs)
    x = layers.Conv2D(16, 3, padding="same")(x)
    first = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(first))
    x = layers.ReLU()(layers.Add()([x, first]))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(32, 3, strides=2, padding="same")(x)))
    x = layers.ReLU(6)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    x = layers.Concatenate()([x, layers.MaxPooling2D(2)(first)])
    x = layers.GlobalAveragePooling2D()(layers.AveragePooling2D(2)(x))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    return train(from_keras(model), parse("float32+epochs:8+rate:0.004" + OPTIONS), data[0]).graph


Exported = tuple[Trained, Network]


def export(graph: Graph, recipe: str, data: Dataset, **options: Any) -> Exported:
    """Train, and keep the network whose export it is."""
    seen: list[Network] = []
    make = Network.export

    def watched(network: Network) -> Quantized:
        seen.append(network)
        return make(network)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "export", watched)
        return train(graph, parse(recipe + OPTIONS), data, **options), seen[0]


TILED = "w2a8+tile:0.5+epochs:2"


@pytest.fixture(scope="module")
def steps() -> list[Progress]:
    """What training by `TILED` reported."""
    return []


@pytest.fixture(scope="module")
def tiled(graph: Graph, data: tuple[Dataset, Dataset], steps: list[Progress]) -> Exported:
    return export(graph, TILED, data[0], report=steps.append)


def differing(network: Network, quantized: Quantized, x: np.ndarray[Any, Any]) -> dict[str, tuple[float, int]]:
    """Node -> share of values that LiteRT's reference kernels and the training graph disagree on, and by how much."""
    reference = Interpreter(
        model_content=write(quantized, least_bits=8),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    reference.allocate_tensors()
    there = {tensor["name"]: tensor["index"] for tensor in reference.get_tensor_details()}
    given = reference.get_input_details()[0]
    ours = {name: np.asarray(value) for name, value in network.values(tf.constant(x, tf.float32)).items()}
    counts = {name: np.zeros(3, np.int64) for name in ours}
    for i in range(len(x)):
        reference.set_tensor(
            given["index"], quantized.grids[network.graph.inputs[0]].quantize(x[i : i + 1]).astype(np.int8)
        )
        reference.invoke()
        for name, value in ours.items():
            stored = reference.get_tensor(there[name]).reshape(value[i].shape)
            off = np.abs(quantized.grids[name].quantize(value[i]) - stored.astype(np.int64))
            counts[name] += off.size, np.count_nonzero(off), 0
            counts[name][2] = max(counts[name][2], off.max())
    return {name: (int(off) / int(size), int(most)) for name, (size, off, most) in counts.items()}


@pytest.mark.parametrize("recipe", [TILED, "w4a8+epochs:1", "binary+epochs:2+rate:0.01"])
def test_the_file_answers_what_the_training_graph_does(
    recipe: str, graph: Graph, data: tuple[Dataset, Dataset], tiled: Exported
) -> None:
    """
    Every tensor inside is compared.  One value in 200 may differ, by two steps: where float32 and fixed-point
    multipliers fall to two sides of a tie, and where what follows carries that on.
    """
    made, network = tiled if recipe == TILED else export(graph, recipe, data[0])

    assert made.quantized is not None
    found = differing(network, made.quantized, data[1].x[:60].astype(np.float32))

    assert {} == {name: off for name, off in found.items() if off[0] > 0.005 or off[1] > 2}
    for name, weights in made.quantized.weights.items():  # the fake grid is the integer grid
        layer = network.weighted[name]
        folded = np.asarray(layer.quantized()).reshape(-1, weights.bias.size) * np.asarray(layer.factor())
        np.testing.assert_allclose(folded, weights.real().reshape(folded.shape), rtol=1e-5, atol=1e-7)
        assert layer.kind == "binary" or KINDS[layer.kind] in ("8", "4", "2", "ternary")
    if "binary" in recipe:
        one_bit(made.quantized, graph)
    if "tile" in recipe:
        zeros = [made.quantized.weights[name].values == 0 for name in ("conv2d_1", "conv2d_2")]
        assert 0.5 <= sum(z.sum() for z in zeros) / sum(z.size for z in zeros) + 128 / sum(z.size for z in zeros)
        kept = [(~z).reshape(9, -1, 4, z.shape[3]).any(axis=(2, 3)) for z in zeros]
        assert all(0 < k.sum() < k.size for k in kept)  # whole windows are gone, and not all of them


def one_bit(made: Quantized, graph: Graph) -> None:
    """
    Weights have two values; thresholds are integers of the input's grid.  A ReLU that others read too stays, and the
    threshold lies above its zero, or the bit would never change; one that only the binary layer read has gone.
    """
    steps = {}
    for name in ("conv2d_1", "conv2d_2"):
        weights, source = made.weights[name], graph[name].inputs[0]
        assert {-BINARY, BINARY} == set(np.unique(weights.values).tolist())
        assert weights.binary is not None
        steps[source] = weights.binary.threshold - made.grids[source].zero_point
    assert (steps["conv2d"] > 0).all() and "relu" == made.graph["conv2d"].activation
    assert (steps["add"] == 0).all() and "none" == made.graph["add"].activation
    assert made.weights["conv2d"].binary is None and made.weights["dense/sum"].binary is None


def test_training_beats_what_was_pruned_and_rounded_after_training(graph: Graph, data: tuple[Dataset, Dataset]) -> None:
    recipe = parse("ternary+tile:0.75+epochs:4+rate:0.005" + OPTIONS)
    feeds = {graph.inputs[0]: data[0].x[:128].astype(np.float32)}
    kinds = {name: KINDS[kind] for name, kind in training.kinds_of(graph, recipe).items()}
    twin = quantize(pruned(graph, recipe.prune[0], feeds), feeds, kinds)

    trained = train(graph, recipe, data[0]).quantized

    assert trained is not None
    assert right(twin, data[1]) + 20 < right(trained, data[1])


def test_ranges_of_a_binary_network_are_those_of_its_training(data: tuple[Dataset, Dataset]) -> None:
    """Without activations values grow from layer to layer, unless normalizations know that activations are gone."""
    import keras

    layers = keras.layers
    x = inputs = keras.Input((8, 8, 1))
    for _ in range(5):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(x)))
    model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))

    made, _ = export(from_keras(model), "binary+epochs:1+rate:0.000001", data[0])

    assert made.quantized is not None
    highs = [high for name, (_, high) in made.quantized.ranges.items() if name.startswith("conv2d")]
    assert 5 == len(highs) and max(highs) < 12, highs


def test_a_step_that_leaves_out_grids_of_which_only_signs_are_read_computes_the_same(
    graph: Graph, data: tuple[Dataset, Dataset]
) -> None:
    _, network = export(graph, "binary+edges:same+epochs:1", data[0])
    x = tf.constant(data[0].x[:64].astype(np.float32))
    left_out = network.signed

    short = np.asarray(network.values(x, live=True)[network.logits])
    network.signed = set()
    whole = np.asarray(network.values(x, live=True)[network.logits])

    assert {"add"} == set(left_out)
    np.testing.assert_array_equal(whole, short)


def test_a_normalization_that_stands_alone_is_trained(data: tuple[Dataset, Dataset]) -> None:
    import keras

    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, activation="relu")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization(name="alone")(x))
    model = keras.Model(inputs, layers.Dense(10)(x))
    before = from_keras(model)

    after = train(before, parse("float32+epochs:1" + OPTIONS), data[0]).graph

    norm = after["alone"].norm
    assert training.is_fresh(before) and not training.is_fresh(after)
    assert norm is not None and norm.mean.any() and norm.beta.any() and (norm.gamma != 1).all()
    assert (after["alone"].kernel == 1).all()


def right(quantized: Quantized, data: Dataset) -> int:
    """Of the first 200 samples, by LiteRT."""
    runtime = Interpreter(model_content=write(quantized, least_bits=8))
    runtime.allocate_tensors()
    given, answer = runtime.get_input_details()[0], runtime.get_output_details()[0]
    grid = quantized.grids[quantized.graph.inputs[0]]
    count = 0
    assert data.y is not None
    for x, y in zip(data.x[:200].astype(np.float32), data.y, strict=False):
        runtime.set_tensor(given["index"], grid.quantize(x[np.newaxis]).astype(np.int8))
        runtime.invoke()
        count += int(runtime.get_tensor(answer["index"]).argmax() == y)
    return count


def content(trained: Trained) -> bytes:
    assert trained.quantized is not None
    return write(trained.quantized)


def stop_in_epoch(epoch: int) -> Callable[[Progress], None]:
    def report(at: Progress) -> None:
        if (at.epoch, at.step) == (epoch, 2):
            raise KeyboardInterrupt

    return report


def test_interrupted_training_goes_on_to_the_same_bytes(
    graph: Graph, data: tuple[Dataset, Dataset], tiled: Exported, steps: list[Progress], tmp_path: Path
) -> None:
    """With pruning, learned steps and norms, whose state all has to come back; and the same bytes without a break."""
    whole, recipe = tiled[0], parse(TILED + OPTIONS)

    with pytest.raises(KeyboardInterrupt):
        train(graph, recipe, data[0], folder=tmp_path, report=stop_in_epoch(2))
    assert [tmp_path / checkpoint.NAME] == list(tmp_path.iterdir())
    resumed = train(graph, recipe, data[0], folder=tmp_path, resume=True, report=stop_in_epoch(1))

    assert content(whole) == content(resumed)
    assert whole.history == resumed.history
    assert [(e, s) for e in (1, 2) for s in range(1, 22)] == [(at.epoch, at.step) for at in steps]
    with pytest.raises(BuildError, match="the checkpoint is of another recipe, model or data set"):
        train(graph, replace(recipe, seed=1), data[0], folder=tmp_path, resume=True)


def test_numbers_that_are_not_finite_stop_training_with_the_layer_and_leave_no_file(
    graph: Graph, data: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    broken = replace(graph, nodes={node.name: replace(node) for node in graph})
    kernel = broken["conv2d_2"].kernel
    assert kernel is not None
    broken["conv2d_2"].kernel = np.full_like(kernel, np.inf)

    with pytest.raises(BuildError) as caught:
        train(broken, parse("float32+epochs:1" + OPTIONS), data[0], folder=tmp_path)

    assert (
        "training diverged in epoch 1, step 1 of 21: its loss or slope is not finite; layer 'conv2d_2' is the first "
        "with numbers that are not"
    ) == str(caught.value)
    assert [] == list(tmp_path.iterdir())


def test_a_teacher_of_other_classes_is_refused(graph: Graph, data: tuple[Dataset, Dataset]) -> None:
    import keras

    inputs = keras.Input((8, 8, 1))
    teacher = keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Flatten()(inputs)))

    with pytest.raises(BuildError, match=r"the teacher takes \[8, 8, 1\] and answers \[7\]"):
        train(graph, parse("w4a8+distill+epochs:1" + OPTIONS), data[0], teacher=teacher)


def test_a_narrower_model_learns_from_the_whole_one(graph: Graph, data: tuple[Dataset, Dataset]) -> None:
    recipe: Recipe = parse("float32+width:0.5+distill+epochs:2+rate:0.02" + OPTIONS)
    narrow = training.restructured(graph, recipe, data[0])

    alone = train(narrow, recipe, data[0], test=data[1])
    taught = train(narrow, recipe, data[0], test=data[1], teacher=graph)

    assert alone.history != taught.history
    assert taught.accuracy is not None and taught.accuracy > 0.3  # chance is 0.1
    assert taught.quantized is None
