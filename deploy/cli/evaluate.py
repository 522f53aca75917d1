"""`deploy evaluate`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.cli import common

if TYPE_CHECKING:
    pass


@click.command(
    "evaluate",
    help="""
    Measure top-1 accuracy of BUNDLE on a board: every sample of --data runs there.
    """
    + common.example("deploy evaluate --board local net.bundle --data images.npz"),
)
@common.any_board_option
@common.bundle_argument
@click.option(
    "--data", required=True, metavar="NPZ", help="x_test and y_test (or x and y): an .npz, or module:function."
)
@click.option("--count", type=click.IntRange(1), help="Only the first samples.")
@click.option("--preprocess", metavar="HOW", help="Instead of the bundle's: raw, unit, symmetric or SCALE,OFFSET.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1, 1024))
@common.kernels_option
@common.limit_option
@common.json_option
@click.pass_obj
def command(
    boards_file: str | None,
    board_name: str | None,
    bundle_path: Path,
    data: str,
    count: int | None,
    preprocess: str | None,
    threads: int,
    limit_s: float | None,
    as_json: bool,
) -> None:
    from deploy import accelerate, inference
    from deploy.data import Dataset, load, parse_preprocess
    from deploy.evaluate import evaluate, keep

    bundle = common.read_bundle(bundle_path)
    whole = load(data, "test", labels=True)
    assert whole.y is not None
    dataset = Dataset(whole.x[:count], whole.y[:count], whole.source)
    how = parse_preprocess(preprocess) if preprocess else bundle.manifest.preprocess
    settings = {"data": data, "count": count, "preprocess": how, "threads": threads}
    with common.on_board(boards_file, board_name, bundle) as on, on.stored("evaluate", settings) as writer:
        board_name = on.board.name
        arrived: list[int] = []
        try:
            model = inference.load(
                on.session, bundle=bundle.digest, threads=threads, limit_s=limit_s, subject=bundle.name
            )
            with common.progress_bar(board_name) as bar:
                accuracy = evaluate(
                    on.session,
                    model,
                    dataset,
                    how,
                    limit_s=limit_s,
                    subject=bundle.name,
                    progress=lambda done: bar.samples(done, len(dataset.x)),
                    arrived=arrived,
                )
            inference.unload(on.session, bundle.name)
        finally:
            if arrived:
                writer.set(headline=f"{keep(writer, arrived, dataset).value:.2%}")
        told = on.session.accelerator
        writer.set(runtime=model.runtime, verdict=accelerate.verdict(told), accelerator=told)
    if as_json:
        common.show_json(
            {"run": writer.id, "board": board_name, "bundle": bundle.digest, "metric": "top-1",
             "accuracy": accuracy.value, "correct": accuracy.correct, "samples": accuracy.samples,
             "interval": [accuracy.low, accuracy.high]}
        )  # fmt: skip
        return
    common.show(
        f"{bundle.name} on {board_name}: {accuracy.value:.2%} top-1 "
        f"({accuracy.correct} of {accuracy.samples}; 95 % interval {accuracy.low:.2%} to {accuracy.high:.2%})"
    )
    host = bundle.manifest.accuracy
    if host and host["samples"] == accuracy.samples:
        common.show(f"host: {host['correct'] / host['samples']:.2%} ({host['correct']} of {host['samples']})")
    common.show(f"stored: {writer.id}")
