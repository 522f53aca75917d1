"""
Keras to TFLite, by TensorFlow's converter.

TensorFlow is imported here and nowhere else, and only when something is converted.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.data import Array, Dataset, call, feed
from deploy.errors import BadInput, BuildError, DataError
from devices.protocol.manifest import TensorInfo

CALIBRATION_SAMPLES = 256


def convert(
    source: str,
    recipe: str,
    train: Dataset | None,
    seed: int,
    preprocess: Mapping[str, float] | None,
    tell: Callable[[str], None],
) -> bytes:
    """
    Load or make the Keras model `source` and convert it.

    Recipes: ``float32``; ``float16`` (weights); ``dynamic`` (int8 weights, float activations); ``int8`` (everything,
    input and output included, weights per channel, ranges calibrated by min and max over `CALIBRATION_SAMPLES`
    samples).  Keras models get a batch of one: an open batch costs operators at every invocation.

    Raises:
        BuildError: TensorFlow is missing, the model cannot be read, or the converter refuses it.
        DataError: int8 without data, or data that does not fit the model.
    """
    if recipe == "int8" and train is None:
        raise DataError(
            "recipe int8 needs data to calibrate the ranges of activations",
            "`--data FILE.npz` with x_train (or x); `--recipe dynamic` needs none",
        )
    tell("starting TensorFlow")
    tf = _tensorflow()
    tf.keras.backend.clear_session()  # Keras numbers what has no name, and the numbers end up in the model
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    tell(f"loading {source}")
    with _quiet() as said, tempfile.TemporaryDirectory() as folder:
        try:
            saved = _saved_model(tf, source, Path(folder))
            tell(f"converting to {recipe}")
            converter = tf.lite.TFLiteConverter.from_saved_model(str(saved))
            converter.optimizations = [] if recipe == "float32" else [tf.lite.Optimize.DEFAULT]
            if recipe == "float16":
                converter.target_spec.supported_types = [tf.float16]
            elif recipe == "int8":
                assert train is not None
                samples = _calibration(_input_shapes(tf, saved), train, seed, preprocess)
                converter.representative_dataset = lambda: ([sample] for sample in samples)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
                converter.inference_input_type = converter.inference_output_type = tf.int8
            return bytes(converter.convert())
        except (BuildError, DataError):
            raise
        except Exception as error:  # the converter raises whatever MLIR, TensorFlow or Keras felt like
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BuildError(f"{source}: cannot be converted to {recipe}: {reason}{_last(said)}") from error


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # nothing here is worth the seconds a GPU takes to wake up
    try:
        with _quiet():
            import tensorflow
    except ImportError as error:
        raise BuildError(
            f"building needs TensorFlow: {error}", "`pip install 'deploy-hil[build]'`; a .tflite is packed without it"
        ) from None
    return tensorflow


def _saved_model(tf: Any, source: str, folder: Path) -> Path:
    """The SavedModel of `source`: itself, or what Keras exports of it into `folder`."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.suffix in (".keras", ".h5") or path.is_file():
        model = load_keras(tf, path)
    elif ":" in source:
        model = call(source, BuildError)
        if not isinstance(model, tf.keras.Model):
            raise BuildError(f"{source} returned a {type(model).__name__}, not a Keras model")
    else:
        hint = "`deploy build` takes .tflite, .keras, .h5, a SavedModel folder or module:function"
        raise BuildError(f"{source}: no such model", hint)
    # Several inputs come in one argument, in the list or the dictionary that the model was made of.
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.input
    signature = [
        tf.nest.map_structure(lambda t: tf.TensorSpec((1, *t.shape[1:]), t.dtype, name=t.name.split(":")[0]), inputs)
    ]
    model.export(folder, format="tf_saved_model", verbose=False, input_signature=signature)
    return folder


def _input_shapes(tf: Any, saved: Path) -> list[tuple[int | None, ...]]:
    signatures = tf.saved_model.load(str(saved)).signatures
    signature = signatures.get("serving_default") or next(iter(signatures.values()))
    return [tuple(spec.shape) for spec in signature.structured_input_signature[1].values()]


def load_keras(tf: Any, path: Path) -> Any:
    """
    Load a .keras or .h5 file; code inside it (Lambda layers) is not run.

    Raises:
        BuildError: not there, or not a model.
    """

    class DepthwiseConv2D(tf.keras.layers.DepthwiseConv2D):  # type: ignore[misc]
        """Keras 2 wrote ``groups`` into the layer's configuration, always 1; Keras 3 refuses to read it."""

        def __init__(self, *args: Any, groups: int = 1, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    if not path.is_file():
        raise BuildError(f"{path}: no such file")
    try:
        return tf.keras.models.load_model(
            path, compile=False, custom_objects={"DepthwiseConv2D": DepthwiseConv2D}, safe_mode=True
        )
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise BuildError(f"{path}: not a model that Keras can read: {' '.join(str(error).split())[:300]}") from error


def _calibration(
    shapes: list[tuple[int | None, ...]], train: Dataset, seed: int, preprocess: Mapping[str, float] | None
) -> list[Array]:
    """Some training samples, drawn without replacement, each as a batch of one in float32."""
    if len(shapes) != 1:
        raise DataError(f"data can calibrate a model with one input; this one has {len(shapes)}")
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(train.x))[:CALIBRATION_SAMPLES]
    shape = tuple(-1 if extent is None else extent for extent in shapes[0])
    info = TensorInfo("", "float32", shape)
    try:
        return list(feed(train.x[chosen], info, preprocess))
    except BadInput as error:
        raise DataError(f"{train.source}: {error.message}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """
    Keep what TensorFlow's C++ prints on standard output and error off the terminal; yields a file that holds it.

    File descriptors are redirected, not sys.stderr: C++ knows nothing of the latter.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        saved = os.dup(1), os.dup(2)
        try:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            yield log
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, fd)
                os.close(copy)


def _last(log: Any) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode("utf-8", "replace").splitlines() if "error:" in line]
    return f" ({lines[-1].strip()[:200]})" if lines else ""
