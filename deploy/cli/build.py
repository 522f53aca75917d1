"""`deploy build`"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli import common
from deploy.errors import UsageError

if TYPE_CHECKING:
    from deploy.build.report import Report


def parse_shapes(values: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in values:
        name, _, extents = value.rpartition("=")
        try:
            shape = tuple(int(extent) for extent in extents.split(","))
        except ValueError:
            shape = ()
        if name and shape and all(0 < extent < 2**31 for extent in shape):
            shapes[name] = shape
        else:
            raise click.BadParameter(f"{value!r} is not NAME=1,2,3", param_hint="--shape")
    return shapes


def read_labels(path: Path) -> list[str]:
    from deploy.errors import DataError

    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file of class names, a line each") from None


@click.command(
    "build",
    help="""
    Make a bundle from SOURCE: a .keras or .h5 file, a SavedModel folder, module:function that returns a Keras model,
    zoo:NAME (resnet8, resnet20, ds_cnn, mobilenet_v1_025, cnv, ad_autoencoder), or a .tflite, packed as it is.

    A recipe is one precision and any number of terms, joined by + or given by options:

    \b
      precision  int8 (the default), int16x8, w4a8, w2a8, ternary, binary,
                 mixed:FILE (YAML or JSON, layer: bits), float32, float16, dynamic
      pruning    channel:S tile:S nm:N:M block:1x16:S magnitude:S   (S: share of zeros)
      structure  width:W separable distill:TEACHER
      training   epochs:N (0: none) pretrain:N rate:R batch:N augment:on|off
                 schedule:cubic|once temperature:T balance:B seed:N
      rounding   observer:minmax|percentile|mse rounding:nearest|gptq|descent
                 equalize:on|off bias:on|off samples:N edges:8|same
      file       encoding:dense|sparse storage:2|4|8

    Data is an .npz (x_train, y_train, x_test, y_test), a folder of images by class, module:function, or digits,
    cifar10, mnist, which are fetched once.
    """
    + common.example(
        "deploy build net.keras --data images.npz -o net.bundle",
        "deploy build net.keras --data images/ --preprocess unit --recipe w4a8",
        "deploy build zoo:resnet8 --data cifar10 --recipe w4a8+pretrain:60 --prune tile:0.5 --epochs 30",
    ),
)
@click.argument("source")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write [NAME.bundle].")
@click.option("--name", help="Name of the bundle on the board [from --out or SOURCE].")
@click.option("--recipe", metavar="RECIPE", help="Precision and terms, as above.")
@click.option("--prune", multiple=True, metavar="PATTERN", help="Such as tile:0.75; may be repeated.")
@click.option("--structure", multiple=True, metavar="CHANGE", help="Such as width:0.5; may be repeated.")
@click.option("--epochs", metavar="N", help="Train for so many epochs [0].")
@click.option("--data", metavar="DATA", help="Calibrates, trains, and is what accuracy is measured with.")
@click.option("--preprocess", metavar="HOW", help="Raw to real values: raw, unit, symmetric or SCALE,OFFSET.")
@click.option(
    "--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Class names, a line each."
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,2,3", help="Use this shape for an input.")
@click.option("--vectors", default=8, show_default=True, type=click.IntRange(1, 1000), help="Golden vectors.")
@click.option("--no-golden", is_flag=True, help="Pack it unproven, without running it on this machine.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of everything random [0].")
@click.option("--resume", is_flag=True, help="Go on with the training that was interrupted.")
@click.option("--keep", metavar="FILE.keras", type=click.Path(path_type=Path), help="Keep the trained model, in float.")
@click.option(
    "--report", "reports", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
    help="Write the build report: .json, or a plot as .png, .svg, .pdf; may be repeated.",
)  # fmt: skip
@click.option(
    "--sign", "key", metavar="KEY", type=click.Path(path_type=Path), help="Sign it with this key of `deploy keygen`."
)
@common.json_option
def command(
    source: str,
    out: Path | None,
    name: str | None,
    recipe: str | None,
    prune: tuple[str, ...],
    structure: tuple[str, ...],
    epochs: str | None,
    data: str | None,
    preprocess: str | None,
    labels: Path | None,
    shapes: tuple[str, ...],
    vectors: int,
    no_golden: bool,
    seed: int | None,
    resume: bool,
    keep: Path | None,
    reports: tuple[Path, ...],
    key: Path | None,
    as_json: bool,
) -> None:
    from deploy import signing, zoo
    from deploy.build import Watch, build
    from deploy.build import recipe as recipes
    from deploy.build import report as build_report
    from deploy.data import parse_preprocess, prepare

    terms = [*([recipe] if recipe else []), *prune, *structure]
    terms += [f"{option}:{value}" for option, value in (("epochs", epochs), ("seed", seed)) if value is not None]
    packed = source.lower().endswith(".tflite") and not any((recipe, prune, structure, epochs))
    chosen = recipes.parse(*(["as-is", *terms] if packed else terms)) if terms or packed else None
    shown = name or common.bundle_name(out or Path(source.rpartition(":")[2] or source))
    out = out or Path(f"{shown}.bundle")
    for path in reports:
        build_report.check_path(path)
    checkpoints = out.with_name(f"{out.name}.training")
    with common.progress_bar(shown) as bar:
        if data:
            bar.note(f"fetching {data}")
            prepare(data, bar.bytes)
        try:
            built = build(
                source,
                name=shown,
                recipe=chosen,
                data=data,
                vectors=0 if no_golden else vectors,
                preprocess=parse_preprocess(preprocess) if preprocess else None,
                labels=read_labels(labels) if labels else (),
                shapes=parse_shapes(shapes),
                watch=Watch(bar.note, bar.steps),
                checkpoints=checkpoints,
                resume=resume,
                keep=keep,
            )
        except KeyboardInterrupt:
            if any(checkpoints.rglob("*.npz")):
                common.note(f"{checkpoints} keeps the last whole epoch: the same command with --resume goes on")
            raise
        bundle, signer = signing.sign(built.bundle, key) if key else (built.bundle, None)
        bundle.write(out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    made = built.report
    for path in reports:
        if made is None:
            raise UsageError(
                f"{path}: a .tflite that is packed as it is has no build report", "`deploy inspect` shows it"
            )
        build_report.save(made, path)
    manifest = built.bundle.manifest
    if as_json:
        common.show_json(
            {"path": str(out), "digest": built.bundle.digest, "bytes": out.stat().st_size, "manifest": manifest,
             "report": made.to_json() if made else None}
        )  # fmt: skip
        return
    if made and made.layers and made.by == "deploy":
        _table(made)
    common.show(f"{out}: {common.size(out.stat().st_size)}, model {common.size(built.facts.bytes)}")
    common.show(f"recipe   {manifest.recipe['recipe']}")
    if made and source.startswith(zoo.PREFIX) and not made.settings["epochs"]:
        common.show("weights  random: nobody has trained a model of the zoo; `--epochs N` does")
    if built.accuracy:
        a = built.accuracy
        before = f"; the float model {made.before:.2%}" if made and made.before is not None else ""
        common.show(f"accuracy {a.value:.2%} ({a.correct} of {a.samples}, on this machine){before}")
    if made and made.agreement:
        common.show(f"integers {made.agreement.text}")
    if manifest.preprocess:
        common.show(f"fed      x * {manifest.preprocess['scale']:.6g} + {manifest.preprocess['offset']:.6g}")
    if manifest.golden:
        common.show(f"golden   {manifest.golden['vectors']} vectors by {manifest.golden['runtime']}")
    else:
        common.show("golden   none: the bundle is unproven")
    for layer, why in (made.unquantized if made else {}).items():
        common.show(f"float    {layer}: {why}")
    if signer:
        common.show(f"signed   by {signer}")
    common.show(f"digest   {built.bundle.digest}")


def _table(made: Report) -> None:
    right = ("MACs", "bytes", "zeros", "SQNR")
    table = common.new_table("layer", "operator", "weights", "MACs", "bytes", "zeros", "range", "SQNR", right=right)
    for layer in made.layers:
        met = "" if layer.low is None or layer.high is None else f"{layer.low:.3g} to {layer.high:.3g}"
        stored = "" if layer.stored == f"int{layer.weights.lstrip('w')}" else f" in {layer.stored}"
        table.add_row(
            layer.name,
            layer.op,
            f"{layer.weights}{stored}",
            "" if layer.macs is None else f"{layer.macs:,}",
            f"{layer.bytes:,}",
            "" if layer.zeros is None else f"{layer.zeros:.0%}",
            met,
            "" if layer.sqnr_db is None else f"{layer.sqnr_db:.1f} dB",
        )
    table.add_section()
    table.add_row("all", "", "", f"{made.macs:,}", f"{made.bytes:,}", "", "", "")
    common.show_table(table)
    longest = sorted(made.seconds.items(), key=lambda item: -item[1])[:4]
    common.show("time     " + ", ".join(f"{what} {common.duration(seconds * 1e9)}" for what, seconds in longest))
