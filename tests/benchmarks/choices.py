"""
What the delegate claims on emulated Arm cores, against the stock runtime with the same models: counts, never times.

Each model is one layer, run by the interpreter on both sides, so that the switch between two delegates counts as well.
A layer that is left to the stock runtime costs what it costs there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.build.binary import binary_model
from deploy.errors import CountError
from deploy.virtual import count
from kernels import build
from tests.benchmarks.figure import Figure
from tests.kernels.library import prune
from tests.kernels.single_op import SingleOp, random_conv, random_fc
from tests.kernels.test_binary import binary_layer

CORES = ("a53", "a72", "a76")
CONVS = ((14, 256, 256, 3), (16, 64, 64, 3), (8, 16, 32, 3), (14, 256, 256, 1), (16, 64, 64, 1), (7, 32, 64, 1))
ROWS = ((1, 1024, 1024), (64, 1024, 1024), (1, 256, 64), (64, 256, 64))  # of fully-connected layers, inputs, outputs
AS_MUCH = 1.005  # what finding out that nothing is to be claimed leaves behind in memory may show in a count

Model = tuple[bytes, list[NDArray[Any]]]


def figures(folder: Path) -> Iterator[Figure]:
    what = "instructions with our delegate over the stock runtime's, one layer each"
    try:
        library = build.build("aarch64", folder / "libdeploy_kernels.so")
        models = dict(grid())
        for core in CORES:
            stock = count.count_models(list(models.values()), core)
            ours = count.count_models(list(models.values()), core, library, {"mode": "auto"})
            yield from rows(core, list(models), stock, ours)
    except (CountError, build.BuildFailed) as error:
        yield Figure(what, "", f"not counted: {error}", None)


def rows(core: str, names: list[str], stock: Sequence[object], ours: Sequence[object]) -> Iterator[Figure]:
    """One row for all layers that both sides run, and one that names those which only ours runs."""
    ratios = {
        name: b.instructions / a.instructions
        for name, a, b in zip(names, stock, ours, strict=True)
        if isinstance(a, count.Count) and isinstance(b, count.Count)
    }
    claimed = {name: ratio for name, ratio in ratios.items() if abs(ratio - 1) > AS_MUCH - 1}
    if not claimed:
        yield Figure(f"{core}, instructions: none of {len(ratios)} layers claimed", "", "", None)
        return
    worst = max(claimed, key=lambda name: claimed[name])
    yield Figure(
        f"{core}, instructions: {len(claimed)} of {len(ratios)} layers claimed, over the stock runtime",
        f"<= {AS_MUCH}",
        f"{np.median(list(claimed.values())):.2f} (median), worst {claimed[worst]:.2f}: {worst}",
        claimed[worst] <= AS_MUCH,
    )
    only_ours = [
        n for n, a, b in zip(names, stock, ours, strict=True) if n not in ratios and isinstance(b, count.Count)
    ]
    yield Figure(
        f"{core}: layers that the stock runtime refuses and ours runs", "", ", ".join(only_ours) or "none", None
    )


def grid() -> Iterator[tuple[str, Model]]:
    rng = np.random.default_rng(0)
    for size, channels, out_c, kernel in CONVS:
        name = f"{size}x{size}x{channels} k{kernel} to {out_c}"
        shape = (1, size, size, channels)
        for kind in ("INT8", "INT4", "INT2"):
            op = random_conv(rng, in_shape=shape, out_c=out_c, kernel=(kernel, kernel), weight_type=kind)
            yield from variants(f"{name} {kind}", op, rng)
        layer = binary_layer(rng, (out_c, kernel, kernel, channels), padding="SAME")
        yield f"{name} binary", (binary_model(shape, 0.05, -7, [layer]), [any_int8(rng, shape)])
    for rows_, channels, out_c in ROWS:
        for kind in ("INT8", "INT4", "INT2"):
            op = random_fc(rng, rows=rows_, in_c=channels, out_c=out_c, weight_type=kind)
            yield from variants(f"fully connected {rows_}x{channels}x{out_c} {kind}", op, rng)


def variants(name: str, op: SingleOp, rng: np.random.Generator) -> Iterator[tuple[str, Model]]:
    """The layer; where it is int8 also pruned, and with values that fit 4 bits."""
    inputs = [any_int8(rng, op.in_shape)]
    yield name, (op.model(), inputs)
    if op.weight_type != "INT8":
        return
    for keep in (0.25, 0.5):
        weights = op.weights.reshape(op.weights.shape[0], -1, 1, op.weights.shape[-1]).copy()
        prune(weights, rng, keep, outputs=32, channels=4)
        pruned = replace(op, weights=weights.reshape(op.weights.shape))
        yield f"{name} pruned {1 - keep:.0%}", (pruned.model(), inputs)
    yield f"{name} of 4 bits", (replace(op, weights=(op.weights >> 4).astype(np.int8)).model(), inputs)


def any_int8(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.int8]:
    return rng.integers(-128, 128, shape).astype(np.int8)
