"""
Build: from a model, as it was trained, to a bundle that can be pushed.

`build` loads or trains the model, converts it by a recipe, runs it on this machine for the golden vectors and (where
there is labelled data) the accuracy, and packs everything.  Inference happens in an agent's process, as on any board:
a model that kills its interpreter does not kill the build.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import bundle as bundles
from deploy import model_file
from deploy.boards import LOCAL
from deploy.build import prove
from deploy.bundle import Bundle
from deploy.data import Dataset, content_digest, load, load_arrays
from deploy.errors import BuildError
from deploy.evaluate import Accuracy
from deploy.session import connect
from devices.protocol import manifest as manifests
from devices.protocol.manifest import Manifest

TAKES = ".tflite, .keras, .h5, a SavedModel folder or module:function"
RECIPES = ("int8", "float32", "float16", "dynamic", "as-is")


@dataclass(frozen=True)
class Built:
    """
    Attributes:
        bundle: what was made.
        facts: of its model.
        accuracy: on this machine; None without labelled data.
    """

    bundle: Bundle
    facts: model_file.ModelFacts
    accuracy: Accuracy | None


def build(
    source: str,
    *,
    name: str,
    recipe: str | None = None,
    data: str | None = None,
    seed: int = 0,
    vectors: int = 8,
    preprocess: Mapping[str, float] | None = None,
    labels: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    note: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """
    Make a bundle.

    Args:
        source: path of a .tflite, .keras, .h5 or SavedModel, or ``module:function`` that returns a Keras model.
        name: of the bundle, see `devices.protocol.manifest.is_name`.
        recipe: one of `RECIPES`; None is ``as-is`` for a .tflite, ``int8`` for everything else.
        data: an .npz or ``module:function``; calibrates int8, gives the golden inputs and the accuracy.
        seed: of everything random.
        vectors: golden vectors; 0 packs the model unproven.
        preprocess: how raw samples become real values, see `deploy.data.feed`.
        shapes: input name -> shape, for models that need another than their own.
        note: told in a few words what is going on.
        progress: called with samples done and samples in all, during the evaluation.

    Raises:
        BuildError: no such model, one that cannot be converted, or a recipe that does not fit.
        DataError, BadInput: the data does not fit.
        ModelRefused, RunnerKilled: the runtime on this machine will not have it (and `vectors` is not 0).
    """
    if not manifests.is_name(name):
        raise BuildError(f"bundle name {name!r} is not letters, digits and ._+- (at most 64)", "`--name NAME` sets it")
    tell = note or (lambda text: None)
    chosen = recipe or ("as-is" if source.lower().endswith(".tflite") else "int8")
    if chosen not in RECIPES:
        raise BuildError(f"no recipe {chosen!r}; there is {', '.join(RECIPES)}")
    model = _model(source, chosen, data, seed, preprocess, tell)
    facts = model_file.read(model, Path(source).name)
    resized = tuple(
        manifests.TensorInfo(**{**vars(i), "shape": tuple((shapes or {}).get(i.name, i.shape))}) for i in facts.inputs
    )
    test = load(data, "test") if data else None
    manifest = Manifest(
        name=name,
        files={},
        inputs=facts.inputs,
        outputs=facts.outputs,
        preprocess=dict(preprocess) if preprocess else None,
        shapes={key: tuple(shape) for key, shape in (shapes or {}).items()},
        labels=tuple(labels),
        recipe=_recipe(chosen, source, data),
        seed=seed,
        ops=facts.ops,
    )
    files = {manifests.MODEL: model}
    accuracy = None
    if vectors:
        tell("proving it on this machine")
        with tempfile.TemporaryDirectory() as root:
            here = LOCAL.model_copy(update={"root": root})
            with connect(here, Path(root) / "known_hosts") as session:
                proof = prove.prove(session, manifest, model, resized, test, vectors, progress)
        files[manifests.GOLDEN] = proof.golden
        accuracy = proof.accuracy
        manifest = Manifest(**{**vars(manifest), "golden": proof.facts, "accuracy": _accuracy(accuracy, test, proof)})
    return Built(bundles.make(manifest, files), facts, accuracy)


def _model(
    source: str,
    recipe: str,
    data: str | None,
    seed: int,
    preprocess: Mapping[str, float] | None,
    tell: Callable[[str], None],
) -> bytes:
    if source.lower().endswith(".tflite"):
        if recipe != "as-is":
            raise BuildError(
                f"{source} is a .tflite already, and is packed as it is: --recipe {recipe} cannot change it"
            )
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise BuildError(f"{source}: {error.strerror}") from None
    if ":" not in source and not Path(source).exists():
        raise BuildError(f"{source}: no such file", "`deploy build` takes " + TAKES)
    if recipe == "as-is":
        raise BuildError(f"--recipe as-is is for .tflite files; {source} is none")
    from deploy.build import convert

    return convert.convert(source, recipe, load(data, "train") if data else None, seed, preprocess, tell)


def _recipe(recipe: str, source: str, data: str | None) -> dict[str, Any]:
    """What it takes to do it again; file names without folders, as the bytes must not depend on where things lie."""
    made: dict[str, Any] = {"recipe": recipe, "source": source if ":" in source else Path(source).name}
    if data:
        made |= {"data": data if ":" in data else Path(data).name, "data_sha256": content_digest(load_arrays(data))}
    return made


def _accuracy(accuracy: Accuracy | None, test: Dataset | None, proof: prove.Proof) -> dict[str, Any] | None:
    if accuracy is None or test is None:
        return None
    return {
        "metric": "top-1",
        "correct": accuracy.correct,
        "samples": accuracy.samples,
        "runtime": proof.facts["runtime"],
    }
