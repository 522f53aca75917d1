"""A whole build by a recipe: it comes out the same again, goes on where it stopped, and says what it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow: `pip install 'deploy-hil[build]'`")

from ai_edge_litert import schema_py_generated as schema

from deploy import model_file, zoo
from deploy.build import Built, Watch, build
from deploy.build import report as reports
from deploy.build.execute import forward
from deploy.build.from_keras import from_keras
from deploy.build.prune import TILE_INPUTS, TILE_OUTPUTS
from deploy.build.recipe import Recipe, from_json
from deploy.build.to_keras import to_keras
from deploy.cli import execute as deploy
from deploy.data import PREPROCESS, content_digest, load, load_arrays
from deploy.errors import BadInput, BuildError, DataError
from deploy.evaluate import evaluate
from deploy.inference import load as load_model
from deploy.session import Session
from devices.protocol.manifest import digest
from tests.conftest import GOLDEN
from tests.deploy.build.networks import classifier, images

MODELS = '''
def shapes():
    """Four classes of 8x8 grey images; 32 output channels, as one tile has."""
    import keras
    from keras import layers
    return keras.Sequential([
        keras.Input((8, 8, 1), name="image"),
        layers.Rescaling(1 / 255, name="pixels"),
        layers.Conv2D(8, 3, padding="same", use_bias=False, name="first"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="relu"),
        layers.Conv2D(32, 3, strides=2, padding="same", activation="relu", name="middle"),
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dense(4, activation="softmax", name="last"),
    ])

def split():
    """A layer with two outputs, which no node has."""
    import keras
    image = keras.Input((8, 8, 1), name="image")
    a, b = keras.ops.split(keras.layers.Flatten()(image), 2, axis=-1)
    return keras.Model(image, keras.layers.Dense(40)(keras.layers.Add()([a, b])))

def subclassed():
    import keras
    class Nothing(keras.Model):
        def call(self, x):
            return x
    return Nothing()
'''
MACS = 64 + 8 * 8 * 8 * 9 + 4 * 4 * 32 * 72 + 32 * 4  # of `shapes`: pixels, first, middle, last
TRAINED = "w4a8+epochs:2+seed:3+samples:32+batch:32+augment:off"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of models and shapes.npz: bright quadrants, 160 to train and 40 to test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "our_models.py").write_text(MODELS)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 200)
    x = rng.integers(0, 120, (200, 8, 8, 1), np.uint8)
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 100
    np.savez("shapes.npz", x_train=x[:160], y_train=y[:160], x_test=x[160:], y_test=y[160:], classes=list("abcd"))
    np.savez("undivided.npz", x=x, y=y)
    return tmp_path


def made(
    recipe: str | Recipe, source: str = "our_models:shapes", data: str | None = "shapes.npz", **options: Any
) -> Built:
    return build(source, **{"name": "net", "recipe": recipe, "data": data, "vectors": 2, **options})


_once: dict[str, Built] = {}


@pytest.fixture
def quantized(here: Path) -> Built:
    """One build without training, for all tests that look at one."""
    if not _once:
        _once["w4a8"] = made("w4a8+samples:32")
    return _once["w4a8"]


def kernels(model: bytes) -> dict[str, np.ndarray]:
    """Integer weights by layer, as TFLite keeps them."""
    root = model_file.parse.Model(model, "net")
    found = {}
    for tensor in root.root.subgraphs[0].tensors:
        name = tensor.name.decode()
        if name.endswith("/kernel"):
            found[name.removesuffix("/kernel")] = root.stored(tensor).reshape(tensor.shape)
    return found


def refusal(kind: type[Exception], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        made(*arguments, **options)
    return str(caught.value)


# The recipe is all it takes


def test_a_build_comes_out_the_same_from_its_manifest_even_if_it_was_interrupted(here: Path) -> None:
    """The second time Ctrl-C strikes in the second epoch, and the first is kept."""
    first = made(TRAINED)
    written = first.bundle.manifest.recipe
    again = {"source": written["source"], "recipe": from_json(written["settings"]), "checkpoints": here / "kept"}

    def interrupt(done: int, total: int, what: str) -> None:
        if what.startswith("steps") and done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(**again, watch=Watch(steps=interrupt))
    resumed = made(**again, resume=True)

    assert (first.bundle.digest, first.bundle.files) == (resumed.bundle.digest, resumed.bundle.files)
    assert resumed.report is not None
    assert [1, 2] == [epoch["epoch"] for epoch in resumed.report.history]
    assert (TRAINED, "deploy", content_digest(load_arrays("shapes.npz"))) == tuple(
        written[key] for key in ("recipe", "by", "data_sha256")
    )
    assert ("a", "b", "c", "d") == first.bundle.manifest.labels
    assert resumed.report.agreement is not None
    assert 32 * (8 * 8 * 10 + 4 * 4 * 32 + 32 + 4) == resumed.report.agreement.values  # of every tensor
    assert resumed.report.agreement.differing <= resumed.report.agreement.values // 200


def test_pixels_for_a_model_that_does_not_scale_them_are_refused_until_somebody_says_what_they_mean() -> None:
    assert "samples are uint8, input 'image' takes real values" in refusal(BadInput, "int8", "our_models:split")


def test_nothing_to_go_on_from_is_said(here: Path) -> None:
    message = refusal(BuildError, TRAINED, checkpoints=here / "nothing", resume=True)

    assert f"{here / 'nothing'}: no checkpoint to go on from" == message


def test_training_anew_forgets_the_checkpoints_of_another_recipe(here: Path) -> None:
    """Else `--resume` would find that of a later stage, after all epochs of an earlier one, to be of something else."""
    kept = here / "kept"
    for stage in ("", "float"):
        (kept / stage).mkdir(exist_ok=True)
        (kept / stage / "checkpoint.npz").write_bytes(b"of another recipe")

    with pytest.raises(KeyboardInterrupt):
        made(TRAINED + "+pretrain:1", checkpoints=kept, watch=Watch(steps=_interrupt))

    assert [] == list(kept.rglob("*.npz"))


def _interrupt(done: int, total: int, what: str) -> None:
    if what.startswith("steps"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", ["int8+distill+epochs:1", "int8+distill:zoo:resnet8+epochs:1"])
def test_a_teacher_that_was_never_trained_is_refused(recipe: str) -> None:
    assert "is not trained, and cannot teach" in refusal(BuildError, recipe)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, while it saves
def test_the_manifest_tells_which_files_a_build_began_with_and_how_fast_it_learned(here: Path) -> None:
    options = "+batch:32+augment:off+samples:32"
    made("float32+epochs:1" + options, keep=here / "net.keras")

    recipe = f"int8+distill:{here / 'net.keras'}+epochs:1{options}"
    written = made(recipe, str(here / "net.keras")).bundle.manifest.recipe

    file = digest((here / "net.keras").read_bytes())
    assert (file, file, {"int8": 1e-4}) == (written["source_sha256"], written["teacher_sha256"], written["rates"])
    assert "distill:net.keras" in written["recipe"] and str(here) not in json.dumps(written)


def test_a_build_that_fails_leaves_no_file(here: Path) -> None:
    before = sorted(path.name for path in here.iterdir())

    assert "diverged" in refusal(BuildError, "float32+epochs:2+batch:32+augment:off+rate:10", data=_exploding(here))
    assert sorted([*before, "exploding.npz"]) == sorted(path.name for path in here.iterdir() if path.name[0] != "_")


def _exploding(here: Path) -> str:
    arrays = load_arrays("shapes.npz")
    np.savez("exploding.npz", **{**arrays, "x_train": arrays["x_train"].astype(np.float32) * np.float32(1e36)})
    return "exploding.npz"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resume": True}, "recipe int8 trains nothing that could be kept or resumed"),
        ({"keep": Path("net.keras")}, "recipe int8 trains nothing that could be kept or resumed"),
        ({"recipe": "int8+epochs:1", "keep": Path("net.h5")}, "net.h5: a trained model is kept as .keras"),
        ({"recipe": "int8+epochs:1", "keep": Path("no/net.keras")}, "no/net.keras: no folder no"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], expected: str) -> None:
    assert expected == refusal(BuildError, **{"recipe": "int8", **options})


# What a recipe does to the file


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, while it saves
def test_terms_compose_from_random_weights_to_pruned_integers(here: Path) -> None:
    built = made("w4a8+tile:0.5+channel:0.3+distill+pretrain:4+epochs:1+batch:16+samples:32+augment:off+rate:0.01")

    assert built.report is not None
    stages = [(entry["stage"], entry["epoch"]) for entry in built.report.history]
    assert [*[("float", n) for n in range(1, 5)], ("w4a8", 1)] == stages
    weights = {layer.name: (layer.weights, layer.stored) for layer in built.report.layers}
    # The first layer with weights of its own and the last have 8 bits; what scales the pixels has no say in that.
    assert ("w8", "w4", "w8") == tuple(weights[name][0] for name in ("first", "middle", built.report.layers[-1].name))
    assert built.report.macs < 0.75 * MACS
    kernel = kernels(built.bundle.model)["middle"]
    blocks = kernel[..., : kernel.shape[-1] // TILE_INPUTS * TILE_INPUTS].reshape(*kernel.shape[:3], -1, TILE_INPUTS)
    zero = (blocks[:TILE_OUTPUTS] == 0).all(axis=(0, 4))
    assert zero.any() and not zero.all()
    assert built.accuracy is not None and built.accuracy.value > 0.5  # of four classes


@pytest.mark.parametrize("schedule", ["once", "cubic"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, while it saves
def test_zeros_come_before_or_while_a_trained_model_trains_in_float_and_stay(here: Path, schedule: str) -> None:
    options = "+batch:32+augment:off+samples:32"
    made("float32+epochs:1" + options, keep=here / "net.keras")
    recipe = f"int8+tile:0.5+schedule:{schedule}+pretrain:1+epochs:1{options}"

    built = made(recipe, str(here / "net.keras"), checkpoints=here / "kept")

    with np.load(here / "kept" / "float" / "checkpoint.npz") as archive:
        of_middle = [value for value in archive.values() if value.shape == (3, 3, 8, 32)]
    mask = next(value for value in of_middle if set(np.unique(value)) == {0, 1})
    assert 0.4 < mask.mean() < 0.6
    assert not kernels(built.bundle.model)["middle"][mask.transpose(3, 0, 1, 2) == 0].any()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, while it saves
def test_a_float_recipe_that_trains_is_written_by_tensorflow_and_answers_what_was_trained(here: Path) -> None:
    built = made("float32+epochs:1+batch:32+augment:off", keep=here / "kept.keras")

    import keras

    kept = keras.models.load_model(here / "kept.keras")
    arrays = load_arrays("shapes.npz")
    labels = np.asarray(kept(arrays["x_test"].astype(np.float32))).argmax(axis=1)
    assert built.accuracy is not None
    np.testing.assert_array_equal(labels, built.accuracy.predicted)
    assert "tensorflow" == built.bundle.manifest.recipe["by"]


def test_int8_of_a_model_whose_layers_cannot_be_read_is_tensorflows_and_says_so() -> None:
    raw = {"preprocess": PREPROCESS["raw"]}
    built = made("int8", "our_models:split", **raw)

    assert "tensorflow" == built.bundle.manifest.recipe["by"]
    assert "int8" == built.facts.inputs[0].dtype
    assert "has 2 outputs, which no node here has" in refusal(BuildError, "w4a8", "our_models:split", **raw)
    assert "our_models:subclassed returned a Nothing, which does not know its inputs" == refusal(
        BuildError, "int8", "our_models:subclassed"
    )


# What is said about it


def test_the_report_tells_of_each_layer_what_the_file_holds(quantized: Built, here: Path) -> None:
    built, report = quantized, quantized.report
    assert report is not None
    first, middle = (next(layer for layer in report.layers if layer.name == name) for name in ("first", "middle"))
    assert ("w8", "int8", 72 + 8, 8 * 8 * 8 * 9) == (first.weights, first.stored, first.parameters, first.macs)
    assert ("w4", "int4", 32 * 72 // 2 + 4 * 32) == (middle.weights, middle.stored, middle.bytes)
    assert first.sqnr_db is not None and middle.sqnr_db is not None
    assert 30 < first.sqnr_db and 10 < middle.sqnr_db < first.sqnr_db
    assert first.low == 0 and first.high is not None and first.high > 0  # behind a ReLU
    assert built.accuracy is not None and report.after == built.accuracy.value
    assert report.before is not None and abs(report.before - report.after) < 0.2
    assert {"quantize", "write", "prove"} <= set(report.seconds)
    for suffix in (".json", ".png"):
        reports.save(report, here / f"report{suffix}")
    assert report.to_json() == json.loads((here / "report.json").read_text()) | {"layers": report.to_json()["layers"]}
    assert b"\x89PNG" == (here / "report.png").read_bytes()[:4]
    with pytest.raises(BuildError, match=r"^report\.txt: a report is \.json, \.png, \.svg, \.pdf$"):
        reports.save(report, Path("report.txt"))


def test_a_model_of_the_zoo_that_nobody_trained_is_said_to_be_random(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = "build zoo:resnet8 --data shapes.npz --recipe int8+samples:8 --no-golden"

    assert 0 == deploy(words.split())
    assert "weights  random: nobody has trained a model of the zoo" in capfd.readouterr().out


def test_the_command_line_puts_terms_together_and_shows_what_became_of_each_layer(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = (
        "build our_models:shapes --data shapes.npz --recipe w4a8 --prune magnitude:0.5 -o net.bundle --report r.json"
    )

    assert 0 == deploy(words.split())
    out = capfd.readouterr().out
    assert "recipe   w4a8+magnitude:0.5\n" in out
    assert "fed      x * 1 + 0\n" in out
    (middle,) = (line.split() for line in out.splitlines() if line.strip().startswith("middle"))
    assert ["middle", "CONV_2D", "w4", "36,864", "1,280"] == middle[:5]
    # Without training the smallest weights go, and rounding does not bring them back.
    assert 50 <= int(middle[5].rstrip("%")) <= 70
    assert middle[-1] == "dB"
    assert "w4a8+magnitude:0.5" == json.loads((here / "r.json").read_text())["recipe"]
    assert 0 == deploy(["inspect", "--layers", "--data", "shapes.npz", "net.bundle"])
    assert f"MACs     {MACS:,} an invocation\n" in capfd.readouterr().out
    assert 1 == deploy(["build", "our_models:shapes", "--prune", "tyle:0.5"])
    assert (
        "error: no recipe 'tyle:0.5'; did you mean 'tile'?\nhint:  `deploy build --help` lists them\n"
        == capfd.readouterr().err
    )


# Preprocessing


def test_pixels_that_were_fed_as_they_are_are_fed_so_everywhere(quantized: Built, session: Session) -> None:
    """The manifest says it; without it, nobody may evaluate."""
    built, manifest = quantized, quantized.bundle.manifest
    assert PREPROCESS["raw"] == manifest.preprocess
    session.upload(digest(built.bundle.model), built.bundle.model)
    loaded = load_model(session, sha256=digest(built.bundle.model))
    test = load("shapes.npz", "test")
    assert built.accuracy is not None
    assert built.accuracy.correct == evaluate(session, loaded, test, manifest.preprocess).correct
    with pytest.raises(BadInput) as caught:
        evaluate(session, loaded, test)
    assert (
        "shapes.npz: samples are uint8, input 'image' takes real values: only a preprocess can say what they mean"
        == (str(caught.value))
    )
    assert caught.value.hint is not None and caught.value.hint.startswith("`--preprocess raw`, `unit` (x/255), ")


def test_a_ready_file_is_not_fed_pixels_without_a_preprocess() -> None:
    digits = str(GOLDEN / "digits_int8.tflite")

    assert "only a preprocess can say what they mean" in refusal(BadInput, "as-is", digits)
    assert PREPROCESS["unit"] == made("as-is", digits, preprocess=PREPROCESS["unit"]).bundle.manifest.preprocess


# What needs data


@pytest.mark.parametrize(
    ("recipe", "data", "expected"),
    [
        ("w4a8", None, "recipe w4a8 needs data to calibrate the ranges of activations"),
        ("float32+epochs:1", None, "recipe float32+epochs:1 trains, and needs data"),
        ("int8+epochs:1", "undivided.npz", "undivided.npz holds no samples for testing that were not trained on"),
    ],
)
def test_a_recipe_without_the_data_it_needs_is_refused(recipe: str, data: str | None, expected: str) -> None:
    assert expected == refusal(DataError, recipe, data=data)


# The zoo, and models made of graphs


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet8", "tiny_ic_resnet8_float"),
        ("ds_cnn", "tiny_kws_dscnn_int8"),
        ("mobilenet_v1_025", "tiny_vww_mobilenetv1_float"),
        ("ad_autoencoder", "tiny_ad_autoencoder_float"),
    ],
)
def test_models_of_the_zoo_have_the_kernels_of_mlperf_tinys_files(corpus: Path, name: str, file: str) -> None:
    model = schema.ModelT.InitFromPackedBuf((corpus / "models" / f"{file}.tflite").read_bytes(), 0)
    theirs = [tensor.shape for tensor in model.subgraphs[0].tensors if model.buffers[tensor.buffer].data is not None]

    ours = [weights.shape for layer in zoo.make(name).layers for weights in layer.weights[:1]]
    assert sorted(int(np.prod(s)) for s in theirs if len(s) > 1) == sorted(int(np.prod(s)) for s in ours if len(s) > 1)


@pytest.mark.parametrize(("name", "weights"), [("cnv", 1_542_848), ("resnet20", 270_896)])
def test_other_models_of_the_zoo_have_as_many_weights_as_their_papers_say(name: str, weights: int) -> None:
    """FINN's table 3 has 1.54 million; He et al. have 0.27 million."""
    assert weights == sum(int(np.prod(w.shape)) for w in zoo.make(name).weights if len(w.shape) > 1)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: zoo.make("resnet9"), "no model zoo:resnet9; did you mean 'resnet8'?"),
        (lambda: zoo.make("resnet8", (640,)), "zoo:resnet8 takes samples such as [32, 32, 3], not [640]"),
        (lambda: zoo.make("cnv", (8, 8, 1)), "zoo:cnv cannot take samples of [8, 8, 1]: "),
    ],
)
def test_a_model_of_the_zoo_that_cannot_be_made_says_why(make: Callable[[], Any], expected: str) -> None:
    with pytest.raises(BuildError) as caught:
        make()
    assert str(caught.value).startswith(expected)


def test_a_graph_and_its_keras_model_compute_the_same() -> None:
    rng = np.random.default_rng(0)
    graph, x = classifier(rng), images(rng, 8)

    model = to_keras(graph)

    (expected,) = forward(graph, {"x": x}).values()
    np.testing.assert_allclose(expected, np.asarray(model(x)), atol=1e-5)
    again = from_keras(model)
    np.testing.assert_allclose(expected, forward(again, {again.inputs[0]: x})[again.outputs[0]], atol=1e-5)
