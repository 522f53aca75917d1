"""
Keras to TFLite by TensorFlow's converter: floating-point files, and int8 of models whose layers cannot be read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.build.source import quiet
from deploy.data import Array
from deploy.errors import BuildError

PRECISIONS = ("float32", "float16", "dynamic", "int8")


def convert(tf: Any, model: Any, precision: str, samples: Sequence[Array] = (), name: str = "model") -> bytes:
    """
    Convert a model.

    Keras models get a batch of one: an open batch costs operators at every invocation.

    Args:
        model: of Keras, or the path of a SavedModel.
        precision: ``float32``; ``float16`` (weights); ``dynamic`` (int8 weights, float activations); ``int8``
            (everything, input and output included; ranges by min and max over `samples`).
        samples: float32 [1, ...] each.
        name: for messages.

    Raises:
        BuildError: the converter refuses it.
    """
    with quiet() as said, tempfile.TemporaryDirectory() as folder:
        try:
            saved = model if isinstance(model, Path) else _saved_model(tf, model, Path(folder))
            converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
            converter.optimizations = [] if precision == "float32" else [tf.lite.Optimize.DEFAULT]
            if precision == "float16":
                converter.target_spec.supported_types = [tf.float16]
            elif precision == "int8":
                converter.representative_dataset = lambda: ([sample] for sample in samples)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = tf.int8
            return bytes(converter.convert())
        except Exception as error:  # the converter raises whatever MLIR, TensorFlow or Keras felt like
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BuildError(f"{name}: cannot be converted to {precision}: {reason}{_last(said)}") from error


def input_shapes(tf: Any, model: Any, name: str = "model") -> list[tuple[int | None, ...]]:
    """
    Of a Keras model or a SavedModel, with the batch.

    Raises:
        BuildError: a folder that is no SavedModel.
    """
    if not isinstance(model, Path):
        return [tuple(tensor.shape) for tensor in model.inputs]
    try:
        with quiet():
            signatures = tf.saved_model.load(str(model)).signatures
        signature = signatures.get("serving_default") or next(iter(signatures.values()))
        return [tuple(spec.shape) for spec in signature.structured_input_signature[1].values()]
    except Exception as error:  # TensorFlow raises whatever it felt like
        raise BuildError(f"{name}: not a SavedModel that can be read: {' '.join(str(error).split())[:300]}") from error


def _saved_model(tf: Any, model: Any, folder: Path) -> Path:
    # Several inputs come in one argument, in the list or the dictionary that the model was made of.
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
    signature = [
        tf.nest.map_structure(lambda t: tf.TensorSpec((1, *t.shape[1:]), t.dtype, name=t.name.split(":")[0]), inputs)
    ]
    model.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
    return folder


def _last(log: Any) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if "error:" in line]
    return f" ({lines[-1].strip()[:200]})" if lines else ""
