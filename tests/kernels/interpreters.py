"""
Models run by stock LiteRT, with its reference kernels or with our delegate, many in one child process.

The reference resolver aborts the process on some models, and a delegate under test may too: whoever dies is named.
``python interpreters.py JOBS.pickle RESULTS``
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Job:
    """One model with one set of inputs; ``options`` None: the builtin reference kernels, without any delegate."""

    model: bytes
    inputs: list[NDArray[Any]]
    options: dict[str, str] | None = None
    threads: int = 1
    resize: tuple[int, ...] | None = None
    force: str = ""


@dataclass
class Result:
    """What came out; ``error`` instead where the interpreter raised or the process died."""

    outputs: list[NDArray[Any]] = field(default_factory=list)
    error: str = ""
    died: bool = False
    report: dict[str, Any] = field(default_factory=dict)

    def kernel(self, op: str) -> str | None:
        """The kernel of the only node of that kind."""
        (node,) = [node for node in self.report["nodes"] if node["op"] == op]
        return node["kernel"]  # type: ignore[no-any-return]


def run(library: Path, jobs: list[Job], folder: Path, environment: dict[str, str] | None = None) -> list[Result]:
    """The results in the jobs' order.  A job that kills its process is marked, and a fresh one goes on behind it."""
    results: list[Result] = []
    while len(results) < len(jobs):
        given, out = folder / "jobs.pickle", folder / "results"
        given.write_bytes(pickle.dumps((str(library), [job.__dict__ for job in jobs[len(results) :]])))
        out.write_bytes(b"")
        done = subprocess.run(
            [sys.executable, __file__, str(given), str(out)],
            capture_output=True, text=True, errors="replace", check=False, env={**os.environ, **(environment or {})},
        )  # fmt: skip
        with out.open("rb") as file:
            while True:
                try:
                    results.append(Result(**pickle.load(file)))
                except EOFError:
                    break
        if done.returncode != 0:
            results.append(Result(error=f"exit {done.returncode}: {done.stderr[-2000:]}", died=True))
    return results


def _main(given: str, out: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType, load_delegate

    library, jobs = pickle.loads(Path(given).read_bytes())
    symbols = ctypes.CDLL(library)
    symbols.deploy_kernels_report.restype = ctypes.c_char_p
    with open(out, "ab", buffering=0) as file:
        for job in jobs:
            os.environ["KERNELS_FORCE"] = job["force"]
            result: dict[str, Any] = {"outputs": [], "error": "", "report": {}}
            delegate = interpreter = None
            try:
                if job["options"] is None:
                    interpreter = Interpreter(
                        model_content=job["model"], num_threads=1,
                        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
                    )  # fmt: skip
                else:
                    delegate = load_delegate(library, job["options"])
                    interpreter = Interpreter(
                        model_content=job["model"], num_threads=job["threads"], experimental_delegates=[delegate]
                    )
                if job["resize"]:
                    interpreter.allocate_tensors()
                    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], job["resize"])
                interpreter.allocate_tensors()
                for _ in range(2):  # whatever a first invocation leaves behind must not show in the second
                    for detail, values in zip(interpreter.get_input_details(), job["inputs"], strict=True):
                        interpreter.set_tensor(detail["index"], values)
                    interpreter.invoke()
                result["outputs"] = [
                    np.array(interpreter.get_tensor(detail["index"])) for detail in interpreter.get_output_details()
                ]
            except (RuntimeError, ValueError) as error:
                result["error"] = str(error)
            if delegate is not None:
                result["report"] = json.loads(symbols.deploy_kernels_report())
            del interpreter, delegate
            file.write(pickle.dumps(result))


if __name__ == "__main__":
    _main(*sys.argv[1:])
