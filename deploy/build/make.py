"""
A Keras model and a recipe in, the bytes of a .tflite out: which part of this room does what, and in which order.

    load -> structure -> train in float -> channels -> train on the grids -> write        epochs
    load -> channels, prune -> calibrate and round -> write                               integers, no epochs
    load -> convert                                                                       floating point, and int8 of
                                                                                          layers unknown to us
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploy import zoo
from deploy.build import convert, source
from deploy.build.recipe import SELF, Recipe
from deploy.data import Array, Dataset, feed, refuse_ambiguous
from deploy.errors import BadInput, BuildError, DataError
from deploy.paths import whole
from devices.protocol.manifest import TensorInfo

if TYPE_CHECKING:
    from deploy.build.deviation import Agreement
    from deploy.build.graph import Graph
    from deploy.build.quantized import Quantized

OURS, TENSORFLOW = "deploy", "tensorflow"
_SCALING = ("Rescaling", "Normalization", "BatchNormalization")  # what makes real values of pixels
_MOVING = ("InputLayer", "Reshape", "Flatten", "Permute", "ZeroPadding2D", "Cropping2D", "Resizing")
_KIND = {"w8": "8", "w4": "4", "w2": "2", "ternary": "ternary"}  # of a recipe -> of a grid


@dataclass(frozen=True)
class Watch:
    """
    Who is told what goes on.

    Attributes:
        note: a few words on what begins.
        steps: how much is done, how much there is, and what that means.
    """

    note: Callable[[str], None] = lambda text: None
    steps: Callable[[int, int, str], None] = lambda done, total, what: None


@dataclass
class Made:
    """
    Attributes:
        model: the .tflite.
        by: `OURS`, or `TENSORFLOW` for what its converter wrote.
        graph: None where the layers could not be read.
        quantized: None for floating point, and for `TENSORFLOW`.
        history: of training, a dictionary for each epoch.
        rates: stage of training -> its learning rate at its highest.
        before: accuracy of the model as it came, in float, on the test samples; None for one that begins with random
            weights, and without labels.
        opaque: layers that have no integer form here, and why.
        sqnr_db: node -> signal to quantization noise of its integers against its float weights.
        answers: of a training graph, see `deploy.build.train.Trained`.
        agreement: of the file's integers with those; None where nothing was trained on a grid.
        seconds: what took how long.
    """

    model: bytes = b""
    by: str = OURS
    graph: Graph | None = None
    quantized: Quantized | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    before: float | None = None
    opaque: dict[str, str] = field(default_factory=dict)
    sqnr_db: dict[str, float] = field(default_factory=dict)
    answers: Callable[[Array], Mapping[str, Array]] | None = None
    agreement: Agreement | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.monotonic() - started


@dataclass(frozen=True)
class Samples:
    """
    Attributes:
        train, test: None where there are none.
        preprocess: how samples become real values.
        divided: whether `test` holds other samples than `train`.
    """

    train: Dataset | None = None
    test: Dataset | None = None
    preprocess: Mapping[str, float] | None = None
    divided: bool = True


def check(name: str, recipe: Recipe, samples: Samples, resume: bool = False, keep: Path | None = None) -> None:
    """
    Refuse what cannot become anything before TensorFlow, which takes seconds, is started.

    Raises:
        BuildError, DataError: no such file, a recipe without the data that it needs, or options that mean nothing.
    """
    source.check(name)
    if (resume or keep) and not recipe.epochs:
        raise BuildError(f"recipe {recipe.text} trains nothing that could be kept or resumed", "`--epochs N` trains")
    if keep is not None and keep.suffix != ".keras":
        raise BuildError(f"{keep}: a trained model is kept as .keras")
    if keep is not None and not keep.parent.is_dir():
        raise BuildError(f"{keep}: no folder {keep.parent}", f"`mkdir -p {keep.parent}`")
    if recipe.epochs and samples.train is None:
        raise DataError(f"recipe {recipe.text} trains, and needs data", "`--data FILE.npz` with x_train and y_train")
    if recipe.epochs and not samples.divided:
        raise DataError(
            f"{samples.train.source if samples.train else ''} holds no samples for testing that were not trained on",
            "x_train, y_train, x_test and y_test in the .npz",
        )
    if not recipe.is_float and samples.train is None:
        raise DataError(
            f"recipe {recipe.precision} needs data to calibrate the ranges of activations",
            "`--data FILE.npz` with x_train (or x); `--recipe dynamic` needs none",
        )
    if recipe.prune and samples.train is None:
        raise DataError(
            f"{recipe.prune[0].text} needs data to tell what the model can do without",
            "`--data FILE.npz` with x_train (or x)",
        )


def make(
    name: str,
    recipe: Recipe,
    samples: Samples,
    watch: Watch,
    *,
    folder: Path | None = None,
    resume: bool = False,
    keep: Path | None = None,
) -> Made:
    """
    Make the .tflite.

    Args:
        name: of the source, see `deploy.build.source.TAKES`.
        folder: gets a checkpoint after each epoch.
        resume: go on from the checkpoint there.
        keep: a .keras file that gets the trained model, in float.

    Raises:
        BuildError: the model cannot be read, converted, trained or written.
        DataError: the data does not fit the model, or not the recipe.
    """
    check(name, recipe, samples, resume, keep)
    made = Made()
    watch.note("starting TensorFlow")
    with made.timed("start"):
        tf = source.start(recipe.seed)
        watch.note(f"loading {name}")
        with source.quiet():
            model = source.load(tf, name, samples.train)
    if isinstance(model, Path):
        return _converted(tf, model, name, recipe, samples, watch, made)
    _check_meaning(model, samples)
    labelled = samples.test is not None and samples.test.y is not None
    if labelled and not name.startswith(zoo.PREFIX) and _one_each(model):
        with made.timed("float accuracy"):
            made.before = _accuracy(model, samples, watch)
    if recipe.is_float and not (recipe.epochs or recipe.prune):
        return _converted(tf, model, name, recipe, samples, watch, made)
    try:
        made.graph = _graph(model)
    except BuildError:
        if recipe.text not in ("int8", f"int8+seed:{recipe.seed}"):
            raise
        # A subclassed model, say; TensorFlow's converter traces what we would have to read.
        return _converted(tf, model, name, recipe, samples, watch, made)
    _compress(tf, recipe, samples, watch, made, folder, resume)
    made.opaque = made.graph.opaque()
    if keep is not None:
        from deploy.build.to_keras import to_keras

        try:
            with whole(keep) as staging:
                to_keras(made.graph).save(staging)
        except OSError as error:
            raise BuildError(f"{keep}: {error.strerror}") from None
    with made.timed("write"):
        _write(tf, name, recipe, made)
    if made.quantized is not None:
        watch.note("comparing each layer with float")
        with made.timed("compare"):
            _compare(made.graph, made.quantized, recipe, samples, made)
    return made


def _compare(graph: Graph, quantized: Quantized, recipe: Recipe, samples: Samples, made: Made) -> None:
    """How the integers of the file differ from what they stand for."""
    from deploy.build import deviation

    feeds = _feeds(graph, recipe, samples, deviation.SAMPLES)
    found = deviation.integers(quantized, feeds)
    if made.answers is not None:
        made.agreement = deviation.agreement(quantized, found, made.answers(*feeds.values()))
    if not any(weights.binary for weights in quantized.weights.values()):  # these are no rounded floats
        made.sqnr_db = deviation.deviations(quantized, feeds, found)


def _check_meaning(model: Any, samples: Samples) -> None:
    """
    Whole numbers may be fed as they are to a model that scales them itself; of others nobody may guess.

    Raises:
        BadInput: nobody said what they mean.
    """
    known = samples.train or samples.test
    inputs: list[Any] = list(getattr(model, "inputs", None) or [])
    if samples.preprocess is not None or known is None or len(inputs) != 1:
        return
    kinds = [type(layer).__name__ for layer in model.layers]
    computing = [kind for kind in kinds if kind not in _MOVING and not kind.startswith("Random")]
    if not computing or computing[0] not in _SCALING:
        info = TensorInfo(inputs[0].name, str(inputs[0].dtype), (1, *known.x.shape[1:]))
        refuse_ambiguous(known.x, info, known.source)


def _compress(
    tf: Any, recipe: Recipe, samples: Samples, watch: Watch, made: Made, folder: Path | None, resume: bool
) -> None:
    """Everything between reading the model and writing the file."""
    assert made.graph is not None
    if recipe.epochs:
        _train(tf, recipe, samples, watch, made, folder, resume)
        return
    if channel := recipe.pruning(channel=True):
        made.graph = _restructured(made.graph, recipe, samples, watch, prune=(channel,))
    if zeros := recipe.pruning(channel=False):
        from deploy.build.repair import SAMPLES, pruned

        with made.timed("prune"):
            feeds = _feeds(made.graph, recipe, samples, SAMPLES)
            made.graph = pruned(made.graph, zeros, feeds, _told(watch))
    if not recipe.is_float:
        with made.timed("quantize"):
            made.quantized = _quantized(made.graph, recipe, samples, watch)


def _graph(model: Any) -> Graph:
    from deploy.build.from_keras import from_keras

    return from_keras(model)


def _train(
    tf: Any, recipe: Recipe, samples: Samples, watch: Watch, made: Made, folder: Path | None, resume: bool
) -> None:
    """
    Structure, training in float, training on the grids: each on what the one before has left.  Channels go, and zeros
    come, before training in float, or in its course; where weights are random, and do not tell yet what matters, only
    the latter.
    """
    from deploy.build.train import checkpoint, is_fresh, train

    files = {} if folder is None else {stage: folder / stage / checkpoint.NAME for stage in ("float", "")}
    there = [stage for stage, file in files.items() if file.is_file()]
    if resume and not there:
        raise BuildError(f"{folder}: no checkpoint to go on from", "without `--resume` training begins anew")

    def trained(stage: str, step: Recipe, teacher: Any, adapted: bool = False) -> Any:
        assert made.graph is not None and samples.train is not None
        watch.note(f"calibrating, and finding where {stage or step.precision} begins")
        with made.timed(f"train in {stage}" if stage else "train"):
            done = train(
                made.graph,
                step,
                samples.train,
                test=samples.test if samples.test is not None and samples.test.y is not None else None,
                preprocess=samples.preprocess,
                teacher=teacher,
                adapted=adapted,
                folder=None if folder is None else folder / stage,
                resume=resume and stage in there,
                report=_reporter(watch, stage or step.precision),
            )
        made.history += [{"stage": stage or step.precision, **epoch} for epoch in done.history]
        made.rates[stage or step.precision] = done.rate
        return done

    assert made.graph is not None
    teacher = _teacher(tf, recipe, samples, made.graph)
    for file in () if resume else files.values():  # of an earlier recipe: `--resume` would find it
        file.unlink(missing_ok=True)
    if recipe.changes:
        made.graph = _restructured(made.graph, recipe, samples, watch, structure=recipe.changes)
    fresh = is_fresh(made.graph)
    channel = recipe.pruning(channel=True)
    late = fresh and bool(recipe.prune) and (channel is not None or recipe.schedule == "once")
    if channel and not fresh:
        made.graph = _restructured(made.graph, recipe, samples, watch, prune=(channel,))
    if recipe.pretrain:
        same = ("seed", "batch", "augment", "temperature", "balance", "schedule")
        kept = {name: getattr(recipe, name) for name in same}
        early = () if late else recipe.prune
        plain = Recipe("float32", prune=early, structure=recipe.changes, epochs=recipe.pretrain, **kept)
        itself = fresh and teacher is made.graph  # what is not trained yet teaches only afterwards
        made.graph = trained("float", plain, None if itself else teacher).graph
        teacher = made.graph if itself else teacher
    if channel and fresh:
        made.graph = _restructured(made.graph, recipe, samples, watch, prune=(channel,))
    done = trained("", recipe, teacher, adapted=bool(recipe.pretrain) and not late)
    made.graph, made.quantized, made.answers = done.graph, done.quantized, done.answers


def _teacher(tf: Any, recipe: Recipe, samples: Samples, graph: Graph) -> Graph | None:
    """
    Raises:
        BuildError: it was never trained, nor will it be before it teaches.
    """
    from deploy.build.train import is_fresh

    distill = recipe.structured("distill")
    if distill is None:
        return None
    own = distill.teacher == SELF
    teacher = graph if own else _graph(source.load(tf, distill.teacher, samples.train))
    first = own and recipe.pretrain and not recipe.changes  # it is trained in float, and then teaches
    if is_fresh(teacher) and not first:
        which = "the model" if own else distill.teacher
        raise BuildError(f"recipe {recipe.text}: {which} is not trained, and cannot teach", "`distill:FILE.keras`")
    return teacher


def _reporter(watch: Watch, stage: str) -> Callable[[Any], None]:
    def report(at: Any) -> None:
        if at.step == 1:
            watch.note(f"training {stage}, epoch {at.epoch} of {at.epochs}")
        told = f"steps, loss {at.loss:.3f}, {at.accuracy:.1%} right"
        watch.steps((at.epoch - 1) * at.steps + at.step, at.epochs * at.steps, told)

    return report


def _restructured(graph: Graph, recipe: Recipe, samples: Samples, watch: Watch, **terms: Any) -> Graph:
    from deploy.build.train.structure import restructured

    step = Recipe(epochs=1, seed=recipe.seed, **terms)
    return restructured(graph, step, samples.train, samples.preprocess, _told(watch))


def _told(watch: Watch) -> Callable[[str, int, int], None]:
    """As what computes reports its progress."""
    return lambda what, done, total: watch.steps(done, total, what)


def _quantized(graph: Graph, recipe: Recipe, samples: Samples, watch: Watch) -> Quantized:
    from deploy.build.posttraining import Options, quantize
    from deploy.build.train import kinds_of

    kinds = {node: _KIND[kind] for node, kind in kinds_of(graph, recipe).items()}
    options = Options(
        observer=recipe.observer,
        equalize=recipe.equalize,
        rounding=recipe.rounding,
        correct=any(kind != "8" for kind in kinds.values()) if recipe.correct_bias is None else recipe.correct_bias,
        activation_bits=16 if recipe.precision == "int16x8" else 8,
    )
    watch.note("quantizing")
    feeds = _feeds(graph, recipe, samples, recipe.samples)
    return quantize(graph, feeds, kinds, options, _told(watch))


def _feeds(graph: Graph, recipe: Recipe, samples: Samples, count: int) -> dict[str, Any]:
    """Input -> [count, ...], real values."""
    assert samples.train is not None
    shapes = [(None, *graph[name].shape) for name in graph.inputs]
    chosen = calibration(shapes, samples.train, recipe, samples.preprocess, count)
    return {graph.inputs[0]: np.concatenate(chosen)}


def calibration(
    shapes: list[tuple[int | None, ...]],
    train: Dataset,
    recipe: Recipe,
    preprocess: Mapping[str, float] | None,
    count: int,
) -> list[Array]:
    """
    Some training samples, drawn without replacement, each as a batch of one in float32.

    Raises:
        DataError: they do not fit, or the model has several inputs.
    """
    if len(shapes) != 1:
        raise DataError(f"data can calibrate a model with one input; this one has {len(shapes)}")
    chosen = np.random.default_rng(recipe.seed).permutation(len(train.x))[:count]
    info = TensorInfo("", "float32", tuple(-1 if extent is None else extent for extent in shapes[0]))
    try:
        return list(feed(train.x[chosen], info, preprocess))
    except BadInput as error:
        raise DataError(f"{train.source}: {error.message}") from None


def _converted(tf: Any, model: Any, name: str, recipe: Recipe, samples: Samples, watch: Watch, made: Made) -> Made:
    """By TensorFlow's converter."""
    if recipe.epochs or recipe.prune or recipe.structure or recipe.precision not in convert.PRECISIONS:
        raise BuildError(
            f"recipe {recipe.text} needs a model whose layers can be read; {name} is none",
            "save it as .keras, functional or sequential",
        )
    watch.note(f"converting to {recipe.precision}")
    chosen: list[Array] = []
    if recipe.precision == "int8":
        assert samples.train is not None
        shapes = convert.input_shapes(tf, model, name)
        chosen = calibration(shapes, samples.train, recipe, samples.preprocess, recipe.samples)
    with made.timed("convert"):
        made.model = convert.convert(tf, model, recipe.precision, chosen, name)
    made.by = TENSORFLOW
    return made


def _write(tf: Any, name: str, recipe: Recipe, made: Made) -> None:
    assert made.graph is not None
    if made.quantized is None:
        from deploy.build.to_keras import to_keras

        made.model = convert.convert(tf, to_keras(made.graph), recipe.precision, (), name)
        made.by = TENSORFLOW
        return
    from deploy.build.write import write

    if recipe.encoding == "sparse":
        for node in made.graph.weighted():
            weights = made.quantized.weights.get(node.name)
            blocks = node.op != "depthwise" and weights is not None and weights.values.shape[-2] % 16 == 0
            if weights is not None and blocks and weights.grid.bits == 8 and (weights.values == 0).any():
                weights.encoding = "block"
    made.model = write(made.quantized, least_bits=recipe.storage)


def _one_each(model: Any) -> bool:
    """One input and one output, as far as the model itself knows; a subclassed one does not."""
    return len(getattr(model, "inputs", None) or ()) == len(getattr(model, "outputs", None) or ()) == 1


def _accuracy(model: Any, samples: Samples, watch: Watch, batch: int = 500) -> float | None:
    """Top-1 of the float model on the test samples, by Keras; None for what does not classify."""
    test = samples.test
    assert test is not None and test.y is not None
    shape = tuple(-1 if extent is None else int(extent) for extent in model.inputs[0].shape)
    if len(model.outputs[0].shape) != 2:
        return None
    correct = 0
    watch.note("accuracy of the float model")
    for start in range(0, len(test.x), batch):
        try:
            fed = feed(test.x[start : start + batch], TensorInfo("", "float32", (1, *shape[1:])), samples.preprocess)
        except BadInput as error:
            raise DataError(f"{test.source}: {error.message}") from None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras 2's files have their one input in a list
            answers = np.asarray(model(np.concatenate(list(fed)), training=False))
        correct += int((answers.argmax(axis=-1) == test.y[start : start + batch]).sum())
        watch.steps(start + len(fed), len(test.x), "samples")
    return correct / len(test.x)
