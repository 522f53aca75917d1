"""Real models that nobody here made, through the whole path: pack, push, run, compare with stock LiteRT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy import inference
from deploy.boards import LOCAL
from deploy.build import build
from deploy.cli import execute as deploy
from deploy.cli.common import bundle_name
from deploy.data import random_inputs
from deploy.errors import DeployError, RunnerKilled
from deploy.push import push
from deploy.session import Session, connect
from devices.protocol.manifest import TensorInfo
from tests.conftest import CORPUS
from tests.oracle import answers

MANIFEST = CORPUS / "MANIFEST.json"
MODELS: dict[str, dict[str, Any]] = (
    {m["file"]: m for m in json.loads(MANIFEST.read_text())["models"] if m["file"].endswith(".tflite")}
    if MANIFEST.is_file()
    else {}
)
# The checker that wrote the manifest cannot feed strings, and calls this one refused; the runtime runs it.
RUNS = [name for name, m in MODELS.items() if m["status"] == "ok"] + ["litert_string_input.tflite"] * bool(MODELS)
REFUSED = [name for name, m in MODELS.items() if m["status"] == "refused" and name not in RUNS]
CRASHES = [name for name, m in MODELS.items() if m["status"] == "crashed"]
# Where the model leaves an inner extent open.
SHAPES = {"support_dilated_conv_float.tflite": (1, 8, 8, 3), "litert_multi_signatures.tflite": (3,)}
SAMPLES = 3  # in sequence: models with variables must go on where they were


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """One conversation for all models: each also shows that the agent outlived the one before."""
    root = tmp_path_factory.mktemp("board")
    with connect(LOCAL.model_copy(update={"root": str(root)}), root / "known_hosts") as session:
        yield session


def samples_for(inputs: tuple[TensorInfo, ...], name: str, count: int = SAMPLES) -> list[list[Any]]:
    """Random ones that the model `name` takes."""
    shape = SHAPES.get(name)
    fixed = tuple(TensorInfo(i.name, i.dtype, shape or i.shape, i.scale, i.zero_point) for i in inputs)
    samples = random_inputs(fixed, count, seed=1)
    for number, sample in enumerate(samples):
        for array in sample:
            if array.dtype == object:
                array[...] = f"sample {number}".encode()
    return samples


@pytest.mark.parametrize("name", RUNS)
def test_a_real_model_answers_as_stock_litert_does(name: str, corpus: Path, board: Session, tmp_path: Path) -> None:
    bundle = build(str(corpus / "models" / name), name=bundle_name(Path(name)), vectors=0).bundle
    push(board, bundle)
    signatures: list[str | None] = [None]
    if name == "litert_multi_signatures.tflite":
        signatures += ["add", "sub"]
    for signature in signatures:
        model = inference.load(board, bundle=bundle.digest, signature=signature)
        samples = samples_for(model.inputs, name)

        found = list(inference.infer(board, model, samples))

        expected = answers(corpus / "models" / name, samples, tmp_path, signature)
        for e_sample, f_sample in zip(expected, found, strict=True):
            for e, f in zip(e_sample, f_sample, strict=True):
                f = f.astype("S") if f.dtype == object else f
                assert (e.shape, e.dtype) == (f.shape, f.dtype)
                assert e.tobytes() == f.tobytes()
        inference.unload(board)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_the_runtime_refuses_is_named_with_the_reason_in_one_line(
    name: str, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = deploy(["run", "--board", "local", str(corpus / "models" / name)])

    error, *hint = capsys.readouterr().err.splitlines()
    assert 1 == code
    assert error.startswith(f"error: {Path(name).stem}")
    reason = MODELS[name]["err"].split(".")[0]
    assert reason[:40] in error or "not a TFLite file" in error or "no subgraph in the model" in error
    assert all(line.startswith("hint:  ") for line in hint)


@pytest.mark.parametrize("name", CRASHES)
def test_a_model_that_kills_its_process_is_reported_and_the_next_one_runs(
    name: str, corpus: Path, board: Session, tmp_path: Path
) -> None:
    crashing = build(str(corpus / "models" / name), name="crashing", vectors=0).bundle

    with pytest.raises(RunnerKilled) as caught:
        push(board, crashing)

    assert caught.value.signal in ("SIGSEGV", "SIGABRT")
    assert f"crashing: killed by {caught.value.signal} (board 'local')" == str(caught.value)
    test_a_real_model_answers_as_stock_litert_does("tiny_kws_dscnn_int8.tflite", corpus, board, tmp_path)


@pytest.mark.parametrize(
    ("model", "data", "preprocess", "samples", "correct"),
    [
        # 87.50 %, as MLPerf Tiny's authors have
        ("tiny_ic_resnet8_int8.tflite", "cifar10_test2000.npz", ["--preprocess", "raw"], 2000, 1750),
        ("tiny_kws_dscnn_int8.tflite", "kws01_mfcc_700.npz", [], 700, 628),  # 89.71 %; in the input's own integers
    ],
)
def test_published_models_reach_their_published_accuracy_on_the_board(
    model: str,
    data: str,
    preprocess: list[str],
    samples: int,
    correct: int,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = [str(corpus / "models" / model), "--data", str(corpus / "data" / data)]
    code = deploy(["evaluate", "--board", "local", *paths, *preprocess, "--json"])

    result = json.loads(capsys.readouterr().out)
    assert 0 == code
    assert (samples, correct) == (result["samples"], result["correct"])


def test_the_golden_outputs_that_others_published_come_out_bit_for_bit(
    corpus: Path, board: Session, tmp_path: Path
) -> None:
    """Ten images and the answers that TFLite gave elsewhere, years ago (mlonmcu-models)."""
    bundle = build(str(corpus / "models" / "tiny_ic_resnet8_int8.tflite"), name="resnet8", vectors=0).bundle
    push(board, bundle)
    model = inference.load(board, bundle=bundle.digest)
    with np.load(corpus / "data" / "golden_tum_resnet8_int8.npz") as golden:
        x, y = golden["x"], golden["y"]

    found = list(inference.infer(board, model, [[(i.astype(np.int16) - 128).astype(np.int8)[None]] for i in x]))

    scale, zero_point = model.outputs[0].scale, model.outputs[0].zero_point
    real = np.stack([(out.astype(np.float32) - zero_point) * np.float32(scale) for (out,) in found])
    assert np.array_equal(y, real.reshape(y.shape))


def test_every_corrupt_file_raises_a_typed_error_when_it_is_built(corpus: Path) -> None:
    for path in sorted((corpus / "models").glob("corrupt_*.tflite")):
        with pytest.raises(DeployError, match=path.stem):
            build(str(path), name="corrupt")
