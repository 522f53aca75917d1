"""`deploy build`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli import common


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
    or a .tflite, which is packed as it is.

    Recipes: int8 (all integers, calibrated with --data; the default), float32, float16 and dynamic (int8 weights).
    """
    + common.example("deploy build net.keras --data images.npz -o net.bundle", "deploy build net.tflite -o net.bundle"),
)
@click.argument("source")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write [NAME.bundle].")
@click.option("--name", help="Name of the bundle on the board [from --out or SOURCE].")
@click.option("--recipe", type=click.Choice(["int8", "float32", "float16", "dynamic", "as-is"]))
@click.option("--data", metavar="NPZ", help="Data set: an .npz, or module:function.")
@click.option("--preprocess", metavar="HOW", help="Raw to real values: raw, unit, symmetric or SCALE,OFFSET.")
@click.option(
    "--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Class names, a line each."
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,2,3", help="Use this shape for an input.")
@click.option("--vectors", default=8, show_default=True, type=click.IntRange(1, 1000), help="Golden vectors.")
@click.option("--no-golden", is_flag=True, help="Pack it unproven, without running it on this machine.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option(
    "--sign", "key", metavar="KEY", type=click.Path(path_type=Path), help="Sign it with this key of `deploy keygen`."
)
@common.json_option
def command(
    source: str,
    out: Path | None,
    name: str | None,
    recipe: str | None,
    data: str | None,
    preprocess: str | None,
    labels: Path | None,
    shapes: tuple[str, ...],
    vectors: int,
    no_golden: bool,
    seed: int,
    key: Path | None,
    as_json: bool,
) -> None:
    from deploy import signing
    from deploy.build import build
    from deploy.data import parse_preprocess

    chosen = name or common.bundle_name(out or Path(source.rpartition(":")[2] or source))
    out = out or Path(f"{chosen}.bundle")
    with common.progress_bar(chosen) as bar:
        built = build(
            source,
            name=chosen,
            recipe=recipe,
            data=data,
            seed=seed,
            vectors=0 if no_golden else vectors,
            preprocess=parse_preprocess(preprocess) if preprocess else None,
            labels=read_labels(labels) if labels else (),
            shapes=parse_shapes(shapes),
            note=bar.note,
            progress=bar.samples,
        )
        bundle, signer = signing.sign(built.bundle, key) if key else (built.bundle, None)
        bundle.write(out)
    manifest = built.bundle.manifest
    if as_json:
        common.show_json(
            {"path": str(out), "digest": built.bundle.digest, "bytes": out.stat().st_size, "manifest": manifest}
        )
        return
    common.show(f"{out}: {common.size(out.stat().st_size)}, model {common.size(built.facts.bytes)}")
    common.show(f"recipe   {manifest.recipe['recipe']}, seed {seed}")
    if built.accuracy:
        a = built.accuracy
        common.show(f"accuracy {a.value:.2%} ({a.correct} of {a.samples}, on this machine)")
    if manifest.golden:
        common.show(f"golden   {manifest.golden['vectors']} vectors by {manifest.golden['runtime']}")
    else:
        common.show("golden   none: the bundle is unproven")
    if signer:
        common.show(f"signed   by {signer}")
    common.show(f"digest   {built.bundle.digest}")
