"""Data sets, and how samples become a model's input."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from deploy.data import (
    PREPROCESS,
    call,
    content_digest,
    feed,
    from_wire,
    load,
    load_arrays,
    parse_preprocess,
    random_inputs,
    to_wire,
)
from deploy.errors import BadInput, BuildError, DataError
from devices.protocol.manifest import TensorInfo
from devices.protocol.tensors import pack, unpack

FLOATS = TensorInfo("x", "float32", (1, 4))
TOKENS = TensorInfo("tokens", "int32", (1, 4))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(spec: str, split: str = "test", labels: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        load(spec, split, labels)
    return str(caught.value)


# Files


@pytest.mark.parametrize(
    ("split", "names", "expected"),
    [
        ("test", ("x_test", "x", "x_train"), "x_test"),
        ("test", ("xte", "x", "xtr"), "xte"),
        ("train", ("x_train", "x", "x_test"), "x_train"),
        ("train", ("xtr", "x"), "xtr"),
        ("test", ("x",), "x"),
        ("train", ("x",), "x"),
    ],
)
def test_a_split_is_found_by_the_names_in_use(here: Path, split: str, names: tuple[str, ...], expected: str) -> None:
    xs = {name: np.full((3, 2), i) for i, name in enumerate(names)}
    ys = {"y" + name[1:]: np.full(3, i, np.uint8) for i, name in enumerate(names)}
    np.savez(here / "data.npz", **xs, **ys)

    found = load("data.npz", split, labels=True)

    assert found.y is not None
    np.testing.assert_array_equal(xs[expected], found.x)
    np.testing.assert_array_equal(ys["y" + expected[1:]], found.y)
    assert ("data.npz", np.int64) == (found.source, found.y.dtype)


@pytest.mark.parametrize(
    ("arrays", "split", "labels", "expected"),
    [
        ({"images": np.zeros((3, 2)), "classes": np.zeros(3)}, "test", False, "data.npz has no test data: "
         "expected 'x_test' or 'xte' or 'x', found 'images' [3, 2], 'classes' [3]"),
        ({"x_test": np.zeros((3, 2))}, "train", False,
         "data.npz has no train data: expected 'x_train' or 'xtr' or 'x', found 'x_test' [3, 2]"),
        ({}, "test", False, "data.npz has no test data: expected 'x_test' or 'xte' or 'x', found nothing"),
        ({"x": np.zeros((3, 2)), "y": np.arange(4)}, "test", False, "data.npz: 3 samples in 'x', 4 labels in 'y'"),
        ({"x": np.zeros((1, 2)), "y": np.int64(1)}, "test", False, "data.npz: 1 samples in 'x', 0 labels in 'y'"),
        ({"x": np.zeros((0, 2))}, "test", False, "data.npz: 'x' holds no samples"),
        ({"x": np.float32(1)}, "test", False, "data.npz: 'x' holds no samples"),
        ({"x": np.zeros((3, 2))}, "test", True,
         "data.npz has no labels for 'x': expected 'y', found 'x' [3, 2]"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3)}, "test", True,
         "data.npz: labels 'y' are float64 [3], not class indices"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 10), np.int32)}, "test", True,
         "data.npz: labels 'y' are int32 [3, 10], not class indices"),
    ],
    ids=["names", "split", "nothing", "lengths", "scalar label", "no samples", "scalar", "no labels", "real",
         "one-hot"],
)  # fmt: skip
def test_a_data_set_that_does_not_fit_says_what_was_found(
    here: Path, arrays: dict[str, Any], split: str, labels: bool, expected: str
) -> None:
    np.savez(here / "data.npz", **arrays)

    assert expected == refusal("data.npz", split, labels)


def test_labels_that_are_no_class_indices_are_left_out_where_none_are_needed(here: Path) -> None:
    """A regression's targets are no reason not to calibrate with its samples."""
    np.savez(here / "data.npz", x=np.zeros((3, 2)), y=np.zeros(3))

    assert load("data.npz", "test").y is None


def test_labels_with_a_one_at_their_class_are_class_indices(here: Path) -> None:
    np.savez(here / "data.npz", x=np.zeros((3, 2)), y=np.eye(4, dtype=np.float32)[[2, 0, 3]])

    found = load("data.npz", "test", labels=True)

    assert found.y is not None
    assert [2, 0, 3] == found.y.tolist()


def test_labels_in_a_column_are_a_list_of_labels(here: Path) -> None:
    """As Keras's cifar10 has them.  Compared as they are with [N] predictions, numpy would make [N, N] of it."""
    np.savez(here / "data.npz", x=np.zeros((3, 2)), y=np.array([[2], [0], [1]], np.uint8))

    found = load("data.npz", "test", labels=True)

    assert found.y is not None
    assert [2, 0, 1] == found.y.tolist()


def _npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def _zip(name: str, text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, text)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_npz(x=np.zeros(9))[:-30], "not an .npz of plain arrays (File is not a zip file)"),
        (b"", "not an .npz of plain arrays (No data left in file)"),
        (_zip("notes.txt", "hello"), "not an .npz of plain arrays ('notes.txt' is none)"),
        (_npz(x=np.array([{}], object)), "not an .npz of plain arrays (Object arrays cannot be loaded when "
         "allow_pickle=False)"),
    ],
    ids=["cut", "empty", "another zip", "pickles"],
)  # fmt: skip
def test_a_file_that_is_no_npz_is_refused(here: Path, content: bytes, expected: str) -> None:
    (here / "data.npz").write_bytes(content)

    assert f"data.npz: {expected}" == refusal("data.npz")


def test_a_file_that_is_not_there_is_named(here: Path) -> None:
    assert "data.npz: No such file or directory" == refusal("data.npz")


def test_a_single_array_is_refused_with_the_way_to_make_an_npz(here: Path) -> None:
    np.save(here / "x.npy", np.zeros(3))

    with pytest.raises(DataError) as caught:
        load_arrays("x.npy")

    assert "x.npy: a single array, not an .npz" == str(caught.value)
    assert "`np.savez(FILE, x=..., y=...)` makes one" == caught.value.hint


GOOD = _npz(x=np.random.default_rng(0).random((20, 20)), y=np.arange(20))


@given(at=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255))
@settings(deadline=None, database=None, max_examples=60)
def test_a_damaged_file_is_a_data_error_or_still_an_npz(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    """zlib, Python's tokenizer and numpy each have their own exceptions for it."""
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(GOOD[:at] + bytes([value]) + GOOD[at + 1 :])

    try:
        arrays = load_arrays(str(path))
    except DataError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert set(arrays) <= {"x", "y"}


# Functions


def test_a_function_of_this_folder_gives_a_data_set(here: Path) -> None:
    (here / "data_given.py").write_text("def data():\n    return {'x': [[1, 2]], 'y': [3]}\n")

    found = load("data_given:data", "test", labels=True)

    assert found.y is not None
    assert ([[1, 2]], [3], "data_given:data") == (found.x.tolist(), found.y.tolist(), found.source)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("no_such:data", "no_such:data: cannot import 'no_such': No module named 'no_such'"),
        ("data_bad:nothing", "data_bad:nothing: 'data_bad' has no function 'nothing'"),
        ("data_bad:NUMBER", "data_bad:NUMBER: 'data_bad' has no function 'NUMBER'"),
        ("data_bad:number", "data_bad:number returned a int, not a mapping of arrays"),
        ("data_bad:fails", "data_bad:fails raised KeyError: 'weights'"),
        ("data_broken:data", "data_broken:data: cannot import 'data_broken': invalid syntax (data_broken.py, line 1)"),
    ],
)
def test_a_function_that_gives_no_data_is_named_with_the_reason(here: Path, spec: str, expected: str) -> None:
    (here / "data_bad.py").write_text("NUMBER = 3\ndef number(): return NUMBER\ndef fails(): return {}['weights']\n")
    (here / "data_broken.py").write_text("def data(:\n")

    assert expected == refusal(spec)


def test_the_exception_of_a_call_is_the_callers_and_keeps_its_cause(here: Path) -> None:
    """DEPLOY_DEBUG shows the cause, with the line of the user's function."""
    (here / "data_fails.py").write_text("def model():\n    raise MemoryError('no room')\n")

    with pytest.raises(BuildError) as caught:
        call("data_fails:model", BuildError)

    assert "data_fails:model raised MemoryError: no room" == str(caught.value)
    assert isinstance(caught.value.__cause__, MemoryError)


def test_the_same_data_in_another_file_has_the_same_digest(here: Path) -> None:
    x, y = np.arange(6).reshape(3, 2), np.arange(3)
    np.savez(here / "a.npz", x=x, y=y)
    np.savez_compressed(here / "b.npz", y=y, x=np.asfortranarray(x))

    assert content_digest(load_arrays("a.npz")) == content_digest(load_arrays("b.npz"))


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.array([[1, 2]])},
        {"z": np.array([1, 2])},
        {"x": np.array([1, 2], np.int32)},
        {"x": np.array([2, 1])},
        {"x": np.array([1, 2]), "y": np.array([])},
    ],
    ids=["shape", "name", "dtype", "values", "more"],
)
def test_whatever_differs_in_the_data_changes_its_digest(other: dict[str, Any]) -> None:
    assert content_digest({"x": np.array([1, 2])}) != content_digest(other)


# Preprocessing


@pytest.mark.parametrize(
    ("text", "scale", "offset"),
    [("raw", 1.0, 0.0), ("unit", 1 / 255, 0.0), ("symmetric", 1 / 127.5, -1.0), ("0.5,-2", 0.5, -2.0)],
)
def test_a_preprocess_is_a_name_or_scale_and_offset(text: str, scale: float, offset: float) -> None:
    assert {"scale": scale, "offset": offset} == parse_preprocess(text)


@pytest.mark.parametrize("text", ["", "2", "a,b", "1,2,3", "nan,0", "inf,0", "1,-inf"])
def test_another_preprocess_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_preprocess(text)

    expected = f"preprocess {text!r} is none of raw, unit, symmetric or SCALE,OFFSET such as 0.0078431,-1"
    assert expected == str(caught.value)


# Feeding


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "float32", "int32", "bool"])
def test_samples_of_the_inputs_own_dtype_pass_as_they_are(dtype: str) -> None:
    samples = np.array([[0, 1, 0, 1]], dtype)

    fed = feed(samples, TensorInfo("x", dtype, (1, 4), 0.25, 7))

    np.testing.assert_array_equal(samples[:, np.newaxis], fed, strict=True)


@given(
    real=npst.arrays(np.float32, (5, 4), elements=st.floats(-40, 40, width=32)),
    scale=st.floats(0.05, 2.0),
    zero_point=st.integers(-128, 127),
)
@settings(deadline=None, database=None, max_examples=100)
def test_real_values_are_quantized_to_the_nearest_step_and_clipped(real: Any, scale: float, zero_point: int) -> None:
    """Compared with the formula in double precision: at a tie of float32, either neighbour is the nearest."""
    fed = feed(real, TensorInfo("x", "int8", (1, 4), scale, zero_point), PREPROCESS["raw"])

    exact = np.clip(real.astype(np.float64) / scale + zero_point, -128, 127)
    assert ((5, 1, 4), np.int8) == (fed.shape, fed.dtype)
    assert np.abs(fed[:, 0] - exact).max() <= 0.5 + 1e-4


def test_preprocessing_happens_before_quantization() -> None:
    info = TensorInfo("x", "int8", (1, 3), 1 / 127.5, 0)

    assert [[[-127, 0, 127]]] == feed(np.array([[0.5, 127.5, 254.5]]), info, PREPROCESS["symmetric"]).tolist()
    assert [[[0, 0, 1]]] == feed(np.array([[0, 1, 2]], np.uint8), info, PREPROCESS["unit"]).tolist()


def test_a_stated_preprocess_holds_for_samples_of_the_inputs_own_dtype_too() -> None:
    """uint8 pixels for a uint8 input: fed as they are, or turned into real values first; only the user knows."""
    info = TensorInfo("x", "uint8", (1, 2), 0.5, 0)
    pixels = np.array([[10, 20]], np.uint8)

    assert [[[10, 20]]] == feed(pixels, info).tolist()
    assert [[[20, 40]]] == feed(pixels, info, PREPROCESS["raw"]).tolist()


def test_values_that_an_input_cannot_hold_are_refused_unless_a_preprocess_says_they_are_meant() -> None:
    """Pixels in [0, 255] for an input in [-1, 1]: the accuracy would be poor, and nobody would know why."""
    info = TensorInfo("image", "int8", (1, 4), 1 / 128, 0)
    pixels = np.array([[0, 100, 200, 255]], np.uint8)

    with pytest.raises(BadInput) as caught:
        feed(pixels, info)

    assert str(caught.value) == (
        "75% of the values lie outside of [-1, 0.9922], which is what input 'image' can hold; they go from 0 to 255"
    )
    assert caught.value.hint == (
        "`--preprocess symmetric` is x/127.5-1, `unit` is x/255, `SCALE,OFFSET` is anything, `raw` means it"
    )
    assert [[[0, 127, 127, 127]]] == feed(pixels, info, PREPROCESS["raw"]).tolist()


def test_a_few_values_beyond_the_range_are_clipped() -> None:
    """Calibration never sees the largest value: up to one in a hundred is no mistake, one more is."""
    info = TensorInfo("x", "int8", (1, 1000), 1 / 128, 0)
    samples = np.zeros((1, 1000), np.float32)
    samples[0, :10] = 5.0

    assert 127 == feed(samples, info).max()
    samples[0, 10] = 5.0
    with pytest.raises(BadInput, match=r"^1% of the values lie outside"):
        feed(samples, info)


def test_one_step_beyond_the_range_is_no_mistake() -> None:
    """255/255 at a scale of 1/256 is step 256 of 255."""
    info = TensorInfo("x", "uint8", (1, 4), 1 / 256, 0)

    assert [[[255, 255, 255, 255]]] == feed(np.ones((1, 4), np.float32), info).tolist()


@pytest.mark.parametrize("preprocess", [None, PREPROCESS["raw"]])
def test_nan_cannot_be_quantized(preprocess: dict[str, float] | None) -> None:
    samples = np.zeros((50, 4), np.float32)
    samples[7, 3] = np.nan

    with pytest.raises(BadInput) as caught:
        feed(samples, TensorInfo("x", "int8", (1, 4), 0.5, -3), preprocess)

    assert "1 of 200 values are NaN, which input 'x', int8, cannot hold" == str(caught.value)


@pytest.mark.parametrize("preprocess", [None, PREPROCESS["raw"], PREPROCESS["unit"]])
def test_samples_for_a_floating_point_input_become_its_dtype(preprocess: dict[str, float] | None) -> None:
    scale = preprocess["scale"] if preprocess else 1.0

    fed = feed(np.array([[0, 51, 102, 255]], np.uint8), FLOATS, preprocess)

    np.testing.assert_allclose(np.array([[[0, 51, 102, 255]]]) * scale, fed, rtol=1e-6)
    assert np.float32 == fed.dtype


@pytest.mark.parametrize(
    ("shape", "sample", "expected"),
    [
        ((1, 2, 2, 1), (2, 2), (1, 2, 2, 1)),  # a channel that the data has not
        ((1, 2, 2), (2, 2, 1), (1, 2, 2)),  # and one that the model has not
        ((1, 2, 2, 1), (1, 2, 2, 1), (1, 2, 2, 1)),
        ((-1, 4), (4,), (1, 4)),  # an open batch is one
        ((-1, 4), (1, 4), (1, 4)),
        ((1, 1), (), (1, 1)),
        ((), (), ()),  # a scalar input
        ((), (1,), ()),
        ((1, -1, 3), (5, 3), (1, 5, 3)),  # an open length: the sample's own
        ((-1, -1), (5,), (1, 5)),
        ((-1, -1, 3), (1, 5, 3), (1, 5, 3)),
    ],
)
def test_extents_of_one_may_be_missing_or_too_many(
    shape: tuple[int, ...], sample: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    samples = np.arange(2 * int(np.prod(sample)), dtype=np.float32).reshape(2, *sample)

    fed = feed(samples, TensorInfo("x", "float32", shape))

    assert (2, *expected) == fed.shape
    np.testing.assert_array_equal(samples.reshape(-1), fed.reshape(-1))


@pytest.mark.parametrize(
    ("samples", "info", "expected"),
    [
        (np.zeros((3, 5), np.float32), FLOATS, "input 'x' is float32 [1, 4]; a sample is float32 [5]"),
        (np.zeros((3, 2, 2), np.uint8), FLOATS, "input 'x' is float32 [1, 4]; a sample is uint8 [2, 2]"),
        (np.zeros((3, 4, 1), np.float32), TensorInfo("x", "float32", (1, -1, 3)),
         "input 'x' is float32 [1, -1, 3]; a sample is float32 [4, 1]"),
        (np.zeros((3, 2), np.float32), TensorInfo("x", "float32", ()), "input 'x' is float32 []; a sample is "
         "float32 [2]"),
        (np.zeros((3, 4), np.complex64), FLOATS, "input 'x' is float32 [1, 4]; a sample is complex64 [4]"),
        (np.zeros((3, 4), np.uint8), TensorInfo("x", "bool", (1, 4)),
         "input 'x' is bool [1, 4]; a sample is uint8 [4]"),
        (np.zeros((3, 4), np.float32), TOKENS,
         "input 'tokens' is int32 [1, 4] and not quantized; a sample is float32 [4]"),
        (np.array([[0, 1, 2, 2**31]]), TOKENS, "input 'tokens' is int32 [1, 4]; the samples go from 0 to 2147483648"),
        (np.array([[-1, 1, 2, 3]]), TensorInfo("tokens", "uint8", (1, 4)),
         "input 'tokens' is uint8 [1, 4]; the samples go from -1 to 3"),
    ],
)  # fmt: skip
def test_samples_that_do_not_fit_are_refused_with_both_shapes_and_dtypes(
    samples: Any, info: TensorInfo, expected: str
) -> None:
    with pytest.raises(BadInput) as caught:
        feed(samples, info)

    assert expected == str(caught.value)


def test_indices_become_the_inputs_integer_and_are_never_scaled() -> None:
    """Token ids come as int64 from every tokenizer; models take int32."""
    fed = feed(np.array([[0, 1, 30000, 2**31 - 1]]), TOKENS)

    np.testing.assert_array_equal(np.array([[[0, 1, 30000, 2**31 - 1]]], np.int32), fed, strict=True)
    with pytest.raises(BadInput, match="and not quantized"):
        feed(np.array([[0, 1, 2, 3]]), TOKENS, PREPROCESS["unit"])


# Random inputs

EVERY_DTYPE = ("float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool", "complex64", "string")


def test_random_inputs_are_the_same_for_the_same_seed() -> None:
    infos = tuple(TensorInfo(dtype, dtype, (-1, 50)) for dtype in EVERY_DTYPE)

    first, again, other = (random_inputs(infos, 2, seed) for seed in (1, 1, 2))

    for name, a, b, c in zip(EVERY_DTYPE, first[1], again[1], other[1], strict=True):
        assert ((1, 50), name) == (a.shape, "string" if a.dtype == object else a.dtype.name)
        np.testing.assert_array_equal(a, b)
        assert name == "string" or not np.array_equal(a, c)
    assert not np.array_equal(first[0][0], first[1][0])


def test_random_values_stay_where_a_model_can_bear_them() -> None:
    """A wide integer is an index as a rule, and 0 and 1 are in every table."""
    infos = tuple(TensorInfo(dtype, dtype, (4000,)) for dtype in ("float32", "int8", "uint8", "int16", "int64"))

    floats, int8, uint8, int16, int64 = random_inputs(infos, 1, seed=3)[0]

    assert 0 <= floats.min() < 0.01 < 0.99 < floats.max() < 1
    assert [(-128, 127), (0, 127), (-128, 127), (0, 1)] == [(a.min(), a.max()) for a in (int8, uint8, int16, int64)]


# The wire


@given(
    array=npst.arrays(
        st.sampled_from(["?", "i1", "u1", "<i2", ">i2", "<f2", "<i4", "<f4", ">f4", "<i8", "<f8", "<c8", "<c16"]),
        npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    )
)
@settings(deadline=None, database=None, max_examples=100)
def test_a_tensor_comes_back_from_the_wire_bit_for_bit(array: Any) -> None:
    [(spec, values)] = unpack(*pack([to_wire("t", array)]))

    back = from_wire(spec, values)

    assert (array.shape, array.dtype.name) == (back.shape, back.dtype.name)
    assert array.astype(array.dtype.newbyteorder("<")).tobytes() == back.tobytes()


@given(strings=st.lists(st.binary(max_size=20), min_size=6, max_size=6))
@settings(deadline=None, database=None, max_examples=50)
def test_strings_come_back_from_the_wire_byte_for_byte(strings: list[bytes]) -> None:
    """A numpy bytes array would drop zero bytes at the end of each."""
    array = np.empty(6, object)
    array[:] = strings

    back = from_wire(*to_wire("t", array.reshape(2, 3)))

    assert ((2, 3), strings) == (back.shape, back.reshape(-1).tolist())


def test_text_goes_over_the_wire_as_utf_8() -> None:
    assert ["grün".encode(), b""] == from_wire(*to_wire("t", np.array(["grün", ""]))).tolist()


def test_an_array_that_is_not_contiguous_travels_in_its_own_order() -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1)[::-1]

    np.testing.assert_array_equal(array, from_wire(*to_wire("t", array)), strict=True)
