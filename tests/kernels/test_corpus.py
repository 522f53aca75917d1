"""
Real models with the delegate on: equal to stock LiteRT's reference kernels, bit for bit.

The reference kernels compute what the delegate leaves, so that every difference would be ours.  A second run leaves the
rest to XNNPACK, as on a board: where nothing is claimed it must equal stock XNNPACK, and elsewhere what differs from
the reference is counted and logged (``--log-cli-level=INFO``), since XNNPACK rounds its own way.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy import data, model_file
from tests.conftest import CORPUS
from tests.kernels.interpreters import Job, Result, run
from tests.kernels.library import Library

# One of each kind: int8 by channel and by tensor, uint8, int4, sparse, fully connected, unrolled GRU, streaming state,
# batch 3.  DEPLOY_KERNELS_CORPUS=1 takes every model that has quantized layers.
SOME = (
    "aeq_conv_fc_mnist_a8w8.tflite",
    "arm_rnnoise_int8.tflite",
    "coral_mobilenet_v1_0.25_128_uint8.tflite",
    "d_resnet8_int4_weightonly.tflite",
    "d_resnet8_int8_pertensor.tflite",
    "d_resnet8_pruned70_int8_dense.tflite",
    "esphome_vad_v2_stream_int8.tflite",
    "lenet300_100_mnist_int8.tflite",
    "litert_qwen_fc_int4_blockwise.tflite",
    "tiny_vww_mobilenetv1_int8.tflite",
)
MODES = ("auto", "all", "reference")


def names() -> list[str]:
    """What is to run; the whole corpus where it is there and asked for."""
    if not os.environ.get("DEPLOY_KERNELS_CORPUS") or not (CORPUS / "MANIFEST.json").is_file():
        return list(SOME)
    models = json.loads((CORPUS / "MANIFEST.json").read_text())["models"]
    return [
        entry["file"]
        for entry in models
        if entry["status"] == "ok"
        and {"INT8", "UINT8", "INT4", "INT2"} & set(entry.get("dtypes", ()))
        and {"CONV_2D", "FULLY_CONNECTED"} & set(entry["ops"])
    ]


def same(left: Result, right: Result) -> bool:
    return len(left.outputs) == len(right.outputs) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(left.outputs, right.outputs, strict=True)
    )


@pytest.mark.parametrize("name", names())
def test_a_real_model_equals_the_reference_kernels(name: str, corpus: Path, kernels: Library, tmp_path: Path) -> None:
    model = (corpus / "models" / name).read_bytes()
    (values,) = data.random_inputs(model_file.read(model, name).inputs, 1, seed=1)
    jobs = [Job(model, values), *(Job(model, values, {"mode": mode}, rest="reference") for mode in MODES)]
    jobs += [Job(model, values, {"mode": mode}) for mode in ("off", "auto", "all")]

    expected, *pure, stock, auto, everything = run(kernels.path, jobs, tmp_path)

    for result in (stock, auto, everything):
        assert not result.error, (name, result.error)
    if not any(node["claimed"] for node in auto.report["nodes"]):
        assert same(stock, auto), "nothing is claimed, and yet something else is answered"
    assert not expected.error, (name, expected.error)
    for mode, result in zip(MODES, pure, strict=True):
        assert not result.error, (name, mode, result.error)
        assert same(expected, result), (name, mode)
    log(name, expected, {"stock": stock, "auto": auto, "all": everything})


def log(name: str, expected: Result, results: dict[str, Result]) -> None:
    """How far the runs with XNNPACK are from the reference: other layers' rounding, carried on."""
    for what, result in results.items():
        claimed = sum(bool(node["claimed"]) for node in result.report["nodes"])
        differing, total, largest = 0, 0, 0.0
        for theirs, ours in zip(expected.outputs, result.outputs, strict=True):
            apart = distance(theirs, ours)
            differing += int(np.count_nonzero(apart))
            total += apart.size
            largest = max(largest, float(apart.max(initial=0)))
        logging.getLogger(__name__).info(
            "%s, %s with XNNPACK: %d of %d nodes ours, %d of %d values off, at most by %g",
            name, what, claimed, len(result.report["nodes"]), differing, total, largest,
        )  # fmt: skip


def distance(left: NDArray[np.generic], right: NDArray[np.generic]) -> NDArray[np.float64]:
    return np.abs(left.astype(np.float64) - right.astype(np.float64))
