"""From a model, as it was trained, to a bundle; TensorFlow is started once for all of these."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from deploy.build import build
from deploy.build.recipe import parse
from deploy.bundle import Bundle
from deploy.data import content_digest, load_arrays
from deploy.errors import BadInput, BuildError, DataError, ModelRefused
from devices.protocol.manifest import GOLDEN as GOLDEN_FILE
from tests import oracle
from tests.conftest import GOLDEN, ROOT
from tests.models import elementwise

DIGITS = str(GOLDEN / "digits_int8.tflite")
MODELS = '''
def conv():
    """Every operator of a small classifier; 1,200 weights in the last layer, as TFLite quantizes 1,024 and more."""
    import keras
    return keras.Sequential([
        keras.Input((4, 4, 1)),
        keras.layers.Conv2D(3, 3, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(25),
    ])

def trained():
    import numpy as np
    net = conv()
    net.compile("adam", "mse")
    rng = np.random.default_rng(0)
    net.fit(rng.random((64, 4, 4, 1)), rng.random((64, 25)), epochs=2, verbose=0)
    return net

def two_inputs():
    import keras
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    return keras.Model([a, b], keras.layers.Add()([a, keras.layers.Rescaling(10.0)(b)]))

def number():
    return 3
'''


@pytest.fixture(scope="module")
def tf() -> Any:
    return pytest.importorskip("tensorflow", reason="needs TensorFlow: `pip install 'deploy-hil[build]'`")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: with small_models.py, and data.npz with 40 labelled samples for its models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_models.py").write_text(MODELS)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.random((40, 4, 4, 1), np.float32), y=rng.integers(0, 25, 40))
    return tmp_path


@pytest.fixture
def conv(tf: Any, here: Path) -> Any:
    """The Keras model, made directly."""
    tf.keras.utils.set_random_seed(0)
    namespace: dict[str, Any] = {}
    exec(MODELS, namespace)
    return namespace["conv"]()


def refusal(kind: type[Exception], source: str, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        build(source, **{"name": "net", **options})
    return str(caught.value)


def golden(bundle: Bundle) -> dict[str, Any]:
    with np.load(io.BytesIO(bundle.files[GOLDEN_FILE]), allow_pickle=False) as arrays:
        return dict(arrays)


def tensors(model: bytes) -> list[Any]:
    return list(schema.ModelT.InitFromPackedBuf(model, 0).subgraphs[0].tensors)


# A .tflite


def test_a_tflite_is_packed_as_it_is_and_proven() -> None:
    built = build(DIGITS, name="digits", seed=5)

    manifest = built.bundle.manifest
    assert Path(DIGITS).read_bytes() == built.bundle.model
    assert ("digits", {"recipe": "as-is+seed:5", "source": "digits_int8.tflite"}, 5) == (
        manifest.name, manifest.recipe, manifest.seed
    )  # fmt: skip
    assert manifest.golden is not None
    assert (8, None) == (manifest.golden["vectors"], built.accuracy)
    assert manifest.golden["runtime"].startswith("ai-edge-litert ")
    assert (built.facts.inputs, built.facts.ops) == (manifest.inputs, manifest.ops)


def test_the_golden_vectors_are_what_stock_litert_answers(tmp_path: Path) -> None:
    vectors = golden(build(DIGITS, name="digits").bundle)

    expected = oracle.answers(Path(DIGITS), [[vectors[f"v{v}.in0"]] for v in range(8)], tmp_path)
    for v, outputs in enumerate(expected):
        np.testing.assert_array_equal(outputs[0], vectors[f"v{v}.out0"], strict=True)
    assert 16 == len(vectors)


def test_the_golden_inputs_are_the_first_samples_of_the_data(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (5, 8, 8, 1), dtype=np.int8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(5))

    built = build(DIGITS, name="digits", data=str(tmp_path / "data.npz"), vectors=3)

    vectors = golden(built.bundle)
    assert [f"v{v}.{k}0" for v in range(3) for k in ("in", "out")] == list(vectors)
    np.testing.assert_array_equal(x[:3], np.concatenate([vectors[f"v{v}.in0"] for v in range(3)]))
    assert built.accuracy is not None and built.bundle.manifest.accuracy is not None
    assert (5, built.accuracy.correct) == (
        built.bundle.manifest.accuracy["samples"], built.bundle.manifest.accuracy["correct"]
    )  # fmt: skip


def test_the_same_model_and_seed_give_the_same_bundle_wherever_the_files_lie(tmp_path: Path) -> None:
    bundles = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "sum.tflite").write_bytes(elementwise())
        bundles.append(build(str(folder / "sum.tflite"), name="sum").bundle)

    assert bundles[0] == bundles[1]
    assert bundles[0] != build(str(tmp_path / "a" / "sum.tflite"), name="sum", seed=1).bundle


def test_a_model_that_this_machines_runtime_refuses_says_so_and_can_be_packed_unproven(tmp_path: Path) -> None:
    path = tmp_path / "custom.tflite"
    path.write_bytes(elementwise(custom="nope"))

    text = refusal(ModelRefused, str(path), name="custom")
    built = build(str(path), name="custom", vectors=0)

    assert text.startswith("custom: Encountered unresolved custom op: nope.")
    assert text.endswith("(board 'local')")
    assert ({"model.tflite": path.read_bytes()}, None) == (built.bundle.files, built.bundle.manifest.golden)
    assert {"CUSTOM:nope": 1} == built.bundle.manifest.ops


def test_other_shapes_than_the_models_own_are_kept_and_used(tmp_path: Path) -> None:
    path = tmp_path / "open.tflite"
    path.write_bytes(elementwise(open_batch=True))

    built = build(str(path), name="open", shapes={"a": (3, 4), "b": (3, 4)}, vectors=1)

    assert {"a": (3, 4), "b": (3, 4)} == built.bundle.manifest.shapes
    vectors = golden(built.bundle)
    np.testing.assert_array_equal(vectors["v0.in0"] + vectors["v0.in1"], vectors["v0.out0"])
    assert (3, 4) == vectors["v0.out0"].shape


def test_labels_and_preprocessing_travel_with_the_bundle() -> None:
    preprocess = {"scale": 1 / 255, "offset": 0.0}

    manifest = build(DIGITS, name="digits", labels=["zero", "one"], preprocess=preprocess, vectors=0).bundle.manifest

    assert (("zero", "one"), preprocess) == (manifest.labels, manifest.preprocess)


# Keras models


def test_int8_is_int8_from_input_to_output_with_weights_per_channel(tf: Any, here: Path) -> None:
    built = build("small_models:trained", name="net", recipe="int8", data=str(here / "data.npz"))

    (image,), (scores,) = built.facts.inputs, built.facts.outputs
    assert ("int8", "int8", True) == (image.dtype, scores.dtype, built.facts.per_channel)
    # pixels in [0, 1): the range calibrated over all samples
    assert (pytest.approx(1 / 255, rel=0.02), -128) == (image.scale, image.zero_point)
    scales = {len(t.quantization.scale) for t in tensors(built.bundle.model) if t.type == schema.TensorType.INT8}
    assert {1, 3} <= scales
    assert {schema.TensorType.INT8, schema.TensorType.INT32} == {t.type for t in tensors(built.bundle.model)}
    assert built.accuracy is not None
    assert 40 == built.accuracy.samples
    assert {
        "recipe": "int8",
        "settings": parse("int8").to_json(),
        "by": "deploy",
        "source": "small_models:trained",
        "data": "data.npz",
        "data_sha256": content_digest(load_arrays("data.npz")),
    } == built.bundle.manifest.recipe


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [("float32", {"float32"}), ("float16", {"float16"}), ("dynamic", {"int8", "float32"})],
)
def test_a_recipe_stores_the_weights_as_it_says_and_feeds_floats(
    tf: Any, here: Path, recipe: str, weights: set[str]
) -> None:
    built = build("small_models:conv", name="net", recipe=recipe, vectors=1)

    assert ["float32", "float32"] == [info.dtype for info in built.facts.inputs + built.facts.outputs]
    assert (1, 4, 4, 1) == built.facts.inputs[0].shape  # an open batch would cost operators at every invocation
    # int32: the shape that RESHAPE takes
    assert weights == {w.dtype for w in built.facts.weights} - {"int32"}
    assert (recipe, "small_models:conv", "tensorflow") == tuple(
        built.bundle.manifest.recipe[key] for key in ("recipe", "source", "by")
    )


def _keras(model: Any, here: Path) -> str:
    model.save(here / "net.keras")
    return str(here / "net.keras")


def _h5(model: Any, here: Path) -> str:
    model.save(here / "net.h5")
    return str(here / "net.h5")


def _saved_model(model: Any, here: Path) -> str:
    model.export(here / "saved", format="tf_saved_model", verbose=False)
    return str(here / "saved")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, while it saves
@pytest.mark.parametrize("save", [_keras, _h5, _saved_model])
def test_a_saved_model_answers_what_keras_answers(conv: Any, here: Path, save: Callable[[Any, Path], str]) -> None:
    built = build(save(conv, here), name="net", recipe="float32", data="data.npz", vectors=4)

    vectors = golden(built.bundle)
    expected = conv(load_arrays("data.npz")["x"][:4]).numpy()
    np.testing.assert_allclose(expected, np.concatenate([vectors[f"v{v}.out0"] for v in range(4)]), atol=1e-5)


def test_a_model_of_several_inputs_is_fed_each_of_them(tf: Any, here: Path) -> None:
    """TFLite orders them as it likes, so by name: a + 10 b."""
    built = build("small_models:two_inputs", name="net", recipe="float32", vectors=1)

    vectors = golden(built.bundle)
    given = {info.name.split("_")[2].split(":")[0]: vectors[f"v0.in{i}"] for i, info in enumerate(built.facts.inputs)}
    np.testing.assert_allclose(given["a"] + 10 * given["b"], vectors["v0.out0"], rtol=1e-6)


def test_the_same_function_data_and_seed_give_the_same_bytes_in_this_process_and_another(tf: Any, here: Path) -> None:
    """Training, conversion and golden vectors; Keras's counters and TensorFlow's threads must not show."""
    program = (
        "import sys; from pathlib import Path; from deploy.build import build;"
        "build('small_models:trained', name='net', data='data.npz', seed=3).bundle.write(Path('other.bundle'))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{here}", "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, env=environment, cwd=here)

    for name in ("one", "two"):
        build("small_models:trained", name="net", data="data.npz", seed=3).bundle.write(here / f"{name}.bundle")

    one, two, other = ((here / f"{name}.bundle").read_bytes() for name in ("one", "two", "other"))
    assert one == two == other


# What cannot be built


@pytest.mark.parametrize(
    ("source", "options", "kind", "expected"),
    [
        (DIGITS, {"name": "a/b"}, BuildError, "bundle name 'a/b' is not letters, digits and ._+- (at most 64)"),
        (DIGITS, {"name": ""}, BuildError, "bundle name '' is not letters, digits and ._+- (at most 64)"),
        (DIGITS, {"recipe": "int4"}, BuildError, "no recipe 'int4'; did you mean 'int8'?"),
        ("net.tflite", {"recipe": "int8"}, BuildError,
         "net.tflite is a .tflite already, and is packed as it is: --recipe int8 cannot change it"),
        ("net.tflite", {}, BuildError, "net.tflite: No such file or directory"),
        ("net.keras", {"recipe": "as-is"}, BuildError, "--recipe as-is is for .tflite files; net.keras is none"),
        ("net.keras", {}, DataError, "recipe int8 needs data to calibrate the ranges of activations"),
        ("empty.tflite", {}, BuildError, "empty.tflite: not a TFLite file (it is empty)"),
        (DIGITS, {"data": "no.npz"}, DataError, "no.npz: No such file or directory"),
        (DIGITS, {"data": "data.npz"}, BadInput, "input 'serving_default_keras_tensor:0' is int8 [1, 8, 8, 1]; "
         "a sample is float32 [4, 4, 1]"),
    ],
    ids=["name", "no name", "recipe", "recipe on tflite", "no tflite", "as-is", "no data", "empty", "no data file",
         "data shape"],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_tensorflow_is_started(
    here: Path, source: str, options: dict[str, Any], kind: type[Exception], expected: str
) -> None:
    (here / "empty.tflite").touch()
    (here / "net.keras").touch()

    assert expected == refusal(kind, source, **options)


@pytest.mark.parametrize(
    ("source", "options", "kind", "expected"),
    [
        ("net.keras", {}, BuildError, "net.keras: no such file"),
        ("net.pt", {}, BuildError, "net.pt: no such file"),
        ("no_module:conv", {}, BuildError, "no_module:conv: cannot import 'no_module': No module named 'no_module'"),
        ("small_models:missing", {}, BuildError, "small_models:missing: 'small_models' has no function 'missing'"),
        ("small_models:number", {}, BuildError, "small_models:number returned a int, not a Keras model"),
        ("small_models:conv", {"recipe": "int8", "data": "wide.npz"}, DataError,
         "wide.npz: input '' is float32 [-1, 4, 4, 1]; a sample is float32 [9, 9]"),
        ("small_models:two_inputs", {"recipe": "int8", "data": "data.npz"}, DataError,
         "data can calibrate a model with one input; this one has 2"),
    ],
    ids=["no file", "another kind", "no module", "no function", "no model", "shape", "two inputs"],
)  # fmt: skip
def test_a_model_that_cannot_be_converted_says_why(
    tf: Any, here: Path, source: str, options: dict[str, Any], kind: type[Exception], expected: str
) -> None:
    np.savez(here / "wide.npz", x=np.zeros((20, 9, 9), np.float32))

    assert expected == refusal(kind, source, **{"recipe": "float32", **options})


def test_a_file_that_is_no_keras_model_is_refused(tf: Any, here: Path) -> None:
    (here / "net.keras").write_text("weights")

    assert refusal(BuildError, "net.keras", recipe="float32").startswith("net.keras: not a model that Keras can read: ")


def test_a_folder_that_is_no_saved_model_is_refused(tf: Any, here: Path) -> None:
    (here / "saved").mkdir()

    assert refusal(BuildError, "saved", recipe="float32").startswith("saved: cannot be converted to float32: ")


def test_nothing_of_tensorflow_is_printed(tf: Any, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build("small_models:conv", name="net", recipe="float32", vectors=0)

    assert ("", "") == capfd.readouterr()
