"""
Where a Keras model comes from, and TensorFlow, which is imported here, once, and only when something is built.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy import zoo
from deploy.data import Dataset, call
from deploy.errors import BuildError

TAKES = "`deploy build` takes .tflite, .keras, .h5, a SavedModel folder, module:function or zoo:NAME"
THREADS = 2
"""Sums in another order are other sums: with a number of its own a build comes out the same on every machine."""


def start(seed: int) -> Any:
    """
    TensorFlow, deterministic from `seed` on.

    It computes on the CPU unless ``$CUDA_VISIBLE_DEVICES`` names a GPU, whose numbers are other ones.

    Raises:
        BuildError: it is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    try:
        with quiet():
            import tensorflow as tf
    except ImportError as error:
        raise BuildError(
            f"building needs TensorFlow: {error}", "`pip install 'deploy-hil[build]'`; a .tflite is packed without it"
        ) from None
    tf.get_logger().setLevel("ERROR")  # its warnings are about how we use it, not about what the user asks for
    limit_threads(tf)
    tf.keras.backend.clear_session()  # Keras numbers what has no name, and the numbers end up in the model
    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    return tf


def limit_threads(tf: Any) -> None:
    """`THREADS` for TensorFlow, unless it runs already and somebody else chose, and for the BLAS below numpy."""
    import threadpoolctl  # comes with the extra `build`, as TensorFlow does

    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    threadpoolctl.threadpool_limits(THREADS, user_api="blas")


def check(source: str) -> None:
    """
    Refuse what cannot be a source before TensorFlow, which takes seconds, is started.

    Raises:
        BuildError: no such file.
    """
    if ":" not in source and not Path(source).exists():
        raise BuildError(f"{source}: no such file", TAKES)


def load(tf: Any, source: str, data: Dataset | None) -> Any:
    """
    The Keras model that `source` names, or the path of a SavedModel.

    Args:
        data: what the model is for; a model of the zoo is made for its shape and its classes.

    Raises:
        BuildError: it cannot be made or read.
    """
    path = Path(source)
    if path.is_dir():
        return path
    if source.startswith(zoo.PREFIX):
        shape = None if data is None else tuple(int(extent) for extent in data.x.shape[1:])
        classes = None if data is None or data.y is None else max(len(data.classes), int(data.y.max()) + 1)
        return zoo.make(source.removeprefix(zoo.PREFIX), shape, classes)
    if path.suffix in (".keras", ".h5") or path.is_file():
        return load_keras(tf, path)
    if ":" not in source:
        raise BuildError(f"{source}: no such model", TAKES)
    model = call(source, BuildError)
    if not isinstance(model, tf.keras.Model):
        raise BuildError(f"{source} returned a {type(model).__name__}, not a Keras model")
    if not getattr(model, "inputs", None):
        raise BuildError(
            f"{source} returned a {type(model).__name__}, which does not know its inputs",
            "a functional or sequential model does; a SavedModel is taken as well",
        )
    return model


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


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
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
