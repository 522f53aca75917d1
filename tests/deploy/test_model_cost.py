"""What a .tflite costs and what is odd about it, against published figures and files that are known to be odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.build.binary import BinaryLayer, binary_model
from deploy.errors import BuildError
from deploy.model_file import KERNELS, Met, arena, cost, layers, observe, observed, oddities
from deploy.model_file.arena import Lifetime, plan
from tests.conftest import GOLDEN
from tests.models import elementwise

DIGITS = (GOLDEN / "digits_int8.tflite").read_bytes()


def changed(change: Any, data: bytes = DIGITS) -> bytes:
    """The model after ``change(model, graph)``."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    for tensor in model.subgraphs[0].tensors:
        quantization = tensor.quantization
        if quantization is not None and quantization.scale is not None:
            quantization.scale, quantization.zeroPoint = list(quantization.scale), list(quantization.zeroPoint)
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def kernel(graph: Any, op: int) -> Any:
    return graph.tensors[graph.operators[op].inputs[1]]


def codes(data: bytes) -> list[str]:
    return sorted({oddity.code for oddity in oddities(data, "net.tflite")})


# What it costs


def test_a_layer_is_counted_by_hand() -> None:
    """8x8x1 pixels, 16 filters of 3x3, and so on; the bias counts as parameters, not as multiplications."""
    found = {layer.op: layer for layer in layers(DIGITS, "digits.tflite")}
    first = layers(DIGITS, "digits.tflite")[0]

    assert ("CONV_2D", 8 * 8 * 16 * 9, 16 * 9 + 16, 16 * 9 + 16 * 4) == (
        first.op, first.macs, first.parameters, first.bytes
    )  # fmt: skip
    assert 512 * 10 == found["FULLY_CONNECTED"].macs
    assert (0, 0, None) == (found["SOFTMAX"].macs, found["SOFTMAX"].parameters, found["SOFTMAX"].zeros)


@pytest.mark.parametrize(
    ("file", "macs", "parameters"),
    [
        # MLPerf Tiny (arXiv:2106.07597) says 12.5, 2.7, 7.5 million and 264 thousand; A. Howard et al. 2017 and
        # M. Sandler et al. 2018 say 41 and 300 million.
        ("tiny_ic_resnet8_int8", 12.5e6, 78e3),
        ("tiny_kws_dscnn_int8", 2.7e6, 22.6e3),
        ("tiny_vww_mobilenetv1_int8", 7.5e6, 211e3),
        ("tiny_ad_autoencoder_int8", 264e3, 266e3),
        ("support_mobilenet_v1_0.25_224_uint8_meta", 41e6, 468e3),
        ("coral_mobilenet_v2_1.0_224_uint8", 300e6, 3.49e6),
    ],
)
def test_published_networks_cost_what_their_authors_say(
    corpus: Path, file: str, macs: float, parameters: float
) -> None:
    found = cost(layers((corpus / "models" / f"{file}.tflite").read_bytes(), file))

    assert (pytest.approx(macs, rel=0.02), pytest.approx(parameters, rel=0.01)) == (found.macs, found.parameters)


def test_what_is_not_counted_is_named_and_not_zero() -> None:
    found = layers(elementwise(custom="mystery"), "net.tflite")

    assert [None] == [layer.macs for layer in found]
    assert ("CUSTOM:mystery",) == cost(found).uncounted


def test_weights_behind_dequantize_belong_to_the_layer_that_uses_them(corpus: Path) -> None:
    """Of float16 files; the same network as float32 has the same layers."""
    half, whole = (
        [layer for layer in layers((corpus / "models" / f"{file}.tflite").read_bytes(), file) if layer.op in KERNELS]
        for file in ("d_resnet8_fp16", "tiny_ic_resnet8_float")
    )

    assert [(a.macs, a.parameters) for a in whole] == [(b.macs, b.parameters) for b in half]
    assert [a.bytes for a in whole] == [2 * b.bytes for b in half]


@given(
    st.lists(
        st.builds(lambda size, a, b: Lifetime(64 * size, min(a, b), max(a, b)), st.integers(0, 20),
                  st.integers(0, 9), st.integers(0, 9)), max_size=12
    )
)  # fmt: skip
@settings(deadline=None, database=None, max_examples=200)
def test_tensors_that_live_at_once_share_no_byte(lifetimes: list[Lifetime]) -> None:
    offsets = plan(lifetimes)

    for i, (a, at) in enumerate(zip(lifetimes, offsets, strict=True)):
        for b, other in zip(lifetimes[:i], offsets[:i], strict=True):
            if a.first <= b.last and b.first <= a.last:
                assert at + a.bytes <= other or other + b.bytes <= at


def test_a_chain_needs_two_neighbours_at_once_and_a_residual_three() -> None:
    chain = [Lifetime(64, 0, 0), Lifetime(128, 0, 1), Lifetime(192, 1, 2)]
    residual = [*chain, Lifetime(640, 0, 2)]

    assert 320 == max(offset + tensor.bytes for offset, tensor in zip(plan(chain), chain, strict=True))
    assert 960 == max(offset + tensor.bytes for offset, tensor in zip(plan(residual), residual, strict=True))


def test_resnet_8s_arena_is_the_residual_of_its_first_stage(corpus: Path) -> None:
    """Three images of 32x32x16 bytes: the block's input, which is added again, and two convolutions' outputs."""
    found = arena((corpus / "models" / "tiny_ic_resnet8_int8.tflite").read_bytes(), "resnet8")

    assert (3 * 32 * 32 * 16, 3 * 32 * 32 * 16, 0) == (found.bytes, found.live, found.unknown)


# What is odd


def test_a_sound_model_has_no_oddities() -> None:
    assert [] == codes(DIGITS)


def _zero_scale(model: Any, graph: Any) -> None:
    kernel(graph, 1).quantization.scale[3] = 0.0


def _zero_point(model: Any, graph: Any) -> None:
    kernel(graph, 1).quantization.zeroPoint[0] = 3


def _axis(model: Any, graph: Any) -> None:
    kernel(graph, 1).quantization.quantizedDimension = 1


def _bias_scale(model: Any, graph: Any) -> None:
    graph.tensors[graph.operators[1].inputs[2]].quantization.scale[0] *= 2


def _softmax(model: Any, graph: Any) -> None:
    graph.tensors[graph.outputs[0]].quantization.scale[0] = 0.5


def _reshape(model: Any, graph: Any) -> None:
    graph.tensors[graph.operators[3].outputs[0]].quantization.scale[0] *= 3


def _weights(change: Any) -> Any:
    def change_kernel(model: Any, graph: Any) -> None:
        buffer = model.buffers[kernel(graph, 1).buffer]
        values = np.frombuffer(np.asarray(buffer.data, np.uint8).tobytes(), np.int8).reshape(32, -1).copy()
        buffer.data = change(values).astype(np.int8).view(np.uint8).reshape(-1)

    return change_kernel


def _dead(values: Any) -> Any:
    values[4] = 0
    return values


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # A scale of zero also breaks the rule that binds it to its bias.
        (_zero_scale, ["bias-scale", "scale"]),
        (_zero_point, ["zero-point"]),
        (_axis, ["axis"]),
        (_bias_scale, ["bias-scale"]),
        (_softmax, ["softmax"]),
        (_reshape, ["bias-scale", "requantized"]),
        (_weights(_dead), ["dead-channel"]),
        (_weights(lambda values: values // 8), ["wide-range"]),
        (_weights(lambda values: np.clip(values * 4.0, -127, 127)), ["saturated"]),
        (_weights(np.sign), ["few-levels"]),
    ],
)
def test_each_oddity_is_found_where_it_is_made(change: Any, expected: list[str]) -> None:
    assert expected == codes(changed(change))


def test_float_operators_among_integer_ones_are_counted(corpus: Path) -> None:
    (found,) = oddities((corpus / "models" / "aeq_mnist_partly_quantized.tflite").read_bytes(), "mnist")

    assert ("float", "3 of 4 operators with arithmetic run in float") == (found.code, found.what)


def test_a_file_whose_scales_lie_along_no_axis_is_found(corpus: Path) -> None:
    """It is a real one, of TFLite Micro."""
    data = (corpus / "models" / "tflm_person_detect_BADQDIM.tflite").read_bytes()

    assert ["axis"] == codes(data)


def test_ranges_that_samples_leave_or_do_not_fill_are_named(tmp_path: Path) -> None:
    """One binary layer; its output is made to lie at a limit, then in a corner of its range."""
    layer = BinaryLayer(
        weights=np.ones((4, 8), np.int8),
        bias=np.zeros(4, np.int32),
        threshold=np.zeros(8, np.int32),
        weight_scale=np.ones(4, np.float32),
        output_scale=1.0,
    )
    samples = np.random.default_rng(0).integers(-128, 128, (50, 1, 8)).astype(np.int8)
    ranges = {}
    for scale in (0.01, 1.0):
        layer = BinaryLayer(**{**vars(layer), "output_scale": scale})
        data = binary_model((1, 8), 1.0, 0, [layer])
        ranges[scale] = {(o.where, o.code) for o in observed(data, "net", observe(data, samples, "net"))}

    assert {("binary0", "saturated")} == ranges[0.01]
    assert {("binary0", "wide-range")} == ranges[1.0]


def test_a_relus_zeros_are_no_saturation() -> None:
    data = DIGITS
    names = [tensor.name for tensor in layers(data, "digits")]

    assert () == observed(data, "digits", {names[0]: Met(-128, 127, 0.6, 0.0)})
    assert ["saturated"] == [o.code for o in observed(data, "digits", {names[0]: Met(-128, 127, 0.6, 0.02)})]


def test_a_model_that_kills_the_runtime_does_not_kill_us(corpus: Path) -> None:
    data = (corpus / "models" / "tflm_keyword_scrambled_8bit_CRASHES.tflite").read_bytes()

    with pytest.raises(BuildError):
        observe(data, np.zeros((1, 1, 96), np.int8), "keyword")


@given(changes=st.dictionaries(st.integers(8, len(DIGITS) - 1), st.integers(0, 255), min_size=1, max_size=4))
@settings(deadline=None, database=None, max_examples=60)
def test_a_damaged_model_is_refused_or_described(changes: dict[int, int]) -> None:
    data = bytearray(DIGITS)
    for at, value in changes.items():
        data[at] = value
    for look in (layers, arena, oddities):
        try:
            look(bytes(data), "net.tflite")
        except BuildError as error:
            assert str(error).startswith("net.tflite: ")
