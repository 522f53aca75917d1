"""Cutting and repairing, against exhaustive search, numpy's least squares, and the whole network's own answers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from deploy.build import prune
from deploy.build.execute import columns, forward
from deploy.build.graph import Floats, Graph, Node, fold
from deploy.build.recipe import Prune
from deploy.build.repair import moments, pruned, repaired
from deploy.errors import BuildError
from tests.deploy.build.networks import classifier, window


def pictures(rng: np.random.Generator, count: int = 96) -> Floats:
    """[N, 8, 8, 3] whose neighbouring pixels and channels hang together, as those of real ones do."""
    coarse = rng.normal(0, 1, (count, 3, 3, 3)).repeat(3, axis=1).repeat(3, axis=2)[:, :8, :8]
    return np.asarray(coarse @ rng.normal(0, 1, (3, 3)) + rng.normal(0, 0.1, (count, 8, 8, 3)), np.float32)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return classifier(np.random.default_rng(0), channels=8)


@pytest.fixture(scope="module")
def x() -> Floats:
    return pictures(np.random.default_rng(1))


def kernel(node: Node) -> Any:
    assert node.kernel is not None
    return node.kernel


def cut(graph: Graph, pattern: Prune) -> Graph:
    """By the size of weights, and not repaired."""
    plain = fold(graph)
    worths = {node.name: prune.magnitudes(node, kernel(node), pattern) for node in prune.prunable(plain)}
    masks = prune.masks(graph, pattern, pattern.sparsity, worths)
    return replace(
        graph, nodes={n.name: replace(n, kernel=kernel(n) * masks[n.name]) if n.name in masks else n for n in graph}
    )


def off(made: Graph, graph: Graph, x: Floats) -> float:
    """Mean square error of the answers before the softmax."""
    logits = {name: replace(g, outputs=("last",)) for name, g in (("made", made), ("whole", graph))}
    given, wanted = (forward(logits[name], {"x": x})["last"] for name in ("made", "whole"))
    return float(np.square(given - wanted).mean())


PATTERNS = [Prune("tile", 0.5), Prune("nm", 0.5, 2, 4), Prune("block", 0.5, of=4), Prune("magnitude", 0.7)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: p.text)
def test_a_repaired_network_is_nearer_to_the_whole_one_on_samples_it_has_not_seen(
    graph: Graph, x: Floats, pattern: Prune
) -> None:
    plain = cut(graph, pattern)
    mended = repaired(plain, graph, {"x": x})
    chosen = pruned(graph, pattern, {"x": x})

    others = pictures(np.random.default_rng(2))
    errors = [off(made, graph, others) for made in (plain, mended, chosen)]
    assert errors[0] > 1.5 * errors[1]
    assert errors[0] > 2 * errors[2]
    names = [node.name for node in prune.prunable(graph)]
    for name in names:
        assert ((kernel(mended[name]) == 0) == (kernel(plain[name]) == 0)).all()
    kernels = [kernel(chosen[name]) for name in names]
    share = sum((k == 0).sum() for k in kernels) / sum(k.size for k in kernels)
    assert pattern.sparsity == pytest.approx(share, abs=0.03)


def test_the_weights_that_are_left_are_the_least_squares_of_the_whole_layers_answers(x: Floats) -> None:
    """Against numpy's, with a constant for the bias; the pull towards the old weights is weak."""
    rng = np.random.default_rng(3)
    whole = classifier(rng, channels=8)
    first = whole["first"]
    mask = rng.random(kernel(first).shape) < 0.6
    plain = replace(whole, nodes=dict(whole.nodes))
    plain.nodes["first"] = replace(first, kernel=np.asarray(kernel(first) * mask, np.float32))

    made = fold(repaired(plain, whole, {"x": x}))["first"]

    true = fold(whole)["first"]
    a = columns(first, x).astype(np.float64)
    y = a @ kernel(true).reshape(-1, first.channels) + true.bias
    for channel in range(0, first.channels, 5):
        rows = np.flatnonzero(mask.reshape(-1, first.channels)[:, channel])
        design = np.hstack([a[:, rows], np.ones((len(a), 1))])
        best = np.linalg.lstsq(design, y[:, channel], rcond=None)[0]
        least = np.square(design @ best - y[:, channel]).mean()
        ours = a @ kernel(made).reshape(-1, first.channels)[:, channel] + made.bias[channel]  # type: ignore[index]
        assert least <= np.square(ours - y[:, channel]).mean() <= 1.1 * least + 1e-6


def test_normalizations_know_the_mean_and_variance_that_they_meet(graph: Graph, x: Floats) -> None:
    """Else they would jump as soon as training takes each batch's own."""
    made = pruned(graph, Prune("magnitude", 0.5), {"x": x})
    node = made["mixed"]
    assert node.norm is not None

    bare = replace(made, nodes={**made.nodes, "mixed": replace(node, norm=None)}, outputs=("mixed",))
    sums = forward(bare, {"x": x})["mixed"]

    np.testing.assert_allclose(node.norm.mean, sums.mean(axis=(0, 1, 2)), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(node.norm.variance, sums.var(axis=(0, 1, 2)), rtol=2e-2, atol=1e-3)


def test_the_groups_that_go_are_near_the_best_of_all_choices() -> None:
    """Half of eight tiles, for inputs that hang together: all seventy choices, each refitted."""
    rng = np.random.default_rng(4)
    inputs = np.asarray(rng.normal(0, 1, (600, 32)) @ rng.normal(0, 1, (32, 32)), np.float32)
    node = Node("b", "dense", ("x",), (8,), rng.normal(0, 1, (32, 8)).astype(np.float32), np.zeros(8, np.float32))
    pattern = Prune("tile", 0.5)
    covariance = moments(node, inputs, inputs @ kernel(node)).xx

    def error(tiles: Any) -> float:
        rows = np.isin(np.arange(32) // 4, tiles)
        lost, left = covariance[np.ix_(rows, rows)], covariance[np.ix_(rows, ~rows)]
        schur = lost - left @ np.linalg.solve(covariance[np.ix_(~rows, ~rows)], left.T)
        return float((kernel(node)[rows] * (schur @ kernel(node)[rows])).sum())

    cheapest = np.argsort(prune.prices(node, kernel(node), covariance, pattern))[:4]
    smallest = np.argsort(prune.magnitudes(node, kernel(node), pattern))[:4]

    every = sorted(error(tiles) for tiles in combinations(range(8), 4))
    assert error(cheapest) <= every[3]
    assert error(cheapest) < error(smallest)


def test_a_network_that_lost_nothing_stays_as_it_is(graph: Graph, x: Floats) -> None:
    made = repaired(graph, graph, {"x": x})

    assert off(made, graph, x) < 1e-4


def test_a_model_without_a_layer_to_prune_says_so(x: Floats) -> None:
    nodes = [
        Node("x", "input", (), (8, 8, 3)),
        Node("a", "conv", ("x",), (8, 8, 4), np.ones((1, 1, 3, 4), np.float32), attrs=window()),
    ]

    with pytest.raises(BuildError, match="no convolution or dense layer to prune"):
        pruned(Graph({node.name: node for node in nodes}, ("x",), ("a",)), Prune("tile", 0.5), {"x": x})
