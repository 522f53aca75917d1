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
import re
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CPU_S = 20


@dataclass(frozen=True)
class Job:
    """
    One model with one set of inputs.

    Attributes:
        options: of our delegate; None: the builtin reference kernels, without any delegate.
        rest: who computes what our delegate leaves: "xnnpack", or the builtin "reference" kernels.
        stock: whatever the options say, without our delegate and with XNNPACK, as any application runs it.
        force: KERNELS_FORCE.
    """

    model: bytes
    inputs: list[NDArray[Any]]
    options: dict[str, str] | None = None
    threads: int = 1
    resize: tuple[int, ...] | None = None
    force: str = ""
    rest: str = "xnnpack"
    stock: bool = False


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
    """The results in the jobs' order.  Each job has a process of its own, forked from one that has LiteRT loaded."""
    given, out = folder / "jobs.pickle", folder / "results"
    given.write_bytes(pickle.dumps((str(library), [job.__dict__ for job in jobs])))
    done = subprocess.run(
        [sys.executable, __file__, str(given), str(out)],
        capture_output=True, text=True, errors="replace", check=False, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with out.open("rb") as file:
        return [Result(**pickle.load(file)) for _ in jobs]


def killed_by_us(
    library: Path, jobs: list[Job], folder: Path, environment: dict[str, str] | None = None
) -> tuple[list[Result], list[str]]:
    """
    The results, and the errors of those jobs whose process died though stock LiteRT does nothing wrong with its model.

    LiteRT writes and reads beyond its arrays on some malformed models (`FormatConverter::Populate` on sparsity
    parameters that contradict the shape), and dies of it now and then only, at another place each time.  So a death is
    LiteRT's where its model kills LiteRT without our delegate in one of five runs, or where valgrind sees LiteRT touch
    memory that is not its own; without valgrind such a death counts as ours.
    """
    results = run(library, jobs, folder, environment)
    dead = [(job, result.error) for job, result in zip(jobs, results, strict=True) if result.died]
    alone = run(library, [replace(job, stock=True) for job, _ in dead for _ in range(5)], folder, environment)
    doubtful = [one for i, one in enumerate(dead) if not any(result.died for result in alone[5 * i : 5 * i + 5])]
    breaks = litert_breaks_memory(library, [job for job, _ in doubtful], folder)
    return results, [error for (_, error), its_own in zip(doubtful, breaks, strict=True) if not its_own]


def litert_breaks_memory(library: Path, jobs: list[Job], folder: Path) -> list[bool]:
    """Whether LiteRT, without our delegate, reads or writes memory amiss with each model; False without valgrind."""
    if not jobs or shutil.which("valgrind") is None:
        return [False] * len(jobs)
    given = folder / "suspects.pickle"
    given.write_bytes(pickle.dumps((str(library), [replace(job, stock=True).__dict__ for job in jobs])))
    done = subprocess.run(
        ["valgrind", "--error-limit=no", f"--log-file={folder}/valgrind-%p.log", sys.executable, __file__, str(given),
         os.devnull],
        capture_output=True, text=True, errors="replace", check=True, env={**os.environ, "PYTHONMALLOC": "malloc"},
    )  # fmt: skip
    # Python's own strings and integers look uninitialised to valgrind; only accesses by LiteRT say something.
    at = r"(at 0x\w+: .*vgpreload.*\n.*by|at) 0x\w+: .*ai_edge_litert"  # or copying for LiteRT
    fault = rf"(Invalid (read|write) of size|Process terminating with).*\n(.*\n)?.*{at}"
    logs = [folder / f"valgrind-{pid}.log" for pid in re.findall(r"^job's process (\d+)$", done.stdout, re.MULTILINE)]
    return [re.search(fault, log.read_text(errors="replace")) is not None for log in logs]


def _main(given: str, out: str) -> None:
    from ai_edge_litert import interpreter  # loaded once, for all children

    library, jobs = pickle.loads(Path(given).read_bytes())
    with open(out, "wb") as file:
        for job in jobs:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                # LiteRT turns some sparse tensors with absurd sizes for ever; that is a death like others.
                resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
                with open(writing, "wb") as pipe:
                    pickle.dump(_run_one(interpreter, library, job), pipe)
                os._exit(0)
            os.close(writing)
            print(f"job's process {child}", flush=True)
            with open(reading, "rb") as pipe:
                answer = pipe.read()
            _, status = os.waitpid(child, 0)
            died = {"error": f"wait status {status}", "died": True}
            file.write(answer if status == 0 else pickle.dumps(died))


def _run_one(litert: Any, library: str, job: dict[str, Any]) -> dict[str, Any]:
    os.environ["KERNELS_FORCE"] = job["force"]
    result: dict[str, Any] = {"outputs": [], "error": "", "report": {}}
    resolvers, delegates = litert.OpResolverType, []
    reference = not job["stock"] and (job["options"] is None or job["rest"] == "reference")
    resolver = resolvers.BUILTIN_REF if reference else resolvers.AUTO
    try:
        if job["options"] is not None and not job["stock"]:
            delegates = [litert.load_delegate(library, job["options"])]
        interpreter = litert.Interpreter(
            model_content=job["model"], num_threads=job["threads"], experimental_delegates=delegates,
            experimental_op_resolver_type=resolver,
        )  # fmt: skip
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
    if delegates:
        symbols = ctypes.CDLL(library)
        symbols.deploy_kernels_report.restype = ctypes.c_char_p
        result["report"] = json.loads(symbols.deploy_kernels_report())
    return result


if __name__ == "__main__":
    _main(*sys.argv[1:])
