"""Files that `deploy.build.write` makes, and which of our kernels take their layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.build.graph import Graph, fold
from deploy.build.posttraining import quantize
from deploy.build.quantized import Binary, Quantized, Weights, bias_integers
from deploy.build.write import write
from tests.deploy.build.networks import classifier, images, inner
from tests.kernels.interpreters import Job, run
from tests.kernels.library import Library

SAMPLES = images(np.random.default_rng(1))


def binary(quantized: Quantized) -> Quantized:
    """`left` with one bit for each weight and each input."""
    weights, grid = quantized.weights["left"], quantized.grids["left"]
    signs = np.where(weights.values < 0, -1, 1).astype(np.int8)
    unit = replace(weights.grid, scale=np.full(weights.bias.size, grid.scale[0], np.float32), low=-1, high=1, bits=8)
    threshold = np.full(signs.shape[2], -100, np.int32)
    made = Weights(signs, unit, bias_integers(np.zeros(weights.bias.size, np.float32), 1.0, unit), Binary(threshold))
    return replace(quantized, weights=quantized.weights | {"left": made})


def pruned(graph: Graph) -> Graph:
    """`left` and `mixed` with three of four groups of 4 input channels zero for all outputs together."""
    graph = fold(graph)
    for name in ("left", "mixed"):
        kernel = graph[name].kernel
        assert kernel is not None
        groups = kernel.reshape(9, -1, 4, kernel.shape[-1])
        groups[np.arange(9 * groups.shape[1]).reshape(9, -1) % 4 != 0] = 0
    return graph


def test_our_kernels_take_what_build_writes_and_answer_as_the_reference_does(kernels: Library, tmp_path: Path) -> None:
    """The reference reads the same integers as int8: it has no 2-bit convolutions."""
    graph = classifier(np.random.default_rng(0), channels=32)
    made = {
        "w4": quantize(graph, {"x": SAMPLES}, inner(graph, "4")),
        "w2": quantize(graph, {"x": SAMPLES}, inner(graph, "2")),
        "ternary": quantize(graph, {"x": SAMPLES}, inner(graph, "ternary")),
        "tile": quantize(pruned(graph), {"x": SAMPLES}),
        "tile w4": quantize(pruned(graph), {"x": SAMPLES}, inner(graph, "4")),
        "binary": binary(quantize(graph, {"x": SAMPLES})),
    }
    inputs = {name: [q.grids["x"].quantize(SAMPLES[:1]).astype(np.int8)] for name, q in made.items()}
    stock = [Job(write(q, least_bits=8), inputs[name]) for name, q in made.items()]
    ours = [Job(write(q), inputs[name], {"mode": "all"}, rest="reference") for name, q in made.items()]

    results = run(kernels.path, [*stock, *ours], tmp_path)

    claimed = {}
    for name, expected, actual in zip(made, results[: len(made)], results[len(made) :], strict=True):
        assert not expected.error and not actual.error, (name, expected.error, actual.error)
        np.testing.assert_array_equal(expected.outputs[0], actual.outputs[0], err_msg=name)
        taken = [node["kernel"] for node in actual.report["nodes"] if node["kernel"] not in (None, "none")]
        claimed[name] = [kernel.split("_")[1] for kernel in taken]
    # The layers `first`, `left`, `right`, `mixed` and `last`
    assert {
        "w4": ["w8", "w4", "w4", "w4", "w8"],
        "w2": ["w8", "w2", "w2", "w2", "w8"],
        "ternary": ["w8", "w2", "w2", "w2", "w8"],
        "tile": ["w8", "tile8", "w8", "tile8", "w8"],
        "tile w4": ["w8", "tile4", "w4", "tile4", "w8"],
        "binary": ["w8", "binary", "w8", "w8", "w8"],
    } == claimed
