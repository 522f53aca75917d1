"""
How far each layer's integers are from what the float graph computes: signal to quantization noise, in decibels; and how
many of them are not those of the training graph.

The integers are those that stock LiteRT's reference kernels give, in a process of their own, with every tensor kept.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.build.execute import compute, forward
from deploy.build.graph import Floats, Node
from deploy.build.quantized import Quantized
from deploy.build.write import write
from deploy.errors import BuildError

SAMPLES = 32
EQUAL_DB = 150.0
"""What stands for no difference at all; float32 cannot tell more apart."""


Integers = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """
    Attributes:
        values: how many were compared: every value of every tensor of `SAMPLES` samples.
        differing: how many of them are other ones.
        most: by how many steps at most.
    """

    values: int
    differing: int
    most: int

    @property
    def text(self) -> str:
        by = f", by {self.most} at most" if self.differing else ""
        return f"{self.differing:,} of {self.values:,} values are not the training graph's{by}"


def agreement(quantized: Quantized, found: Integers, trained: Mapping[str, Floats]) -> Agreement:
    """
    Args:
        found: what `integers` gave.
        trained: node -> what the training graph computes of the same samples, [N, ...], real values on their grids.
    """
    values, differing, most = 0, 0, 0
    for name, real in trained.items():
        if name not in quantized.grids:  # what stays in float
            continue
        off = np.abs(quantized.grids[name].quantize(real) - found[name].reshape(real.shape).astype(np.int64))
        values, differing, most = values + off.size, differing + int(np.count_nonzero(off)), max(most, int(off.max()))
    return Agreement(values, differing, most)


def deviations(quantized: Quantized, feeds: Mapping[str, Floats], found: Integers) -> dict[str, float]:
    """
    Node -> ``10 log10(sum of squares / sum of squared differences)`` over `SAMPLES` samples, in dB, at most `EQUAL_DB`.

    Each bit of a well used grid is worth 6 dB; a layer far below the ones before it is where accuracy is lost.  Inputs
    of the network count too.

    Args:
        feeds: input -> [N, ...], real values.
        found: what `integers` gave for them.
    """
    decibels: dict[str, float] = {}

    def step(node: Node, inputs: list[Floats]) -> Floats:
        values = compute(node, inputs)
        grid = quantized.grids.get(node.name)
        stored = found[node.name]
        real = stored if grid is None or stored.dtype.kind == "f" else grid.dequantize(stored)
        signal = float(np.square(values, dtype=np.float64).sum())
        noise = float(np.square(values.astype(np.float64) - real).sum())
        least = signal * 10 ** (-EQUAL_DB / 10)
        decibels[node.name] = EQUAL_DB if noise <= least else 10 * float(np.log10(max(signal, 1e-30) / noise))
        return values

    forward(quantized.graph, dict(feeds), step)
    return decibels


def integers(quantized: Quantized, feeds: Mapping[str, Floats]) -> dict[str, np.ndarray]:
    """
    What LiteRT computes for each node, [N, ...].  Weights are written as int8 for this, whose answers are the same.

    Args:
        feeds: input -> [N, ...], real values.

    Raises:
        BuildError: LiteRT does not run the file.
    """
    given: Any = {f"in.{name}": quantized.grids[name].quantize(samples) for name, samples in feeds.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(write(quantized, least_bits=8))
        np.savez(folder / "in.npz", nodes=np.array(list(quantized.graph.nodes)), **given)
        words = [sys.executable, "-m", "deploy.build.deviation", name]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise BuildError(f"LiteRT does not run the quantized model: {lines[-1][:300]}")
        with np.load(folder / "out.npz", allow_pickle=False) as arrays:
            return {key.removeprefix("out."): arrays[key] for key in arrays.files}


def _main(folder: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with np.load(folder / "in.npz", allow_pickle=False) as arrays:
        given = dict(arrays)
    interpreter = Interpreter(
        model_path=str(folder / "model.tflite"),
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    nodes = set(given.pop("nodes").tolist())
    where = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details() if detail["name"] in nodes}
    found: dict[str, list[np.ndarray]] = {name: [] for name in where}
    for sample in range(min(len(values) for values in given.values())):
        for detail in interpreter.get_input_details():
            value = given["in." + detail["name"]][sample : sample + 1]
            interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
        interpreter.invoke()
        for name, index in where.items():
            found[name].append(interpreter.get_tensor(index)[0])
    made: Any = {f"out.{name}": np.stack(values) for name, values in found.items()}
    np.savez(folder / "out.npz", **made)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
