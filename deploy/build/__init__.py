"""
Build: from a model, as it was trained, to a bundle that can be pushed.

`build` loads or trains the model, compresses it by a recipe, runs it on this machine for the golden vectors and (where
there is labelled data) the accuracy, and packs everything.  Inference happens in an agent's process, as on any board:
a model that kills its interpreter does not kill the build.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy import bundle as bundles
from deploy import kernels, model_file, zoo
from deploy.boards import LOCAL
from deploy.build import make, prove
from deploy.build import recipe as recipes
from deploy.build.make import Made, Samples, Watch
from deploy.build.recipe import AS_IS, Recipe
from deploy.build.report import Report, describe
from deploy.bundle import Bundle
from deploy.data import (
    PREPROCESS,
    Array,
    Dataset,
    ambiguous,
    content_digest,
    feed,
    is_divided,
    load_arrays,
    pick,
    refuse_ambiguous,
)
from deploy.errors import BuildError
from deploy.evaluate import Accuracy
from deploy.session import Session, connect
from devices.protocol import manifest as manifests
from devices.protocol.manifest import Manifest, TensorInfo

__all__ = ["Built", "Recipe", "Report", "Watch", "build"]


@dataclass(frozen=True)
class Built:
    """
    Attributes:
        bundle: what was made.
        facts: of its model.
        accuracy: on this machine; None without labelled data.
        report: layer by layer; None for a .tflite that was packed as it is.
    """

    bundle: Bundle
    facts: model_file.ModelFacts
    accuracy: Accuracy | None
    report: Report | None = None


def build(
    source: str,
    *,
    name: str,
    recipe: str | Recipe | None = None,
    data: str | None = None,
    seed: int | None = None,
    vectors: int = 8,
    preprocess: Mapping[str, float] | None = None,
    labels: Sequence[str] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    watch: Watch | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    keep: Path | None = None,
) -> Built:
    """
    Make a bundle.

    Args:
        source: path of a .tflite, .keras, .h5 or SavedModel, ``module:function`` that returns a Keras model, or
            ``zoo:NAME``.
        name: of the bundle, see `devices.protocol.manifest.is_name`.
        recipe: see `deploy.build.recipe`; None is ``as-is`` for a .tflite, ``int8`` for everything else.
        data: see `deploy.data`; calibrates, trains, gives the golden inputs and the accuracy.
        seed: of everything random; None leaves it to the recipe, whose default is 0.
        vectors: golden vectors; 0 packs the model unproven.
        preprocess: how raw samples become real values, see `deploy.data.feed`; it travels with the bundle.
        shapes: input name -> shape, for models that need another than their own.
        watch: is told what is going on.
        checkpoints: a folder that gets the state of training after each epoch.
        resume: go on from the checkpoint there.
        keep: a .keras file that gets the trained model, in float.

    Raises:
        BuildError: no such model, one that cannot be converted, or a recipe that does not fit.
        DataError, BadInput: the data does not fit.
        ModelRefused, RunnerKilled: the runtime on this machine will not have it (and `vectors` is not 0).
    """
    if not manifests.is_name(name):
        raise BuildError(f"bundle name {name!r} is not letters, digits and ._+- (at most 64)", "`--name NAME` sets it")
    told = watch or Watch()
    ready = source.lower().endswith(".tflite")
    chosen = recipe if isinstance(recipe, Recipe) else recipes.parse(recipe or (AS_IS if ready else "int8"))
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    arrays = load_arrays(data) if data else None
    made, samples = _made(source, chosen, arrays, data, preprocess, told, checkpoints, resume, keep)
    facts = model_file.read(made.model, Path(source).name)
    resized = tuple(
        TensorInfo(**{**vars(i), "shape": tuple((shapes or {}).get(i.name, i.shape))}) for i in facts.inputs
    )
    test = samples.test
    manifest = Manifest(
        name=name,
        files={},
        inputs=facts.inputs,
        outputs=facts.outputs,
        preprocess=_preprocess(samples, facts.inputs, asks=ready),
        shapes={key: tuple(shape) for key, shape in (shapes or {}).items()},
        labels=tuple(labels) or (test.classes if test else ()),
        recipe=_recipe(chosen, source, data, arrays, made),
        seed=chosen.seed,
        ops=facts.ops,
    )
    files = {manifests.MODEL: made.model}
    accuracy = None
    if vectors:
        told.note("proving it on this machine")
        with made.timed("prove"), _here(made.model, told) as session:
            proof = prove.prove(
                session, manifest, made.model, resized, test, vectors,
                lambda done, total: told.steps(done, total, "samples"),
            )  # fmt: skip
        files[manifests.GOLDEN] = proof.golden
        accuracy = proof.accuracy
        manifest = replace(manifest, golden=proof.facts, accuracy=_accuracy(accuracy, test, proof))
    whole = None if ready else describe(source, chosen, made, accuracy)
    return Built(bundles.make(manifest, files), facts, accuracy, whole)


def _made(
    source: str,
    recipe: Recipe,
    arrays: Mapping[str, Array] | None,
    data: str | None,
    preprocess: Mapping[str, float] | None,
    watch: Watch,
    checkpoints: Path | None,
    resume: bool,
    keep: Path | None,
) -> tuple[Made, Samples]:
    """The model, and the samples that it was made with and will be judged by."""
    if source.lower().endswith(".tflite"):
        if recipe.text.partition("+seed:")[0] != AS_IS:
            raise BuildError(
                f"{source} is a .tflite already, and is packed as it is: --recipe {recipe.text} cannot change it"
            )
        try:
            made = Made(model=Path(source).read_bytes())
        except OSError as error:
            raise BuildError(f"{source}: {error.strerror}") from None
        test = pick(arrays, data or "", "test") if arrays is not None else None
        return made, Samples(None, test, preprocess)
    if recipe.precision == AS_IS:
        raise BuildError(f"--recipe as-is is for .tflite files; {source} is none")
    if preprocess is None and arrays is not None and source.startswith(zoo.PREFIX):
        preprocess = _of_the_zoo(source, pick(arrays, data or "", "train"))
    samples = Samples(preprocess=preprocess)
    if arrays is not None:
        train, test = (pick(arrays, data or "", split) for split in ("train", "test"))
        samples = Samples(train, test, preprocess, is_divided(arrays))
    return make.make(source, recipe, samples, watch, folder=checkpoints, resume=resume, keep=keep), samples


def _of_the_zoo(source: str, train: Dataset) -> Mapping[str, float] | None:
    """What a model of the zoo expects of pixels."""
    entry = zoo.MODELS.get(source.removeprefix(zoo.PREFIX))
    return PREPROCESS[entry.preprocess] if entry and entry.preprocess and train.x.dtype.kind in "iu" else None


def _preprocess(samples: Samples, inputs: Sequence[TensorInfo], asks: bool) -> dict[str, float] | None:
    """
    What the manifest says, so that host and board feed the same.

    Whole numbers that a model of real ones scales by itself are fed as they are, and that is said.
    Of a model that comes without its training nobody knows, and nobody may guess.
    """
    if samples.preprocess is not None:
        return dict(samples.preprocess)
    test = samples.test
    if test is None or len(inputs) != 1 or not ambiguous(test.x, inputs[0]):
        return None
    if asks:
        refuse_ambiguous(test.x, inputs[0], test.source)
    feed(test.x[:1000], inputs[0])  # complains where most values lie outside of what the input can hold
    return dict(PREPROCESS["raw"])


@contextlib.contextmanager
def _here(model: bytes, watch: Watch) -> Iterator[Session]:
    """An agent of this machine; with our kernels where the stock runtime does not run the model."""
    narrow = any(layer.op in ("CONV_2D",) and layer.dtype == "int2" for layer in model_file.layers(model, "model"))
    with tempfile.TemporaryDirectory() as root:
        here = LOCAL.model_copy(update={"root": root})
        with connect(here, Path(root) / "known_hosts") as session:
            if narrow:
                kernels.ensure(session, "auto", lambda done, total: watch.steps(done, total, "bytes"), watch.note)
                if session.kernels.why_off:
                    raise BuildError(
                        f"2-bit convolutions need our kernels, which are off: {session.kernels.why_off}",
                        "`storage:4` in the recipe makes a file that stock LiteRT runs",
                    )
            yield session


def _recipe(
    recipe: Recipe, source: str, data: str | None, arrays: Mapping[str, Array] | None, made: Made
) -> dict[str, Any]:
    """What it takes to do it again; file names without folders, as the bytes must not depend on where things lie."""
    teacher = recipe.structured("distill")
    taught = _file_digest(teacher.teacher) if teacher else None
    if teacher and taught:
        named = replace(teacher, teacher=Path(teacher.teacher).name)
        recipe = replace(recipe, structure=(*recipe.changes, named))
    written: dict[str, Any] = {"recipe": recipe.text, "source": source if ":" in source else Path(source).name}
    if recipe.precision != AS_IS:
        written |= {"settings": recipe.to_json(), "by": made.by}
        digests = {"source_sha256": _file_digest(source), "teacher_sha256": taught}
        written |= {name: digest for name, digest in digests.items() if digest}
    if made.rates:
        written["rates"] = made.rates
    if data and arrays is not None:
        written |= {"data": data if ":" in data else Path(data).name, "data_sha256": content_digest(arrays)}
    return written


def _file_digest(path: str) -> str | None:
    """SHA-256 of a file; None of what is none, as a function or a model of the zoo."""
    return manifests.digest(Path(path).read_bytes()) if Path(path).is_file() else None


def _accuracy(accuracy: Accuracy | None, test: Dataset | None, proof: prove.Proof) -> dict[str, Any] | None:
    if accuracy is None or test is None:
        return None
    return {
        "metric": "top-1",
        "correct": accuracy.correct,
        "samples": accuracy.samples,
        "runtime": proof.facts["runtime"],
    }
