"""What training is made of: patterns of zeros, channels, other structures, samples, losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow: `pip install 'deploy-hil[build]'`")

from deploy.build import prune
from deploy.build.execute import forward
from deploy.build.graph import Graph, Node, Norm, folded, macs
from deploy.build.grid import weight_grid
from deploy.build.quantized import Weights
from deploy.build.recipe import Prune, parse
from deploy.build.rounding import best_scale, nearest
from deploy.build.train import kinds_of, structure
from deploy.build.train import samples as sample_sets
from deploy.build.train.channels import Channels, superfluous
from deploy.build.train.layers import Weighted, on_grid
from deploy.build.train.loss import divergence
from deploy.data import Dataset
from deploy.errors import BuildError, DataError

WINDOW = {"strides": (1, 1), "dilation": (1, 1), "padding": "same", "groups": 1}


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(name: str, source: str, inputs: int, outputs: int, seed: int = 0) -> Node:
    norm = Norm(*(np.abs(numbers(outputs, seed=seed + i)) + np.float32(0.5) for i in range(4)), 1e-3)
    kernel = numbers(3, 3, inputs, outputs, seed=seed)
    return Node(name, "conv", (source,), (6, 6, outputs), kernel, None, norm, "relu", dict(WINDOW), (name,))


def residual() -> Graph:
    """x -> a -> b, a + b -> depthwise -> concat with c -> flatten -> dense: everything that couples channels."""
    depthwise = Node("d", "depthwise", ("sum",), (6, 6, 8), numbers(3, 3, 8, 1), attrs={**WINDOW, "groups": 8})
    nodes = [
        Node("x", "input", (), (6, 6, 3)),
        conv("a", "x", 3, 8, 1),
        conv("b", "a", 8, 8, 2),
        Node("sum", "add", ("a", "b"), (6, 6, 8), activation="relu"),
        depthwise,
        conv("c", "sum", 8, 12, 3),
        Node("both", "concat", ("d", "c"), (6, 6, 20), attrs={"axis": 3}),
        Node("flat", "reshape", ("both",), (720,)),
        Node("dense", "dense", ("flat",), (4,), numbers(720, 4), np.zeros(4, np.float32), layers=("dense",)),
    ]
    return Graph({node.name: node for node in nodes}, ("x",), ("dense",))


def layer(*kernel: int) -> Graph:
    """A graph whose middle layer has a kernel of this shape."""
    graph = residual()
    node = conv("b", "a", kernel[2], kernel[3])
    node.kernel = numbers(*kernel)
    graph.nodes = {"x": graph["x"], "a": graph["a"], "b": node, "c": graph["c"]}
    return graph


def largest(graph: Graph, pattern: Prune, *names: str) -> dict[str, Any]:
    """The masks that the size of weights gives."""
    worths = {name: prune.magnitudes(graph[name], kernel(graph[name]), pattern) for name in names}
    return prune.masks(graph, pattern, pattern.sparsity, worths)


def kernel(node: Node) -> np.ndarray[Any, np.dtype[np.float32]]:
    assert node.kernel is not None
    return node.kernel


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 64), (10, 40)])  # the second fits no tile
def test_a_tile_is_4_input_channels_at_one_position_for_32_output_channels(inputs: int, outputs: int) -> None:
    mask = largest(layer(3, 3, inputs, outputs), Prune("tile", 0.75), "b")["b"]

    for i in range(0, inputs, 4):
        for o in range(0, outputs, 32):
            tiles = mask[:, :, i : i + 4, o : o + 32].reshape(9, -1)
            assert (tiles == tiles[:, :1]).all()
    tile = 4 * 32 / mask.size
    assert 0.75 - tile <= 1 - mask.mean() <= 0.75


def test_a_block_is_16_input_channels_of_one_output_channel() -> None:
    mask = largest(layer(1, 1, 64, 24), Prune("block", 0.5, of=16), "b")["b"].reshape(4, 16, 24)

    assert (mask == mask[:, :1]).all()
    assert 0.5 == mask.mean()


def test_of_n_m_just_the_largest_n_of_each_m_input_channels_stay() -> None:
    graph = layer(3, 3, 10, 8)

    mask = largest(graph, Prune("nm", 0.5, 2, 4), "b")["b"]

    whole = mask[:, :, :8].reshape(9, 2, 4, 8)
    assert {2.0} == set(whole.sum(axis=2).reshape(-1).tolist())
    assert {1.0} == set(mask[:, :, 8:].reshape(9, 2, 8).sum(axis=1).reshape(-1).tolist())
    size = np.abs(kernel(graph["b"])[:, :, :8]).reshape(9, 2, 4, 8)
    assert (np.where(whole == 1, size, np.inf).min(axis=2) >= np.where(whole == 0, size, 0).max(axis=2)).all()


def test_a_share_is_of_all_layers_together_and_empties_none() -> None:
    graph = residual()
    graph["b"].kernel = kernel(graph["b"]) * np.float32(1e-3)  # small numbers are not of small worth
    names = [node.name for node in prune.prunable(graph)]

    masks = largest(graph, Prune("magnitude", 0.9), *names)

    assert 0.9 == pytest.approx(
        1 - sum(m.sum() for m in masks.values()) / sum(m.size for m in masks.values()), abs=0.01
    )
    assert all(mask.any() for mask in masks.values())
    assert ["b", "c"] == names  # neither the first nor the last layer, nor the depthwise one


@pytest.mark.parametrize(("done", "share"), [(0, 0.0), (0.5, 0.7), (1, 0.8), (2, 0.8)])
def test_zeros_grow_fast_then_slowly(done: float, share: float) -> None:
    assert share == pytest.approx(prune.cubic(0.8, done))


def test_channels_that_an_addition_joins_go_together() -> None:
    graph = residual()
    channels = Channels(graph)

    made = structure.without(graph, channels, {int(channels.of["b"][5]), int(channels.of["c"][0])})

    assert channels.of["a"].tolist() == channels.of["b"].tolist() == channels.of["d"].tolist()
    assert [7, 7, 7, 7, 11, 18] == [made[name].channels for name in ("a", "b", "sum", "d", "c", "both")]
    assert (36 * 18, 4) == made["dense"].kernel.shape  # type: ignore[union-attr]
    assert channels.macs({int(channels.of["b"][5]), int(channels.of["c"][0])}) == sum(map(macs, made))


def test_without_channels_that_are_always_zero_the_graph_computes_the_same() -> None:
    graph = residual()
    for name in ("a", "b"):
        norm = graph[name].norm
        assert norm is not None
        norm.gamma[[2, 5]] = norm.beta[[2, 5]] = 0
    channels = Channels(graph)
    gone = {int(i) for i in channels.of["a"][[2, 5]]}
    x = {"x": numbers(2, 6, 6, 3)}

    made = structure.without(graph, channels, gone)

    assert 6 == made["d"].channels
    np.testing.assert_allclose(forward(made, x)["dense"], forward(graph, x)["dense"], rtol=1e-4, atol=1e-4)


def test_channels_go_cheapest_first_until_the_share_of_multiplications_is_gone() -> None:
    graph = residual()
    channels = Channels(graph)
    worths = {int(i): 1.0 + place for place, i in enumerate(np.unique(np.concatenate(list(channels.of.values()))))}
    worths = {i: worth for i, worth in worths.items() if i not in channels.locked}

    gone = superfluous(channels, worths, 0.5)

    assert 0.35 * channels.macs() < channels.macs(gone) <= 0.5 * channels.macs()
    assert not gone & channels.locked
    left = [structure.without(graph, channels, gone)[name].channels for name in ("a", "b", "c")]
    assert [0, 0, 0] == [count % 4 for count in left]  # kernels take four at a time
    with pytest.raises(BuildError, match="of the multiplications can go"):
        superfluous(channels, worths, 0.99)


def test_half_the_width_is_half_the_channels_with_fresh_weights_from_the_seed() -> None:
    graph = residual()

    made, again, other = (structure.narrowed(graph, 0.5, seed) for seed in (1, 1, 2))

    assert [4, 4, 4, 4, 4] == [made[name].channels for name in ("a", "b", "sum", "d", "dense")]
    kernels = [g["b"].kernel for g in (made, again, other)]
    assert np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[0], kernels[2])


def test_a_kernel_of_rank_one_is_separated_exactly_and_strides_stay_with_the_spatial_half() -> None:
    graph = residual()
    node = graph["b"]
    node.kernel = (numbers(3, 3, 8, 1) * numbers(1, 1, 8, 8, seed=9)).astype(np.float32)
    x = {"x": numbers(2, 6, 6, 3)}

    made = structure.separated(graph)

    assert "depthwise" == made["b/depthwise"].op and (1, 1, 8, 8) == made["b"].kernel.shape  # type: ignore[union-attr]
    del made.nodes["c/depthwise"]
    made.nodes["c"] = graph["c"]  # its kernel is not of rank one
    np.testing.assert_allclose(forward(made, x)["dense"], forward(graph, x)["dense"], rtol=1e-3, atol=1e-3)


def test_layers_get_the_weights_that_the_recipe_says() -> None:
    graph = residual()

    assert {"a": "w8", "b": "w4", "d": "w8", "c": "w4", "dense": "w8"} == kinds_of(graph, parse("w4a8"))
    assert {"a": "w8", "b": "binary", "d": "w8", "c": "w8", "dense": "w8"} == kinds_of(
        graph, parse("mixed:b=1", "epochs:1")
    )
    with pytest.raises(BuildError, match="no layer 'e'"):
        kinds_of(graph, parse("mixed:e=4"))


def images(count: int = 40, channels: int = 3) -> sample_sets.Samples:
    x = np.random.default_rng(0).integers(0, 256, (count, 16, 16, channels)).astype(np.uint8)
    return sample_sets.Samples(x, np.arange(count) % 4)


def test_an_epoch_is_every_sample_once_in_an_order_of_seed_and_epoch() -> None:
    data = images()

    def order(seed: int, epoch: int) -> list[int]:
        return [
            int(y)
            for x, ys in data.shuffled(8, seed, epoch)
            for y in [(data.x == x[i]).all((1, 2, 3)).argmax() for i in range(len(x))]
        ]

    assert list(range(40)) == sorted(order(0, 0))
    assert order(0, 0) == order(0, 0) != order(0, 1) != order(1, 1)


@pytest.mark.parametrize(("channels", "mirrored"), [(1, False), (3, True)])
def test_augmented_images_are_shifted_and_only_coloured_ones_mirrored(channels: int, mirrored: bool) -> None:
    data = images(64, channels)
    wide = np.pad(data.x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    made, _ = next(data.shuffled(64, 0, 0, augment=True))
    plain, _ = next(data.shuffled(64, 0, 0))

    flips = 0
    for image, was in zip(made, plain, strict=True):
        i = int((data.x == was).all((1, 2, 3)).argmax())
        views = [wide[i, r : r + 16, c : c + 16] for r in range(5) for c in range(5)]
        straight = any((image == view).all() for view in views)
        assert straight or any((image == view[:, ::-1]).all() for view in views)
        flips += not straight
    assert mirrored == (flips > 16)


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (np.zeros((0, 6, 6, 3)), np.zeros(0, int), "d holds no samples to train on"),
        (np.zeros((3, 6, 6, 3)), None, "d has no labels to train on"),
        (
            np.zeros((3, 6, 6, 3)),
            np.array([2, 2, 2]),
            "d: all 3 samples are of class 2: nothing can be learned from them",
        ),
        (np.zeros((3, 6, 6, 3)), np.array([0, 1, 4]), "d: labels go from 0 to 4, the model has 4 outputs"),
        (np.zeros((3, 6, 5, 3)), np.array([0, 1, 2]), "d: a sample is [6, 5, 3], the model takes [6, 6, 3]"),
        (np.full((3, 6, 6, 3), np.nan), np.array([0, 1, 2]), "d: sample 0 holds a value that is not finite"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(x: Any, y: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        sample_sets.fit(residual(), Dataset(x, y, "d"))

    assert said == str(caught.value)


def test_the_divergence_from_a_teacher_is_zero_for_its_own_answers_and_does_not_see_a_common_offset() -> None:
    teacher, other = numbers(5, 4), numbers(5, 4, seed=1)

    assert 0 == pytest.approx(float(divergence(teacher + 3, teacher, 4.0)), abs=1e-5)
    # By its definition, in numpy.
    p, q = (np.exp(v / 2) / np.exp(v / 2).sum(axis=1, keepdims=True) for v in (teacher, other))
    assert 4 * (p * np.log(p / q)).sum(axis=1).mean() == pytest.approx(float(divergence(other, teacher, 2.0)), rel=1e-4)


@pytest.mark.parametrize(("upstream", "passes"), [(1.0, [0, 1, 1]), (-1.0, [1, 1, 0])])
def test_a_weight_beyond_its_grid_is_led_back_and_no_further_away(upstream: float, passes: list[int]) -> None:
    import tensorflow as tf

    weights = tf.constant([[-3.0], [0.4], [3.0]])

    with tf.GradientTape() as tape:
        tape.watch(weights)
        values = on_grid(weights, tf.zeros(1), -1.0, 1.0, 1.0, back=True)
    slopes = tape.gradient(values, weights, output_gradients=tf.fill((3, 1), upstream))

    assert [-1, 0, 1] == np.asarray(values).reshape(-1).tolist()
    assert [upstream * p for p in passes] == np.asarray(slopes).reshape(-1).tolist()


def test_a_layer_begins_with_the_integers_it_is_given_and_weights_as_near_to_theirs_as_those_allow() -> None:
    node = conv("b", "a", 4, 6)
    assert node.norm is not None
    node.norm.gamma[2] *= -1  # turned around inside
    wanted = folded(node)[0]
    columns = wanted.reshape(-1, 6)
    scale = best_scale(columns, "ternary")
    integers = nearest(columns, scale, "ternary")
    integers[5] = 0  # as rounding that looks at other weights does
    weights = Weights(integers.reshape(wanted.shape), weight_grid(scale, "ternary"), np.zeros(6, np.int32))

    layer = Weighted(node, "ternary")
    layer.begin(weights, 1.0, wanted)

    np.testing.assert_array_equal(weights.values, layer.integers())
    steps = layer.effective().reshape(-1, 6) / scale
    near = (np.abs(columns / scale) < 1) & (np.abs(columns / scale - integers) < 0.45)
    np.testing.assert_allclose(steps[near], (columns / scale)[near], rtol=1e-4, atol=1e-5)
    assert np.abs(steps - integers).max() <= 0.45 + 1e-4


def test_a_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    from deploy.build.train import checkpoint

    (tmp_path / checkpoint.NAME).write_bytes(b"PK\x03\x04 and no more")

    with pytest.raises(BuildError, match="a damaged checkpoint"):
        checkpoint.load(tmp_path, [], "")
