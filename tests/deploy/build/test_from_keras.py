"""Keras models as graphs and as files; TensorFlow is started once for all of these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.build.execute import forward
from deploy.build.from_keras import from_keras
from deploy.build.graph import Graph
from deploy.build.posttraining import Options, quantize
from deploy.build.write import write
from deploy.errors import BuildError
from tests.deploy.build.networks import answers, decibels, inner


@pytest.fixture(scope="module")
def keras() -> Any:
    pytest.importorskip("tensorflow", reason="needs TensorFlow: `pip install 'deploy-hil[build]'`")
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def varied(keras: Any) -> Any:
    """Every layer that is known, some that are not, a model within the model that is called twice, four outputs."""
    layers = keras.layers
    x = keras.Input((13, 15, 3), name="pixels")
    stem = layers.Rescaling(1 / 255, -0.5)(x)
    stem = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(stem)
    stem = layers.ReLU(6)(layers.BatchNormalization()(stem))
    left = layers.Conv2D(8, (3, 2), dilation_rate=2, padding="same", groups=2, activation="relu", name="grouped")(stem)
    right = layers.ZeroPadding2D(((1, 0), (2, 1)))(stem)
    right = layers.BatchNormalization()(layers.DepthwiseConv2D(3, depth_multiplier=2)(right))
    right = layers.SeparableConv2D(4, 3, padding="same", activation="relu", name="separable")(right)
    right = layers.Flatten()(layers.Conv2D(6, 1)(right))
    both = layers.Concatenate()(
        [layers.MaxPooling2D(3, 1, padding="same")(left), layers.AveragePooling2D(2, 1, padding="same")(stem)]
    )
    both = layers.BatchNormalization(name="alone")(layers.LeakyReLU(name="leaky")(both))
    both = layers.ReLU()(layers.Add()([both, both, both]))
    inner = keras.Sequential(
        [keras.Input((16,)), layers.Dense(5), layers.BatchNormalization(), layers.Activation("relu")], name="inner"
    )
    mean, most = layers.GlobalAveragePooling2D()(both), layers.GlobalMaxPooling2D()(both)
    dense = layers.Concatenate()([inner(mean), inner(most)])
    dense = layers.Dropout(0.5)(dense)
    squared = layers.Reshape((2, 5))(layers.Multiply(name="squared")([dense, dense]))
    model = keras.Model(x, [
        layers.Dense(3, activation="softmax", name="classes")(dense),
        layers.Dense(1, activation="sigmoid", name="score")(dense),
        right,
        layers.Dense(4, name="rows")(squared),
    ])  # fmt: skip
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.random(weight.shape) * 0.6 + 0.05 - (0.3 if "kernel" in weight.path else 0))
    return model


@pytest.fixture(scope="module")
def samples() -> Any:
    return (np.random.default_rng(1).random((24, 13, 15, 3)) * 255).astype(np.float32)


def test_a_graph_computes_what_keras_does(varied: Any, samples: Any) -> None:
    graph = from_keras(varied)

    found = forward(graph, {"pixels": samples})

    for name, expected in zip(graph.outputs, varied.predict(samples, verbose=0), strict=True):
        np.testing.assert_allclose(expected, found[name], rtol=1e-4, atol=1e-5)


def test_activations_and_normalizations_are_fused_and_what_is_unknown_is_named(varied: Any) -> None:
    graph = from_keras(varied)

    stem = graph["stem"]
    assert ("relu6", True, ("stem", "batch_normalization", "re_lu")) == (
        stem.activation, stem.norm is not None, stem.layers
    )  # fmt: skip
    assert ("depthwise", True) == (graph["alone"].op, graph["alone"].attrs["fixed"])
    assert {"inner/dense", "inner/dense_2"} < set(graph.nodes)
    assert {
        "leaky": "LeakyReLU has no integer form here",
        "squared": "Multiply has no integer form here",
        "score": "activation 'sigmoid' has no integer form here",
    } == graph.opaque()
    assert not any("dropout" in name for name in graph.nodes)


@pytest.mark.parametrize(("bits", "least"), [(8, 35), (16, 55)])
def test_a_file_answers_what_keras_does_with_opaque_layers_in_float(
    varied: Any, samples: Any, bits: int, least: float
) -> None:
    graph = from_keras(varied)

    model = write(quantize(graph, {"pixels": samples}, options=Options(activation_bits=bits)))

    for expected, found in zip(varied.predict(samples, verbose=0), answers(model, samples), strict=True):
        assert decibels(expected, found) > least


def test_a_model_without_weights_and_layers_behind_each_other(keras: Any) -> None:
    """Fusing must not cross a second reader, nor an output of the model."""
    x = keras.Input((4, 4, 2))
    conv = keras.layers.Conv2D(2, 1, name="conv")(x)
    relu = keras.layers.ReLU(name="relu")(conv)
    graph = from_keras(keras.Model(x, [conv, relu]))

    assert ("none", "relu") == (graph["conv"].activation, graph["relu"].op)
    assert ("conv", "relu") == graph.outputs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda keras: keras.Sequential([keras.Input((None, 4, 1)), keras.layers.Conv2D(2, 1, name="c")]),
            "has the shape [?, ?, 4, 1]: only the batch may be open",
        ),
        (
            lambda keras: type("Mine", (keras.Model,), {"call": lambda self, x: x})(),
            "Mine is neither a functional nor a sequential Keras model; its layers cannot be read",
        ),
        (
            lambda keras: keras.Sequential([keras.Input((4, 4)), keras.layers.LSTM(3, return_state=True, name="cell")]),
            "layer 'cell' (LSTM) has 3 outputs, which no node here has",
        ),
    ],
    ids=["open extent", "subclassed", "several outputs"],
)
def test_models_that_cannot_be_read_are_refused(keras: Any, make: Any, message: str) -> None:
    with pytest.raises(BuildError) as caught:
        from_keras(make(keras))
    assert message in str(caught.value)


def read(keras: Any, corpus: Path, name: str) -> Graph:
    from deploy.build import source

    return from_keras(source.load_keras(source.start(0), corpus / "models" / name))


def test_four_bits_keep_what_resnet8_has_learned(keras: Any, corpus: Path) -> None:
    """MLPerf Tiny's ResNet-8 on 100 test images: how many get another label than in float."""
    graph = read(keras, corpus, "tiny_ic_resnet8.h5")
    with np.load(corpus / "data" / "cifar10_train2000.npz") as train, np.load(
        corpus / "data" / "cifar10_test2000.npz"
    ) as test:  # fmt: skip
        feeds = {graph.inputs[0]: train["x"][:32].astype(np.float32)}
        images = test["x"][:100].astype(np.float32)
    expected = forward(graph, {graph.inputs[0]: images})[graph.outputs[0]].argmax(axis=1)
    changed = {}
    for rounding in ("nearest", "descent"):
        quantized = quantize(graph, feeds, inner(graph, "4"), Options(rounding=rounding))
        changed[rounding] = np.mean(fast(write(quantized), images).argmax(axis=1) != expected)

    assert changed["descent"] < min(0.1, changed["nearest"])


def fast(model: bytes, images: Any) -> Any:
    """As `answers`, by the kernels that LiteRT would take."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    scale, zero_point = given["quantization"]
    found = []
    for image in np.clip(np.rint(images / scale) + zero_point, -128, 127).astype(np.int8):
        interpreter.set_tensor(given["index"], image[np.newaxis])
        interpreter.invoke()
        found.append(interpreter.get_tensor(made["index"])[0].astype(np.float32))
    return np.stack(found)
