from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.protocol.tensors import ITEM_BYTES, TensorSpec, pack, pack_strings, unpack, unpack_strings

FACE = {"name": "face", "dtype": "uint8", "shape": [1, 2], "bytes": 2}


@st.composite
def _tensors(draw):
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    spec = TensorSpec(draw(st.text(max_size=6)), dtype, shape)
    if dtype == "string":
        strings = draw(st.lists(st.binary(max_size=5), min_size=spec.elements, max_size=spec.elements))
        return spec, pack_strings(strings)
    size = ITEM_BYTES[dtype] * spec.elements
    return spec, draw(st.binary(min_size=size, max_size=size))


@settings(deadline=None, max_examples=60, database=None)
@given(st.lists(_tensors(), max_size=4))
def test_tensors_unpack_to_what_was_packed(tensors):
    described, payload = pack(tensors)

    assert tensors == unpack(described, payload)


@settings(deadline=None, max_examples=60, database=None)
@given(st.lists(st.binary(max_size=20), max_size=10))
def test_strings_unpack_to_what_was_packed(strings):
    assert strings == unpack_strings(pack_strings(strings), len(strings))


def test_a_spec_reads_as_dtype_and_shape():
    assert "float32 [1, 49, 10]" == str(TensorSpec("x", "float32", (1, 49, 10)))


@pytest.mark.parametrize(("shape", "elements"), [((), 1), ((0, 5), 0), ((2, 3, 4), 24)])
def test_the_number_of_elements_is_the_product_of_the_extents(shape, elements):
    assert elements == TensorSpec("x", "int8", shape).elements


@pytest.mark.parametrize(
    ("described", "payload", "reason"),
    [
        ({"name": "face"}, b"", "tensors is not a list"),
        (["face"], b"", "a tensor's description is not an object"),
        ([{**FACE, "name": 5}], b"ab", "a tensor has no name"),
        ([{**FACE, "dtype": "int4"}], b"ab", "tensor 'face' has the unknown dtype 'int4'"),
        ([{**FACE, "dtype": ["uint8"]}], b"ab", "tensor 'face' has the unknown dtype ['uint8']"),
        ([{**FACE, "shape": None}], b"ab", "tensor 'face' has no usable shape: None"),
        ([{**FACE, "shape": [-1, 2]}], b"ab", "tensor 'face' has no usable shape: [-1, 2]"),
        ([{**FACE, "shape": [True, 2]}], b"ab", "tensor 'face' has no usable shape: [True, 2]"),
        ([{**FACE, "shape": [1.0, 2]}], b"ab", "tensor 'face' has no usable shape: [1.0, 2]"),
        ([{**FACE, "shape": [2**31]}], b"ab", "tensor 'face' has no usable shape: [2147483648]"),
        ([{**FACE, "shape": [1] * 17}], b"ab", f"tensor 'face' has no usable shape: {[1] * 17}"),
        ([{**FACE, "bytes": -2}], b"ab", "tensor 'face' has no usable length: -2"),
        ([{**FACE, "bytes": "2"}], b"ab", "tensor 'face' has no usable length: '2'"),
        ([{**FACE, "bytes": 3}], b"abc", "tensor 'face' is uint8 [1, 2] and so 2 bytes, not 3"),
        ([FACE], b"a", "tensor 'face' ends at byte 2 of a payload of 1"),
        ([FACE, FACE], b"abc", "tensor 'face' ends at byte 4 of a payload of 3"),
        ([FACE], b"abc", "1 bytes of payload belong to no tensor"),
        ([], b"abc", "3 bytes of payload belong to no tensor"),
    ],
)
def test_a_description_that_pack_would_not_make_is_refused(described, payload, reason):
    with pytest.raises(ValueError) as caught:
        unpack(described, payload)

    assert reason == str(caught.value)


def test_the_product_of_huge_extents_does_not_wrap():
    """In 64 bits 2**31 * ... would come back to 0 and pass for an empty tensor."""
    shape = [2**30, 2**30, 2**4]

    with pytest.raises(ValueError) as caught:
        unpack([{"name": "x", "dtype": "int8", "shape": shape, "bytes": 0}], b"")

    assert f"tensor 'x' is int8 {shape} and so {2**64} bytes, not 0" == str(caught.value)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (pack_strings([b"one", b"two"]), 1),
        (pack_strings([b"one"]), 2),
        (pack_strings([b"one"])[:-1], 1),
        (pack_strings([b"one"]) + b"\x05\x00", 2),
        (b"\xff\xff\xff\xffab", 1),
    ],
    ids=["one too many", "one too few", "cut short", "half a length", "a length of 4 GB"],
)
def test_bytes_that_hold_another_number_of_strings_are_refused(values, count):
    with pytest.raises(ValueError) as caught:
        unpack_strings(values, count)

    assert f"{len(values)} bytes do not hold {count} strings" == str(caught.value)
