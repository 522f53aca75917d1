"""Deltas on the host: they always make the target, and they are small where models resemble each other."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.delta import encode, ranges
from devices import delta
from devices.protocol.delta import HEADER_BYTES
from tests.conftest import GOLDEN
from tests.models import perturbed

MODEL = (GOLDEN / "digits_int8.tflite").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delta")


def there_and_back(folder: Path, base: bytes, target: bytes) -> int:
    """Size of the delta, after the board's decoder has made the target of it."""
    patch = encode(base, target)
    (folder / "base").write_bytes(base)
    (folder / "patch").write_bytes(patch)
    delta.apply(folder / "base", folder / "patch", folder / "target")
    made = (folder / "target").read_bytes()
    assert target == made
    assert hashlib.sha256(target).digest() == hashlib.sha256(made).digest()
    return len(patch)


@settings(deadline=None)
@given(st.binary(max_size=500), st.binary(max_size=500))
def test_any_two_files_have_a_delta(folder: Path, base: bytes, target: bytes) -> None:
    there_and_back(folder, base, target)


@settings(deadline=None)
@given(st.data())
def test_a_file_that_was_cut_up_and_put_together_again_has_a_delta(folder: Path, data: st.DataObject) -> None:
    """Pieces of the base in any order, with strange bytes between."""
    base = MODEL[: data.draw(st.sampled_from([0, 9, 2000, 6000]))]
    target = b""
    for _ in range(data.draw(st.integers(0, 5))):
        start = data.draw(st.integers(0, len(base)))
        target += base[start : start + data.draw(st.integers(0, 3000))] + data.draw(st.binary(max_size=40))

    there_and_back(folder, base, target)


def test_the_same_file_is_little_more_than_a_header(folder: Path) -> None:
    assert there_and_back(folder, MODEL, MODEL) <= HEADER_BYTES + 8


def test_empty_files_have_deltas(folder: Path) -> None:
    assert HEADER_BYTES + 3 == there_and_back(folder, MODEL, b"")
    assert there_and_back(folder, b"", MODEL) < len(MODEL)


@pytest.mark.parametrize(("share", "step", "bits"), [(0.01, 1, 0.13), (0.1, 1, 0.6), (0.5, 3, 2.35)])
def test_weights_that_move_a_little_take_little_more_than_their_entropy(
    folder: Path, share: float, step: int, bits: float
) -> None:
    """
    A byte that moves with probability p, by one of n differences, has H(p) + p log2(n) bits: 0.09, 0.57 and 2.29.

    The contexts must learn that from 19,088 bytes.
    """
    target = perturbed(MODEL, share, step, seed=1)
    weights = sum(each.length for each in ranges(MODEL) if each.type == 9)

    size = there_and_back(folder, MODEL, target) - HEADER_BYTES

    assert 19088 == weights
    assert size < weights * bits / 8 + 100


def test_a_layer_pruned_by_magnitude_costs_next_to_nothing(folder: Path) -> None:
    """Whether a weight became zero follows from its old value; other tools pay for each of them."""
    target = bytearray(MODEL)
    for each in ranges(MODEL):
        if each.type == 9:
            old = np.frombuffer(MODEL, np.int8, each.length, each.start)
            target[each.start : each.end] = np.where(np.abs(old.astype(int)) < 30, 0, old).astype(np.int8).tobytes()

    assert there_and_back(folder, MODEL, bytes(target)) < 500


def test_tensors_whose_scale_changed_are_told_by_that_change(folder: Path) -> None:
    """A channel whose largest weight grew by an eighth: all its weights shrink in proportion."""
    target = bytearray(MODEL)
    weights = max((each for each in ranges(MODEL) if each.scales), key=lambda each: each.length)
    old = np.frombuffer(MODEL, np.int8, weights.length, weights.start).reshape(len(weights.scales), -1)
    target[weights.start : weights.end] = np.rint(old / 1.125).astype(np.int8).tobytes()
    same_scales = there_and_back(folder, MODEL, bytes(target))
    for each in ranges(MODEL):
        if np.frombuffer(MODEL[each.start : each.end], "<f4" if each.type == 0 else "u1").tolist() == [*weights.scales]:
            grown = np.array(weights.scales, "<f4") * np.float32(1.125)
            target[each.start : each.end] = grown.astype("<f4").tobytes()

    assert there_and_back(folder, MODEL, bytes(target)) < same_scales / 4


def test_what_stands_in_another_place_of_no_model_is_found(folder: Path) -> None:
    """Two models in one file: the second is no tensor of the first, and resembles it 25 kB further on."""
    target = MODEL + perturbed(MODEL, 0.1, 1, seed=2)

    assert there_and_back(folder, MODEL, target) < 0.2 * len(MODEL)


@pytest.mark.parametrize(
    "name",
    [
        "tiny_kws_dscnn_int8", "d_resnet8_int16x8", "d_resnet8_fp16", "tum_magic_wand_float", "d_resnet8_int4_dynrange",
        "coral_split_concat_uint8", "litert_nested_while", "d_resnet8_pruned70_float_sparse", "litert_multi_signatures",
    ],
)  # fmt: skip
def test_real_models_of_every_type_have_small_deltas(folder: Path, corpus: Path, name: str) -> None:
    """Also of types that have no model of their own."""
    old = (corpus / "models" / f"{name}.tflite").read_bytes()
    new = perturbed(old, 0.1, 1, seed=3)
    difference = (np.frombuffer(new, np.uint8) - np.frombuffer(old, np.uint8)).tobytes()

    assert there_and_back(folder, old, new) < len(lzma.compress(difference)) + HEADER_BYTES + 20


def test_unrelated_models_have_deltas_too(folder: Path, corpus: Path) -> None:
    old = (corpus / "models" / "tflm_mnist_lstm_int8.tflite").read_bytes()

    assert there_and_back(folder, old, MODEL) < len(MODEL)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_model_is_cut_into_ranges_of_itself_or_none(data: st.DataObject) -> None:
    damaged = bytearray(MODEL)
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.integers(0, len(damaged) - 1) | st.integers(20_052, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])

    at = 0
    for each in ranges(cut):
        assert at <= each.start < each.end <= len(cut)
        at = each.end


def test_ranges_are_the_tensors_of_the_schema() -> None:
    """The oracle is LiteRT's own reader of the schema."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(MODEL, 0)
    wanted = set()
    for tensor in model.subgraphs[0].tensors:
        content = model.buffers[tensor.buffer].data
        if content is not None and len(content) >= 16:
            wanted.add((tensor.type, bytes(np.asarray(content, np.uint8))))

    found = {(each.type, MODEL[each.start : each.end]) for each in ranges(MODEL) if each.keys[0][0] == "data"}

    assert wanted == found
