"""From a float graph and samples to integers, without training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deploy.build.calibrate import calibrate, grids
from deploy.build.deviation import deviations, integers
from deploy.build.equalize import equalize
from deploy.build.execute import activate, compute, forward, weigh
from deploy.build.graph import Floats, Graph, Node, fold
from deploy.build.posttraining import Options, quantize
from deploy.build.write import write
from deploy.errors import BuildError
from tests.deploy.build.networks import answers, classifier, decibels, images, inner

SAMPLES = images(np.random.default_rng(1))
FEEDS = {"x": SAMPLES}


@pytest.fixture(scope="module")
def graph() -> Graph:
    return classifier(np.random.default_rng(0))


def quality(graph: Graph, kind: str = "8", **options: object) -> float:
    """How well the file's answers agree with the float graph's before its softmax, in dB, by LiteRT."""
    bare = replace(graph, nodes={k: v for k, v in graph.nodes.items() if k != "y"}, outputs=("last",))
    expected = forward(bare, FEEDS)["last"]
    quantized = quantize(bare, FEEDS, inner(bare, kind), Options(**options))  # type: ignore[arg-type]
    return decibels(expected, answers(write(quantized), SAMPLES)[0])


def test_eight_bits_keep_forty_decibels_and_sixteen_keep_more(graph: Graph) -> None:
    eight, sixteen = quality(graph), quality(graph, activation_bits=16)

    assert eight > 35
    assert sixteen > eight + 6


def test_each_step_of_four_bit_rounding_helps(graph: Graph) -> None:
    plain = quality(graph, "4", rounding="nearest", correct=False)
    corrected = quality(graph, "4", rounding="nearest")
    searched = quality(graph, "4")

    assert plain < corrected < searched
    assert searched > plain + 6


def test_what_is_computed_layer_by_layer_is_what_the_file_answers(graph: Graph) -> None:
    """Differences come from rounding in the file alone, which does it at other places than floats do."""
    quantized = quantize(graph, FEEDS, inner(graph, "4"))
    bare = replace(quantized, graph=replace(quantized.graph, outputs=("last",)))
    grid = quantized.grids["last"]

    def step(node: Node, inputs: list[Floats]) -> Floats:
        if not node.weighted:
            return quantized.grids[node.name].fake(compute(node, inputs))
        weights = quantized.weights[node.name]
        bias = weights.bias * quantized.grids[node.inputs[0]].scale[0] * weights.grid.scale
        return quantized.grids[node.name].fake(activate(node, weigh(node, inputs[0], weights.real(), bias)))

    simulated = forward(bare.graph, FEEDS, step)["last"]
    answered = answers(write(bare), SAMPLES)[0]

    steps = np.rint((simulated - answered) / grid.scale[0])
    assert np.abs(steps).max() <= 2
    assert np.mean(steps != 0) < 0.5


def test_the_percentile_observer_lets_rare_extremes_saturate(graph: Graph) -> None:
    samples = images(np.random.default_rng(4), 256)
    samples.reshape(-1)[:2] = 40, -30

    whole, narrow = (calibrate(graph, {"x": samples}, name) for name in ("minmax", "percentile"))

    assert (-30, 40) == whole["x"]
    assert -8 < narrow["x"][0] < -3 < 3 < narrow["x"][1] < 8
    assert all(whole[name][0] <= low <= high <= whole[name][1] + 1e-3 for name, (low, high) in narrow.items())


def test_the_mse_observer_loses_least(graph: Graph) -> None:
    """Values with long tails."""
    values = np.random.default_rng(5).standard_t(4, (64, 8, 8, 3)).astype(np.float32)

    def error(observer: str) -> float:
        grid = grids(graph, calibrate(graph, {"x": values}, observer))["x"]
        return float(np.square(values - grid.fake(values)).mean())

    assert error("mse") < min(error("minmax"), error("percentile"))


def test_equalization_changes_no_answer_and_evens_out_channels(graph: Graph) -> None:
    """One channel is a hundred times as large as the others, which a following layer undoes."""
    crooked = fold(graph)
    left, right = crooked["pool"], crooked["right"]
    assert left.op == "max_pool" and right.kernel is not None
    nodes = [
        Node("x", "input", (), (8, 8, 3)),
        replace(crooked["first"], name="a", inputs=("x",)),
        Node("p", "max_pool", ("a",), (4, 4, 16), attrs={"size": (2, 2), "strides": (2, 2), "padding": "valid"}),
        replace(crooked["left"], name="b", inputs=("p",)),
    ]
    chain = Graph({node.name: node for node in nodes}, ("x",), ("b",))
    size = np.ones(16, np.float32)
    size[3] = 20
    nodes[1].kernel, nodes[1].bias = nodes[1].kernel * size, nodes[1].bias * size  # type: ignore[operator]
    nodes[3].kernel = nodes[3].kernel / size[:, np.newaxis]  # type: ignore[operator]
    even = fold(chain)

    equalize(even)

    np.testing.assert_allclose(forward(chain, FEEDS)["b"], forward(even, FEEDS)["b"], rtol=1e-3, atol=1e-4)
    reach = np.abs(even["a"].kernel).max(axis=(0, 1, 2))  # type: ignore[arg-type]
    assert reach.max() / reach.min() < 5 < np.ptp(np.abs(nodes[1].kernel).max(axis=(0, 1, 2)))  # type: ignore[arg-type]
    assert even["a"].attrs["equalized"][3] > 4
    assert decibels(
        forward(chain, FEEDS)["b"], answers(write(quantize(chain, FEEDS, options=Options(equalize=True))), SAMPLES)[0]
    ) > 6 + decibels(forward(chain, FEEDS)["b"], answers(write(quantize(chain, FEEDS)), SAMPLES)[0])


def test_a_relu6_and_a_second_reader_are_in_the_way_of_equalization(graph: Graph) -> None:
    even = fold(graph)

    equalize(even)

    assert [] == [node.name for node in even if "equalized" in node.attrs]


def test_pruned_weights_stay_zero(graph: Graph) -> None:
    pruned = fold(graph)
    kernel = pruned["left"].kernel
    assert kernel is not None
    kernel[:, :, 4:8] = 0

    values = quantize(pruned, FEEDS, inner(pruned, "4")).weights["left"].values

    assert not values[:, :, 4:8].any()
    assert np.count_nonzero(values) > values.size / 2


def test_deviations_say_which_layer_loses(graph: Graph) -> None:
    """Two bits for one layer: it and what follows lose, what lies in front does not."""
    kinds = inner(graph, "8")

    fine, coarse = (
        deviations(made, FEEDS, integers(made, FEEDS))
        for made in (quantize(graph, FEEDS, kinds), quantize(graph, FEEDS, kinds | {"mixed": "ternary"}))
    )

    assert set(graph.nodes) == set(fine)
    assert coarse["mixed"] < 25 < 30 < fine["mixed"]
    assert all(fine[name] == coarse[name] for name in ("x", "first", "deep", "left", "both"))
    assert min(fine.values()) > 30


def test_values_that_are_not_finite_stop_with_the_layer(graph: Graph) -> None:
    broken = fold(graph)
    assert broken["right"].kernel is not None
    broken["right"].kernel[0, 0, 0, 0] = np.nan

    with pytest.raises(BuildError) as caught:
        quantize(broken, FEEDS)
    assert "node 'right' gives NaN or infinite values for the calibration samples" == str(caught.value)


def test_what_does_not_exist_is_refused(graph: Graph) -> None:
    for options, message in [
        (Options(observer="luck"), "no observer 'luck'; there is minmax, percentile, mse"),
        (Options(rounding="up"), "no rounding 'up'; there is nearest, gptq, descent"),
        (Options(activation_bits=4), "activations of 4 bits; there are 8 and 16"),
    ]:
        with pytest.raises(BuildError) as caught:
            quantize(graph, FEEDS, options=options)
        assert message == str(caught.value)
    with pytest.raises(BuildError, match="no samples to calibrate with"):
        quantize(graph, {"x": SAMPLES[:0]})
