"""What a .tflite file holds; and that no file at all breaks the reader."""

from __future__ import annotations

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.errors import BuildError
from deploy.model_file import ModelFacts, Weights, read
from devices.protocol.manifest import TensorInfo
from tests.conftest import GOLDEN
from tests.models import elementwise

DIGITS = (GOLDEN / "digits_int8.tflite").read_bytes()
HINT = "`deploy build` takes .tflite, .keras, .h5, a SavedModel folder or module:function"


def refusal(data: bytes) -> tuple[str, str | None]:
    with pytest.raises(BuildError) as caught:
        read(data, "net.tflite")
    return str(caught.value), caught.value.hint


def repacked(change: str, value: object) -> bytes:
    """`elementwise` with one attribute, ``object.attribute``, of its code, tensor or graph set."""
    model = schema.ModelT.InitFromPackedBuf(elementwise(), 0)
    graph = model.subgraphs[0]
    places = {"model": model, "code": model.operatorCodes[0], "tensor": graph.tensors[0], "graph": graph}
    place, attribute = change.split(".")
    setattr(places[place], attribute, value)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_a_small_model_is_described_in_full() -> None:
    x = TensorInfo("a", "float32", (1, 4))

    assert ModelFacts(
        bytes=372,
        ops={"ADD": 1},
        inputs=(x, TensorInfo("b", "float32", (1, 4))),
        outputs=(TensorInfo("y", "float32", (1, 4)),),
        signatures=(),
        weights=(),
        subgraphs=1,
    ) == read(elementwise(), "net.tflite")


def test_a_quantized_network_shows_its_operators_scales_and_weights() -> None:
    facts = read(DIGITS, "digits.tflite")

    assert {"CONV_2D": 3, "FULLY_CONNECTED": 1, "RESHAPE": 1, "SOFTMAX": 1} == facts.ops
    (image,), (scores,) = facts.inputs, facts.outputs
    assert ("int8", (1, 8, 8, 1), "int8", (1, 10)) == (image.dtype, image.shape, scores.dtype, scores.shape)
    # Probabilities: TFLite fixes softmax's output to these.
    assert (1 / 256, -128) == (scores.scale, scores.zero_point)
    assert facts.per_channel
    assert ["int8", "int32"] == [weights.dtype for weights in facts.weights]
    # 3x3x1x16 + 3x3x16x32 + 3x3x32x32 + 512x10
    assert 144 + 4608 + 9216 + 5120 == facts.weights[0].bytes


def test_a_custom_operator_is_listed_by_its_name() -> None:
    assert {"CUSTOM:nope": 1} == read(elementwise(custom="nope"), "net.tflite").ops


def test_an_operator_of_a_newer_schema_is_listed_by_its_number() -> None:
    assert {"BUILTIN:9999": 1} == read(repacked("code.builtinCode", 9999), "net.tflite").ops


def test_operators_are_listed_most_frequent_first() -> None:
    assert [3, 1, 1, 1] == list(read(DIGITS, "digits.tflite").ops.values())
    assert sorted(list(read(DIGITS, "digits.tflite").ops)[1:]) == list(read(DIGITS, "digits.tflite").ops)[1:]


def test_an_open_extent_is_minus_one() -> None:
    assert (-1, 4) == read(elementwise(open_batch=True), "net.tflite").inputs[0].shape


@pytest.mark.parametrize("dtype", ["INT4", "BOOL", "STRING", "COMPLEX64", "BFLOAT16"])
def test_every_type_of_the_schema_has_its_name(dtype: str) -> None:
    assert dtype.lower() == read(elementwise(dtype=dtype), "net.tflite").inputs[0].dtype


def test_the_share_of_zero_weights_is_counted_whatever_a_value_takes() -> None:
    """Pruning shows here; int4 and int2 share bytes, the first value in the lowest bits."""
    found = {}
    stored = {"INT8": [0, 0, 0, 7], "INT16": [0, 0, 1, 0, 0, 0, 0, 0], "INT4": [0x70, 0], "INT2": [0b11000000]}
    for dtype, data in stored.items():
        model = schema.ModelT.InitFromPackedBuf(elementwise((1, 4), dtype=dtype), 0)
        model.buffers.append(schema.BufferT())
        model.buffers[1].data = data
        model.subgraphs[0].tensors[1].buffer = 1
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        (found[dtype],) = read(bytes(builder.Output()), "net.tflite").weights

    assert {name: Weights(name.lower(), 1, len(data), 0.75, 4) for name, data in stored.items()} == found


def test_a_sparse_tensor_is_counted() -> None:
    model = schema.ModelT.InitFromPackedBuf(elementwise(), 0)
    model.buffers.append(schema.BufferT())
    model.buffers[1].data = [0] * 16
    tensor = model.subgraphs[0].tensors[1]
    tensor.buffer, tensor.sparsity = 1, schema.SparsityParametersT()
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")

    assert 1 == read(bytes(builder.Output()), "net.tflite").sparse


# Files that are none


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "net.tflite: not a TFLite file (it is empty)"),
        (b"abc", "net.tflite: not a TFLite file (no 'TFL3' at byte 4, but b'')"),
        (b"PK\x03\x04 a bundle", "net.tflite: not a TFLite file (no 'TFL3' at byte 4, but b' a b')"),
        (b"\x18\0\0\0TFL3", "net.tflite: not a TFLite file, or cut short (8 bytes)"),
        (b"\xff" * 4 + b"TFL3" + b"\xff" * 99, "net.tflite: not a TFLite file, or cut short (107 bytes)"),
        (DIGITS[:9000], "net.tflite: not a TFLite file, or cut short (9000 bytes)"),
        (repacked("tensor.type", 99), "net.tflite: not a TFLite file, or cut short (392 bytes)"),
    ],
    ids=["empty", "short", "another", "head", "garbage", "cut", "type"],
)
def test_a_file_that_is_no_model_is_refused(data: bytes, expected: str) -> None:
    assert (expected, HINT) == refusal(data)


def test_a_model_without_a_graph_is_refused() -> None:
    assert "net.tflite: no subgraph in the model" == refusal(repacked("model.subgraphs", []))[0]


@given(length=st.integers(0, len(DIGITS)))
@settings(deadline=None, database=None, max_examples=150)
def test_a_model_that_was_cut_short_anywhere_is_refused_or_described(length: int) -> None:
    """Never another exception: `inspect` is for files that are suspect."""
    try:
        assert length == read(DIGITS[:length], "net.tflite").bytes
    except BuildError as error:
        assert str(error).startswith("net.tflite: not a TFLite file")


@given(changes=st.dictionaries(st.integers(8, 371), st.integers(0, 255), max_size=4))
@settings(deadline=None, database=None, max_examples=300)
def test_a_damaged_model_is_refused_or_described(changes: dict[int, int]) -> None:
    data = bytearray(elementwise())
    for at, value in changes.items():
        data[at] = value

    try:
        assert 372 == read(bytes(data), "net.tflite").bytes
    except BuildError as error:
        assert str(error).startswith("net.tflite: ")
