"""
``make bench-build``: accuracy and size of compressed networks on all of CIFAR-10, three seeds each.

    make bench-build                              every row; what is there already is not done again
    make bench-build ROWS="int8 w4a8" SEEDS="0"   some of them
    make bench-build ROWS=--show                  what is known so far, and what was not run

A result is kept for each row and seed in ``results/bench-build`` with its model, so that a table needs no second run;
training that was interrupted goes on from its last epoch.  Accuracy is that of the file, run by LiteRT on all 10,000
test images.  A row that was not run says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deploy.delta import encode
from tests.conftest import CORPUS, ROOT

KEPT = ROOT / "results" / "bench-build"
RESNET8 = CORPUS / "models" / "tiny_ic_resnet8.h5"  # of MLPerf Tiny; it takes pixels as they are
FLOAT = 0.8719  # what that answers right, by Keras, on the 10,000
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        source, recipe, preprocess: as `deploy build` takes them.
        least: accuracy that is the goal.
        size: the goal for bytes of the file over those of the int8 file; None where there is none.
        pushed: the same for the bytes that a push takes to a board that has the int8 file.
        over: a row whose mean this one must exceed by `least`.
    """

    what: str
    recipe: str
    least: float
    size: float | None = None
    pushed: float | None = None
    over: str = ""
    source: str = str(RESNET8)
    preprocess: str = "raw"


ROWS = {
    "float32": Row("float32, trained further", "float32+distill+epochs:10", 0.875),
    "int8": Row("int8, post-training", "int8", FLOAT - 0.003, size=1.0),
    "w4a8-ptq": Row("w4a8, post-training", "w4a8", FLOAT - 0.02, size=0.62),
    "w4a8": Row("w4a8, trained", "w4a8+distill+epochs:4", FLOAT - 0.005, size=0.62),
    "w2a8": Row("w2a8, trained", "w2a8+distill+epochs:5", FLOAT - 0.025, size=0.45),
    "ternary": Row("ternary, trained", "ternary+distill+epochs:10", FLOAT - 0.025, size=0.45),
    "tile": Row(
        "int8, 75 % tile zeros",
        "int8+tile:0.75+schedule:cubic+distill+pretrain:40+epochs:2",
        FLOAT - 0.02,
        pushed=0.4,
    ),
    "w4a8-tile": Row("w4a8, 50 % tile zeros", "w4a8+tile:0.5+distill+epochs:15", FLOAT - 0.015),
    "channel": Row("int8, half of the MACs", "int8+channel:0.5+distill+pretrain:40+epochs:2", FLOAT - 0.015),
    "binary": Row("CNV, one bit (W1A1)", f"binary+distill:{RESNET8}+epochs:20", 0.82, source="zoo:cnv"),
    "width": Row("width 0.5, trained alone", "int8+width:0.5+pretrain:20+epochs:2", 0.0),
    "distill": Row("width 0.5, distilled", "int8+width:0.5+distill+pretrain:20+epochs:2", 0.01, over="width"),
}


def main() -> None:
    arguments = argparse.ArgumentParser(prog="make bench-build")
    arguments.add_argument("rows", nargs="*", metavar="ROW", help=" ".join(ROWS))
    arguments.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    arguments.add_argument("--show", action="store_true", help="run nothing")
    arguments.add_argument("--again", action="store_true", help="forget what is kept of these rows and seeds")
    arguments.add_argument("--one", nargs=2, metavar=("ROW", "SEED"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        one(given.one[0], int(given.one[1]))
        return
    unknown = set(given.rows) - set(ROWS)
    if unknown:
        sys.exit(f"no rows {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    KEPT.mkdir(parents=True, exist_ok=True)
    if not given.show:
        for name in given.rows or ROWS:
            for seed in given.seeds:
                if given.again:
                    _record(name, seed).unlink(missing_ok=True)
                if not _record(name, seed).is_file():
                    _run(name, seed)
    Console(width=None if sys.stdout.isatty() else 150).print(table(given.rows or list(ROWS), given.seeds))


def _run(name: str, seed: int) -> None:
    """In a process of its own: TensorFlow keeps what one row has set."""
    sys.stdout.write(f"  {name}, seed {seed}: {ROWS[name].recipe}\n")
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.build", "--one", name, str(seed)],
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        sys.stdout.write(f"  {name}, seed {seed}: failed with status {done.returncode}\n")


def one(name: str, seed: int) -> None:
    """Build one row with one seed and keep what came out."""
    from deploy.build import Watch, build
    from deploy.data import parse_preprocess
    from deploy.errors import DeployError

    row = ROWS[name]
    started, checkpoints = time.monotonic(), KEPT / f"{name}-{seed}.training"
    before = _spent(checkpoints)

    def note(text: str) -> None:
        _spent(checkpoints, before + time.monotonic() - started)
        sys.stdout.write(f"    {time.monotonic() - started:7.0f} s  {text}\n")
        sys.stdout.flush()

    try:
        built = build(
            row.source,
            name=name,
            recipe=row.recipe,
            seed=seed,
            data=os.environ.get("DEPLOY_BENCH_CIFAR10", "cifar10"),
            preprocess=parse_preprocess(row.preprocess),
            watch=Watch(note),
            checkpoints=checkpoints,
            resume=any(checkpoints.rglob("checkpoint.npz")),
        )
    except DeployError as error:
        sys.exit(f"    {error}" + (f" ({error.hint})" if error.hint else ""))
    assert built.accuracy and built.report
    (KEPT / f"{name}-{seed}.tflite").write_bytes(built.bundle.model)
    kept = {
        "row": name,
        "recipe": built.report.recipe,
        "correct": built.accuracy.correct,
        "samples": built.accuracy.samples,
        "bytes": len(built.bundle.model),
        "macs": built.report.macs,
        "seconds": before + time.monotonic() - started,
        "cpus": os.cpu_count(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "-1") != "-1",
        "code": _code(),
        "report": built.report.to_json(),
    }
    _record(name, seed).write_text(json.dumps(kept, indent=1) + "\n")
    for file in sorted(checkpoints.rglob("*"), reverse=True) if checkpoints.is_dir() else ():
        file.unlink() if file.is_file() else file.rmdir()
    if checkpoints.is_dir():
        checkpoints.rmdir()


def _spent(checkpoints: Path, seconds: float | None = None) -> float:
    """Seconds that interrupted attempts have taken; with a number, remember it."""
    file = checkpoints / "seconds"
    if seconds is not None and checkpoints.is_dir():
        file.write_text(str(seconds))
    return float(file.read_text()) if file.is_file() else 0.0


def _record(name: str, seed: int) -> Path:
    return KEPT / f"{name}-{seed}.json"


def _code() -> str:
    """Of the sources that decide what comes out."""
    sha = hashlib.sha256()
    for path in sorted((ROOT / "deploy" / "build").rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()[:12]


def _known(name: str, seeds: list[int]) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        if _record(name, seed).is_file():
            yield {**json.loads(_record(name, seed).read_text()), "seed": seed}


def table(names: list[str], seeds: list[int]) -> Table:
    """What is known of these rows."""
    shown = Table(title="CIFAR-10, 10,000 test images, by LiteRT; mean and standard deviation over seeds")
    for column in ("row", "goal", "accuracy", "file / int8", "pushed / int8", "min", "seeds", ""):
        shown.add_column(column)
    base = next((KEPT / f"int8-{seed}.tflite" for seed in seeds if (KEPT / f"int8-{seed}.tflite").is_file()), None)
    code = _code()
    for name in names:
        row, known = ROWS[name], list(_known(name, seeds))
        goal = f">= {row.least:.2%}" if not row.over else f"{ROWS[row.over].what} + {row.least * 100:.0f} pp"
        goal = "" if not row.least else goal
        goal += f", <= {row.size} of int8" if row.size else f", pushed <= {row.pushed} of int8" if row.pushed else ""
        if not known:
            shown.add_row(row.what, goal, "not run", "", "", "", f"0 of {len(seeds)}", "")
            continue
        accuracy = np.array([entry["correct"] / entry["samples"] for entry in known])
        spread = f" +- {accuracy.std(ddof=1) * 100:.2f}" if len(accuracy) > 1 else ""
        met = accuracy.mean() >= _least(row, seeds)
        size = pushed = None
        if base is not None:
            whole = base.stat().st_size
            size = float(np.mean([entry["bytes"] for entry in known])) / whole
            models = [(KEPT / f"{name}-{entry['seed']}.tflite").read_bytes() for entry in known]
            if row.pushed:
                pushed = float(np.mean([len(encode(base.read_bytes(), model)) for model in models])) / whole
        met &= row.size is None or size is None or size <= row.size + 0.005
        met &= row.pushed is None or pushed is None or pushed <= row.pushed
        half = met and base is None and bool(row.size or row.pushed)  # the other half wants the row int8
        notes = {
            "of older code": sum(entry["code"] != code for entry in known),
            "of another recipe": sum(entry["recipe"] != _recipe(row, entry["seed"]) for entry in known),
        }
        shown.add_row(
            row.what,
            goal,
            f"{accuracy.mean():.2%}{spread}",
            "" if size is None else f"{size:.2f}",
            "" if pushed is None else f"{pushed:.2f}",
            f"{np.mean([entry['seconds'] for entry in known]) / 60:.0f}",
            f"{len(known)} of {len(seeds)}" + "".join(f" ({count} {what})" for what, count in notes.items() if count),
            "" if not goal else "accuracy met, size unknown" if half else "met" if met else "MISSED",
        )
    return shown


def _recipe(row: Row, seed: int) -> str:
    from deploy.build.recipe import parse

    return parse(row.recipe, f"seed:{seed}").text


def _least(row: Row, seeds: list[int]) -> float:
    if not row.over:
        return row.least
    other = [entry["correct"] / entry["samples"] for entry in _known(row.over, seeds)]
    return float(np.mean(other)) + row.least if other else float("inf")


if __name__ == "__main__":
    main()
