"""Files as they are written, run by stock LiteRT's reference kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from deploy.build.graph import Graph, Node
from deploy.build.posttraining import Options, quantize
from deploy.build.quantized import Binary, Quantized, Weights, bias_integers
from deploy.build.write import write
from deploy.errors import BuildError
from tests.deploy.build.networks import answers, classifier, decibels, images, inner, window

SAMPLES = images(np.random.default_rng(1))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return classifier(np.random.default_rng(0))


@pytest.fixture(scope="module")
def narrow(graph: Graph) -> Quantized:
    return quantize(graph, {"x": SAMPLES}, inner(graph, "4"))


def parse(model: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(model, 0)


def kernels(model: bytes) -> dict[str, str]:
    """Node -> type of its weights."""
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    named = {tensor.name.decode(): types[tensor.type] for tensor in parse(model).subgraphs[0].tensors}
    return {name.removesuffix("/kernel"): kind for name, kind in named.items() if name.endswith("/kernel")}


def test_the_same_integers_give_the_same_bytes(graph: Graph, narrow: Quantized) -> None:
    again = quantize(graph, {"x": SAMPLES}, inner(graph, "4"))

    assert write(narrow) == write(again)


def test_weights_take_as_many_bits_as_their_grid_or_as_many_as_are_asked_for(narrow: Quantized) -> None:
    """First and last layer and depthwise convolutions keep 8 bits."""
    eight, four = {"first": "INT8", "deep": "INT8", "last": "INT8"}, ("left", "right", "mixed")

    assert eight | dict.fromkeys(four, "INT4") == kernels(write(narrow))
    assert eight | dict.fromkeys(four, "INT8") == kernels(write(narrow, least_bits=8))


def test_a_depthwise_convolution_of_few_levels_is_stored_in_8_bits_which_every_runtime_loads(graph: Graph) -> None:
    made = quantize(graph, {"x": SAMPLES}, {"deep": "4"})
    assert np.abs(made.weights["deep"].values).max() <= 7

    model = write(made)

    assert "INT8" == kernels(model)["deep"]
    assert len(SAMPLES) == len(answers(model, SAMPLES)[0])


def test_how_weights_are_stored_does_not_change_an_answer(narrow: Quantized) -> None:
    packed, plain = answers(write(narrow), SAMPLES), answers(write(narrow, least_bits=8), SAMPLES)

    np.testing.assert_array_equal(plain[0], packed[0])
    assert len(np.unique(packed[0])) > 20


def test_inputs_and_outputs_are_named_after_their_nodes(narrow: Quantized) -> None:
    (signature,) = parse(write(narrow)).signatureDefs

    assert b"serving_default" == signature.signatureKey
    assert ([b"x"], [b"y"]) == ([t.name for t in signature.inputs], [t.name for t in signature.outputs])


def test_constants_begin_at_multiples_of_sixteen_bytes(narrow: Quantized) -> None:
    model = write(narrow)

    for buffer in parse(model).buffers:
        content = b"" if buffer.data is None else bytes(buffer.data)
        if len(content) > 16:  # shorter ones may occur anywhere by chance
            assert 0 == model.index(content) % 16


def test_a_layer_that_reads_another_grid_gets_a_quantize_in_front(graph: Graph) -> None:
    """As where a concatenation reads a softmax: nothing is copied between grids that differ."""
    quantized = quantize(graph, {"x": SAMPLES})
    expected = answers(write(quantized), SAMPLES)[0]
    pool, first = quantized.grids["pool"], quantized.grids["first"]
    coarse = replace(first, scale=first.scale * np.float32(1.5))
    grids = quantized.grids | {"first": coarse}

    model = write(replace(quantized, grids=grids))

    names = {tensor.name for tensor in parse(model).subgraphs[0].tensors}
    assert b"first/requantized" in names
    assert pool is quantized.grids["both"]
    assert decibels(expected, answers(model, SAMPLES)[0]) > 20


def test_parts_that_do_not_fit_are_refused(graph: Graph) -> None:
    quantized = quantize(graph, {"x": SAMPLES})
    weights = dict(quantized.weights)
    weights["left"] = replace(weights["left"], values=weights["left"].values[:1])

    with pytest.raises(BuildError, match=r"node 'left': weights \(1, 3, 16, 16\), kernel \(3, 3, 16, 16\)"):
        write(replace(quantized, weights=weights))
    with pytest.raises(BuildError, match="node 'mean' has no grid"):
        write(replace(quantized, grids={k: v for k, v in quantized.grids.items() if k != "mean"}))


def one_layer(op: str, rng: np.random.Generator) -> Quantized:
    """A layer of 32 inputs and 8 outputs with integer weights of which half the blocks are zero, 8 bits."""
    shape, out = ((4, 4, 32), (4, 4, 8)) if op == "conv" else ((32,), (8,))
    kernel = rng.normal(0, 1, (3, 3, 32, 8) if op == "conv" else (32, 8)).astype(np.float32)
    blocks = kernel.reshape(-1, 2, 16, 8)
    blocks[np.arange(len(blocks)) % 2 == 0, 0] = 0
    blocks[:, 1, :, ::2] = 0
    nodes = {"x": Node("x", "input", (), shape),
             "y": Node("y", op, ("x",), out, blocks.reshape(kernel.shape), attrs=window())}  # fmt: skip
    samples = rng.normal(0, 1, (16, *shape)).astype(np.float32)
    return quantize(Graph(nodes, ("x",), ("y",)), {"x": samples}, options=Options(rounding="nearest"))


@pytest.mark.parametrize("op", ["dense", "conv"])
def test_blocks_of_zeros_can_be_left_out_of_the_file(op: str) -> None:
    rng = np.random.default_rng(2)
    quantized = one_layer(op, rng)
    samples = rng.normal(0, 1, (4, *quantized.graph["x"].shape)).astype(np.float32)
    sparse = replace(quantized, weights={"y": replace(quantized.weights["y"], encoding="block")})

    model = write(sparse)

    np.testing.assert_array_equal(answers(write(quantized), samples)[0], answers(model, samples)[0])
    stored = [len(b.data) for b in parse(model).buffers if b.data is not None]
    kept = np.count_nonzero(quantized.weights["y"].values.swapaxes(-1, -2).reshape(-1, 16).any(axis=1))
    assert kept * 16 in stored
    assert kept * 16 < quantized.weights["y"].values.size


def test_blocks_need_sixteen_input_channels(graph: Graph) -> None:
    quantized = quantize(graph, {"x": SAMPLES})
    weights = quantized.weights | {"first": replace(quantized.weights["first"], encoding="block")}

    with pytest.raises(BuildError, match="node 'first': blocks of 16 are for 8-bit weights of 16, 32"):
        write(replace(quantized, weights=weights))


@pytest.mark.parametrize("op", ["dense", "conv"])
def test_a_binary_layer_answers_what_its_bits_say(op: str) -> None:
    """Against plain integer arithmetic; the padding of a convolution is 0, neither of the two values."""
    rng = np.random.default_rng(3)
    plain = one_layer(op, rng)
    signs = rng.choice([-1, 1], plain.weights["y"].values.shape).astype(np.int8)
    threshold = rng.integers(-60, 60, 32).astype(np.int32)
    grid = replace(plain.weights["y"].grid, scale=np.full(8, 2.0, np.float32), low=-1, high=1, bits=8)
    bias = bias_integers(rng.normal(0, 1, 8).astype(np.float32), 0.5, grid)
    weights = {"y": Weights(signs, grid, bias, binary=Binary(threshold, scale=0.5))}
    unit = replace(plain.grids["y"], scale=np.ones(1, np.float32), zero_point=0)
    binary = Quantized(plain.graph, plain.grids | {"y": unit}, weights)
    samples = rng.normal(0, 1, (4, *plain.graph["x"].shape)).astype(np.float32)

    actual = answers(write(binary), samples)[0]

    bits = np.where(plain.grids["x"].quantize(samples) >= threshold, 1, -1)
    if op == "dense":
        sums = bits @ signs
    else:
        padded = np.pad(bits, ((0, 0), (1, 1), (1, 1), (0, 0)))
        sums = sum(padded[:, i : i + 4, j : j + 4] @ signs[i, j] for i in range(3) for j in range(3))
    np.testing.assert_array_equal(np.clip(sums + bias, -128, 127), actual)
    assert len(np.unique(actual)) > 10
