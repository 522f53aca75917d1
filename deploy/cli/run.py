"""`deploy run`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli import common
from deploy.cli.build import parse_shapes

if TYPE_CHECKING:
    from deploy.data import Array
    from deploy.inference import Loaded
    from devices.protocol.manifest import Manifest

SHOWN = 8


@click.command(
    "run",
    help="""
    Run BUNDLE (or a .tflite) on a board and show what it answers.

    --data feeds samples: for one input the test split of an .npz; for several, arrays named as the inputs.  Without
    it, seeded random values are fed.  Variables of the model live through all samples.
    """
    + common.example("deploy run --board local net.bundle --data images.npz --count 3"),
)
@common.any_board_option
@common.bundle_argument
@click.option("--data", metavar="NPZ", help="What to feed: an .npz, or module:function.")
@click.option("--count", default=1, show_default=True, type=click.IntRange(1), help="Samples to feed.")
@click.option("--signature", help="Run this signature instead of the first subgraph.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,2,3", help="Use this shape for an input.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of random inputs.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the outputs to this .npz.")
@common.kernels_option
@common.limit_option
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    board_name: str | None,
    bundle_path: Path,
    data: str | None,
    count: int,
    signature: str | None,
    shapes: tuple[str, ...],
    threads: int,
    seed: int,
    out: Path | None,
    limit_s: float | None,
    as_json: bool,
) -> None:
    from deploy import inference

    resized = parse_shapes(shapes)
    bundle = common.read_bundle(bundle_path, resized)
    with common.on_board(boards_file, board_name, bundle) as on:
        board_name = on.board.name
        model = inference.load(
            on.session,
            bundle=bundle.digest,
            threads=threads,
            signature=signature,
            shapes=resized or None,
            limit_s=limit_s,
            subject=bundle.name,
        )
        given = _inputs(model, bundle.manifest, data, count, seed)
        answers = list(inference.infer(on.session, model, given, limit_s=limit_s, subject=bundle.name))
        inference.unload(on.session, bundle.name)
    if out:
        _write(out, model, answers)
    if as_json:
        common.show_json(
            {
                "board": board_name,
                "bundle": bundle.digest,
                "runtime": model.runtime,
                "outputs": [[_json(array) for array in outputs] for outputs in answers],
            }
        )
        return
    for number, outputs in enumerate(answers):
        for info, array in zip(model.outputs, outputs, strict=True):
            common.show(f"[{number}] {info.name}: {_line(array, bundle.manifest.labels)}")


def _inputs(model: Loaded, manifest: Manifest, data: str | None, count: int, seed: int) -> list[list[Array]]:
    from deploy import data as datasets
    from deploy.errors import DataError

    if data is None:
        return datasets.random_inputs(model.inputs, count, seed)
    if len(model.inputs) == 1:
        arrays = datasets.load_arrays(data)
        name = model.inputs[0].name
        x = arrays[name] if name in arrays else datasets.load(data, "test").x
        return [[sample] for sample in datasets.feed(x[:count], model.inputs[0], manifest.preprocess)]
    arrays = datasets.load_arrays(data)
    missing = [info.name for info in model.inputs if info.name not in arrays]
    if missing:
        raise DataError(f"{data} has no {missing[0]!r}: the model's inputs are {[i.name for i in model.inputs]}")
    whole = [arrays[info.name] for info in model.inputs]
    if all(array.ndim == len(info.shape) for array, info in zip(whole, model.inputs, strict=True)):
        return [whole]  # one sample, with its batch extent
    fed = [datasets.feed(array[:count], info) for array, info in zip(whole, model.inputs, strict=True)]
    return [list(sample) for sample in zip(*fed, strict=False)]


def _line(array: Array, labels: tuple[str, ...]) -> str:
    flat = array.reshape(-1)
    shown = ", ".join(_value(v) for v in flat[:SHOWN].tolist()) + (", ..." if flat.size > SHOWN else "")
    text = f"{array.dtype.name if array.dtype != object else 'string'} {list(array.shape)} = {shown}"
    if labels and flat.size == len(labels):
        text += f"  -> {labels[int(flat.argmax())]}"
    return text


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return repr(value.decode("utf-8", "replace"))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _json(array: Array) -> Any:
    if array.dtype == object:
        return [value.decode("utf-8", "replace") for value in array.reshape(-1).tolist()]
    return [str(v) for v in array.reshape(-1)] if array.dtype.kind == "c" else array.tolist()


def _write(out: Path, model: Loaded, answers: list[list[Array]]) -> None:
    import numpy as np

    from deploy.errors import DataError

    arrays = {}
    for i, info in enumerate(model.outputs):
        columns = [outputs[i] for outputs in answers]
        same = all(column.shape == columns[0].shape for column in columns)
        plain = [column.astype("S") if column.dtype == object else column for column in columns]
        if same:
            arrays[info.name] = np.stack(plain)
        else:
            arrays |= {f"{info.name}[{n}]": column for n, column in enumerate(plain)}
    try:
        with out.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}") from None
