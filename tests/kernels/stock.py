"""
What stock LiteRT's reference kernels answer, in a process of their own: they abort on some models.

``python stock.py MODEL INPUT.npy OUTPUT.npy``
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def answer(model: bytes, inputs: NDArray[np.int8], folder: Path) -> NDArray[np.int8]:
    """The output of a model of one input and one output, by the builtin reference resolver, without delegates."""
    given, out, path = folder / "stock_in.npy", folder / "stock_out.npy", folder / "stock.tflite"
    path.write_bytes(model)
    np.save(given, inputs)
    done = subprocess.run(
        [sys.executable, __file__, str(path), str(given), str(out)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result: NDArray[np.int8] = np.load(out)
    return result


def _main(model: str, given: str, out: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_path=model, num_threads=1, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.load(given))
    interpreter.invoke()
    np.save(out, interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
