"""Compiled networks on the numpy model, against the stock runtime's reference kernels, bit for bit."""

from __future__ import annotations

import pytest

from deploy.errors import BuildError
from deploy.fpga import isa
from deploy.fpga.compiler import compile_model
from tests.rtl.cases import CASES
from tests.rtl.graphs import SAME, Graph
from tests.rtl.machines import corpus_model, differences, on_the_model, reference

NETWORKS = ("tiny_ic_resnet8_int8", "tiny_kws_dscnn_int8", "tiny_vww_mobilenetv1_int8", "tiny_ad_autoencoder_int8")


def left_to_the_cpu(compiled) -> list[tuple[str, str]]:
    return [(place.op, place.reason) for place in compiled.placements if place.segment is None]


@pytest.mark.parametrize("stream", [False, True], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_equals_the_reference_kernels(name, stream):
    graph, model = CASES[name]()

    compiled = compile_model(model, name, stream)

    assert ([("SOFTMAX", "no such operator in the accelerator")] if "CPU" in name else []) == left_to_the_cpu(compiled)
    assert [] == differences(*on_the_model(compiled, reference(model, graph.values())))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_real_network_runs_whole_but_for_its_softmax(corpus, name):
    model, values = corpus_model(corpus, name)

    compiled = compile_model(model, name)

    assert 1 == len(compiled.segments)
    assert {"SOFTMAX"} >= {op for op, _ in left_to_the_cpu(compiled)}
    assert [] == differences(*on_the_model(compiled, reference(model, values)))


def test_additions_cost_no_pass_of_their_own_where_a_layer_ends_in_them():
    _, model = CASES["residual, stride 2"]()
    (segment,) = compile_model(model, "x").segments

    assert 4 == len(segment.layers)
    assert 5 == len(segment.nodes)


def test_weights_beyond_the_chip_are_brought_in_turns():
    graph = Graph(50, 1, 600)
    model = graph.model(graph.dense(graph.dense(graph.dense(graph.input, 400, "RELU"), 400, "RELU"), 10))

    compiled = compile_model(model, "wide")

    assert not compiled.segments[0].resident
    assert [] == differences(*on_the_model(compiled, reference(model, graph.values())))


def test_loaded_weights_never_overwrite_those_still_needed():
    """Each load that runs beside a layer keeps off the words of that layer and of those that wait between them."""
    graph = Graph(51, 1, 600)
    x = graph.input
    for _ in range(6):
        x = graph.dense(x, 300)
    (segment,) = compile_model(graph.model(x), "deep", stream=True).segments
    start, words = segment.run
    program = isa.decode(segment.image[start : start + 8 * words])
    convs = [i for i in program if isinstance(i, isa.Conv)]
    spans = [range(c.weights, c.weights + c.channel_tiles * c.tile_words) for c in convs]
    loads = 0  # of weights, so far
    done = 0
    for instruction in program:
        if isinstance(instruction, isa.Conv):
            done += 1
        elif isinstance(instruction, isa.Load) and instruction.memory == isa.Memory.WEIGHTS:
            first = instruction.to // 4
            assert spans[loads] == range(first, first + instruction.beats // 4)
            for waiting in range(done, loads):
                assert not set(spans[waiting]) & set(spans[loads])
            loads += 1
    assert len(convs) == loads


def weight_beats(build) -> int:
    """That the last layer's weights take on the bus."""
    graph = Graph(54, 1, 320)
    (segment,) = compile_model(graph.model(build(graph)), "x", stream=True).segments
    start, words = segment.run
    program = isa.decode(segment.image[start : start + 8 * words])
    return [i.beats for i in program if isinstance(i, isa.Load) and i.memory == isa.Memory.WEIGHTS][-1]


@pytest.mark.parametrize(("kind", "part"), [("int4", 2), ("small", 2), ("binary", 8)])
def test_narrow_weights_take_their_share_of_the_bus(kind, part):
    """But for the words of parameters."""

    def build(graph):
        return graph.dense(graph.signs(graph.input) if kind == "binary" else graph.input, 64, kind=kind)

    parameters = 8 * isa.PARAMETER_WORDS * 4
    full = weight_beats(lambda graph: graph.dense(graph.input, 64)) - parameters

    assert full == part * (weight_beats(build) - parameters)


@pytest.mark.parametrize(
    ("high", "low", "channels", "why"),
    [(1, 0, 8, "values of unlike size"), (3, -3, 8, "too large a factor"), (1, -1, 7, "an odd count of channels")],
)  # fmt: skip
def test_bits_that_the_array_cannot_count_are_multiplied_as_int8(high, low, channels, why):
    """The pattern's first operators stay on the CPU, and its convolution is one of int8."""
    graph = Graph(55, 1, 5, 5, channels)
    model = graph.model(graph.conv(graph.signs(graph.input, high, low), 6, kind="binary"))

    compiled = compile_model(model, "x")

    assert ["CAST", "GREATER_EQUAL", "SELECT_V2"] == [op for op, _ in left_to_the_cpu(compiled)]
    assert [] == differences(*on_the_model(compiled, reference(model, graph.values())))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda g: g.softmax(g.input), "no such operator in the accelerator"),
        (
            lambda g: g.conv(g.input, 8, least=-128),
            "a weight is -128, and two of them share a multiplier only in [-127, 127]",
        ),
        (lambda g: g.conv(g.input, 8, stride=3), "stride 3 by 3"),
        (lambda g: g.conv(g.input, 8, depthwise=True), "a depthwise convolution that makes several channels of one"),
        (lambda g: g.pool(g.input, (3, 3), padding=SAME), "an average over padding"),
        (lambda g: g.conv(g.input, 8000, kernel=(1, 1)), "2002 KiB of activations at once, and the chip holds 128 KiB"),
    ],
)  # fmt: skip
def test_what_stays_on_the_cpu_has_a_reason(build, reason):
    graph = Graph(52, 1, 16, 16, 4)
    compiled = compile_model(graph.model(build(graph)), "x")

    assert [reason] == [why for _, why in left_to_the_cpu(compiled)]
    assert () == compiled.segments


def test_a_tensor_read_with_both_strides_leaves_one_reader_to_the_cpu():
    graph = Graph(53, 1, 8, 8, 4)
    x = graph.conv(graph.input, 8)
    model = graph.model(graph.conv(x, 8), graph.conv(x, 8, stride=2))

    compiled = compile_model(model, "x")

    assert [("CONV_2D", "its input is read with stride 1 and with stride 2")] == left_to_the_cpu(compiled)
    assert [] == differences(*on_the_model(compiled, reference(model, graph.values())))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.9])
def test_a_file_cut_short_is_no_model(keep):
    _, model = CASES["residual, stride 2"]()

    with pytest.raises(BuildError):
        compile_model(model[: int(len(model) * keep)], "short")


def test_all_that_is_claimed_of_any_published_model_equals_the_reference_kernels(corpus):
    """Models nobody made for this: only a part of most can run here."""
    names = ("mcunet_vww_int8", "silabs_kws_on_off_v3_int8", "emza_ssd_slim_face_int8", "tum_qnn_mnist_int8")
    for name in names:
        model, values = corpus_model(corpus, name)
        compiled = compile_model(model, name)

        assert compiled.segments
        assert [] == differences(*on_the_model(compiled, reference(model, values)))
