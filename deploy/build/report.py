"""
The build report: what became of each layer, what it cost in accuracy, and where the time went.

As a table for a terminal (`deploy.cli.build` shows it), as JSON, and as a plot.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.build.make import Made
from deploy.build.recipe import Recipe
from deploy.errors import BuildError
from deploy.model_file import KERNELS, cost, layers
from deploy.paths import whole

if TYPE_CHECKING:
    from deploy.build.deviation import Agreement
    from deploy.evaluate import Accuracy

FORMAT = 1
SUFFIXES = (".json", ".png", ".svg", ".pdf")


@dataclass(frozen=True)
class LayerReport:
    """
    One layer with weights.

    Attributes:
        name: of its node: the Keras layer's, or what TensorFlow's converter made of it.
        op: TFLite's.
        weights: what the recipe made of them (w8, w4, w2, ternary, binary); the type in the file where nobody chose.
        stored: the type in the file.
        parameters, bytes: kernel and bias.
        macs: multiply-accumulates, zeros included.
        zeros: share of the kernel's weights.
        low, high: what its output reached in calibration; None where nobody looked.
        sqnr_db: signal to quantization noise of its output against its float weights, the trained ones where it was
            trained; None where nobody compared, as with binary weights, which are no rounded ones.
    """

    name: str
    op: str
    weights: str
    stored: str
    parameters: int
    bytes: int
    macs: int | None
    zeros: float | None
    low: float | None = None
    high: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Report:
    """
    Attributes:
        recipe: its canonical text.
        settings: every value of it.
        source: as it was given.
        by: who wrote the file: deploy, or tensorflow.
        layers: those with weights, in the order of execution.
        unquantized: layers that have no integer form here -> why.
        bytes, macs, parameters: of the whole file.
        before: accuracy of the float model on the test samples, in [0, 1]; None where it was not measured.
        after: the same of the file, run by LiteRT.
        samples: how many `after` was measured with.
        agreement: of the file's integers with the training graph's; None where nothing was trained on a grid.
        history: of training: stage, epoch, loss, accuracy (of the training samples) and test_accuracy.
        seconds: what took how long.
    """

    recipe: str
    settings: dict[str, Any]
    source: str
    by: str
    layers: tuple[LayerReport, ...]
    unquantized: dict[str, str]
    bytes: int
    macs: int
    parameters: int
    before: float | None = None
    after: float | None = None
    samples: int = 0
    agreement: Agreement | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def describe(source: str, recipe: Recipe, made: Made, accuracy: Accuracy | None) -> Report:
    """
    What is known once a model has been made.

    Args:
        accuracy: of the file.
    """
    found = layers(made.model, source)
    whole = cost(found)
    known = made.quantized
    rows = []
    for layer in found:
        if layer.op not in KERNELS:
            continue
        low, high = (known.ranges.get(layer.name) if known else None) or (None, None)
        rows.append(
            LayerReport(
                name=layer.name,
                op=layer.op,
                weights=_weights(made, layer.name) or layer.dtype,
                stored=layer.dtype,
                parameters=layer.parameters,
                bytes=layer.bytes,
                macs=layer.macs,
                zeros=layer.zeros,
                low=low,
                high=high,
                sqnr_db=made.sqnr_db.get(layer.name),
            )
        )
    return Report(
        recipe=recipe.text,
        settings=recipe.to_json(),
        source=source,
        by=made.by,
        layers=tuple(rows),
        unquantized=dict(made.opaque),
        bytes=len(made.model),
        macs=whole.macs,
        parameters=whole.parameters,
        before=made.before,
        after=None if accuracy is None else accuracy.value,
        samples=0 if accuracy is None else accuracy.samples,
        agreement=made.agreement,
        history=list(made.history),
        seconds={what: round(seconds, 3) for what, seconds in made.seconds.items()},
    )


def _weights(made: Made, name: str) -> str | None:
    """What a node's weights are on, by their own name."""
    weights = made.quantized.weights.get(name) if made.quantized is not None else None
    if weights is None:
        return None
    if weights.binary is not None:
        return "binary"
    return "ternary" if (weights.grid.low, weights.grid.high) == (-1, 1) else f"w{weights.grid.bits}"


def save(made: Report, path: Path) -> None:
    """
    Write it as JSON, or as a plot, by the name's suffix; whole or not at all.

    Raises:
        BuildError: another suffix, matplotlib is missing, or the file cannot be written.
    """
    check_path(path)
    try:
        with whole(path) as staging:
            if path.suffix == ".json":
                staging.write_text(json.dumps(made.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            else:
                _plot(made, staging)
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from None


def check_path(path: Path) -> None:
    """
    Raises:
        BuildError: a report cannot be written under that name.
    """
    if not path.parent.is_dir():
        raise BuildError(f"{path}: no folder {path.parent}", f"`mkdir -p {path.parent}`")
    if path.suffix not in SUFFIXES:
        raise BuildError(f"{path}: a report is {', '.join(SUFFIXES)}")
    if path.suffix != ".json":
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise BuildError(f"{path}: plotting needs matplotlib", "`pip install 'deploy-hil[report]'`") from None


def _plot(made: Report, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = range(len(made.layers))
    noises = [layer.sqnr_db for layer in made.layers if layer.sqnr_db is not None]
    panels = 1 + bool(noises) + bool(made.history)
    figure = Figure(figsize=(9, 3.2 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    size, *rest = figure.subplots(panels, 1, squeeze=False)[:, 0]
    size.bar(places, [4 * layer.parameters / 1024 for layer in made.layers], color="0.85", label="in float32")
    size.bar(places, [layer.bytes / 1024 for layer in made.layers], color="C0", label="in the file")
    size.bar(
        places, [layer.bytes / 1024 * (layer.zeros or 0) for layer in made.layers], color="C1", label="zeros of it"
    )
    size.set_yscale("symlog", linthresh=1)
    size.set_ylabel("KiB")
    size.legend(fontsize="small")
    size.set_xticks(
        places, [f"{layer.name}\n{layer.weights}" for layer in made.layers], rotation=90, fontsize="x-small"
    )
    accuracy = [f"{what} {value:.2%}" for what, value in (("float", made.before), ("file", made.after)) if value]
    size.set_title(f"{made.recipe}: {made.bytes / 1024:.1f} KiB  " + ", ".join(accuracy), fontsize="medium")
    if noises:
        axes, *rest = rest
        known = [(place, layer.sqnr_db) for place, layer in zip(places, made.layers, strict=True)]
        axes.plot([p for p, db in known if db is not None], noises, "o-")
        axes.set_xticks(places, ["" for _ in places])
        axes.set_ylabel("SQNR, dB")
    for axes in rest:
        epochs = range(1, len(made.history) + 1)
        for key, label in (("accuracy", "training samples"), ("test_accuracy", "test samples")):
            if all(key in entry for entry in made.history):
                axes.plot(epochs, [entry[key] for entry in made.history], label=label)
        axes.set_xlabel("epoch")
        axes.set_ylabel("accuracy")
        axes.legend(fontsize="small")
    figure.savefig(path, format=path.suffix[1:])
