"""
Invoke models between marks, in the guest: what `deploy.virtual.count` runs under the emulator.

``invoke.py JOB ANSWERS``: JOB is a JSON file ``{"models": [[model, inputs], ...], "kernels", "options",
"warmup", "repeats"}``; for every model one line of JSON goes to the file ANSWERS.  Each model has a process of its own,
forked when numpy and LiteRT are already there: none can see what another left behind, and one that dies harms no other.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib.metadata
import json
import operator
import os
import sys
from collections import deque
from functools import partial
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter, load_delegate

    RUNTIME = "ai-edge-litert"
except ImportError:
    from tflite_runtime.interpreter import Interpreter, load_delegate

    RUNTIME = "tflite-runtime"

MARK = 0x6465706C  # as in counter.c
LABELS = 1024  # for one model


def main() -> None:
    with open(sys.argv[1]) as source:
        job = json.load(source)
    mark = ctypes.CDLL(None).getpriority
    for number, (model, inputs) in enumerate(job["models"]):
        child = os.fork()
        if not child:
            code = 1
            try:
                answer(sys.argv[2], run(job, model, inputs, partial(mark, MARK), number * LABELS))
                code = 0
            except (ValueError, RuntimeError, MemoryError, TypeError, OSError) as error:
                answer(sys.argv[2], {"refused": " ".join(str(error).split()) or type(error).__name__})
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            answer(sys.argv[2], {"signal": os.WTERMSIG(status)})


def answer(path: str, header: dict[str, Any]) -> None:
    with open(path, "a") as sink:
        sink.write(json.dumps(header) + "\n")


def run(job: dict[str, Any], model: str, inputs: str, mark: Any, first: int) -> dict[str, Any]:
    delegates = [load_delegate(job["kernels"], job["options"])] if job["kernels"] else None
    interpreter = Interpreter(model_path=model, num_threads=1, experimental_delegates=delegates)
    with np.load(inputs) as given:
        arrays = [given[f"in{i}"] for i in range(len(given.files))]
    details = interpreter.get_input_details()
    if len(details) != len(arrays):
        raise ValueError(f"{len(arrays)} inputs given; the model has {len(details)}")
    for detail, array in zip(details, arrays, strict=True):
        if tuple(detail["shape"]) != array.shape:
            interpreter.resize_tensor_input(detail["index"], list(array.shape))
    interpreter.allocate_tensors()
    for detail, array in zip(details, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    # The interpreter's own entry, and no byte code of Python between two marks: Python specialises what it has run
    # some eight times, which would change the count of the invocations after that.
    invoke = interpreter._interpreter.Invoke
    steps: list[Any] = [invoke] * job["warmup"]
    for label in range(job["repeats"]):
        steps += [partial(mark, first + label), invoke]
    steps += [partial(mark, first + job["repeats"] + label) for label in range(4)]
    gc.collect()
    gc.disable()
    deque(map(operator.call, steps), maxlen=0)
    digest = hashlib.sha256()
    for detail in interpreter.get_output_details():
        digest.update(np.ascontiguousarray(interpreter.get_tensor(detail["index"])).tobytes())
    return {"runtime": f"{RUNTIME} {importlib.metadata.version(RUNTIME)}", "outputs_sha256": digest.hexdigest()}


main()
