"""
The oracle: stock LiteRT, called as its documentation says, in a process of its own.

``python oracle.py MODEL INPUTS.npz OUTPUTS.npz [SIGNATURE]``: feeds ``s<sample>.<input>`` in the model's order, one
sample after the other, and writes ``s<sample>.<output>``.  Strings travel as fixed-width bytes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def answers(
    model: Path, samples: list[list[Any]], folder: Path, signature: str | None = None
) -> list[list[np.ndarray[Any, Any]]]:
    """What stock LiteRT answers to each of `samples`, in sequence."""
    given, out = folder / "oracle_in.npz", folder / "oracle_out.npz"
    arrays = {
        f"s{s}.{i}": array.astype("S") if array.dtype == object else array
        for s, sample in enumerate(samples)
        for i, array in enumerate(sample)
    }
    np.savez(given, allow_pickle=False, **arrays)
    words = [sys.executable, __file__, str(model), str(given), str(out), *([signature] if signature else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(out, allow_pickle=False) as found:
        return [
            [found[f"s{s}.{i}"] for i in range(sum(key.startswith(f"s{s}.") for key in found.files))]
            for s in range(len(samples))
        ]


def _main(model: str, given: str, out: str, signature: str | None = None) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=1)
    arrays = dict(np.load(given, allow_pickle=False))
    samples = 1 + max(int(key.split(".")[0][1:]) for key in arrays)
    found = {}
    runner = interpreter.get_signature_runner(signature) if signature else None
    for s in range(samples):
        sample = [arrays[f"s{s}.{i}"] for i in range(sum(key.startswith(f"s{s}.") for key in arrays))]
        if runner:
            results = runner(**dict(zip(runner.get_input_details(), sample, strict=True)))
            outputs = [results[name] for name in runner.get_output_details()]
        else:
            for detail, array in zip(interpreter.get_input_details(), sample, strict=True):
                if tuple(detail["shape"]) != array.shape:
                    interpreter.resize_tensor_input(detail["index"], array.shape)
            if s == 0:
                interpreter.allocate_tensors()
            for detail, array in zip(interpreter.get_input_details(), sample, strict=True):
                interpreter.set_tensor(detail["index"], array.astype(object) if array.dtype.kind == "S" else array)
            interpreter.invoke()
            outputs = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
        for i, array in enumerate(outputs):
            found[f"s{s}.{i}"] = array.astype("S") if array.dtype == object else np.asarray(array)
    np.savez(out, allow_pickle=False, **found)


if __name__ == "__main__":
    _main(*sys.argv[1:])
