"""
Executed instructions, exactly: the deterministic cost of a model or a program on an Arm core.

QEMU's user-mode emulator runs the board's own Python, the real LiteRT wheel and, if asked, our kernels; a plugin of
ours (`guest/counter.c`) counts what is executed between marks.  The same model, inputs and libraries give the same
number on every machine and every day.  It is a count of user-space instructions and no time: a multiply over sixteen
lanes counts as much as a move, and caches do not exist.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.data import Array
from deploy.errors import CountError, DeployError, ModelRefused, RunnerKilled, UsageError, nearest
from deploy.kernels import library_for
from deploy.paths import cache_dir, held, whole
from deploy.virtual.cache import used
from deploy.virtual.sysroot import Sysroot, sysroot

GUEST = Path(__file__).with_name("guest")
WARM_UP = 3  # invocations before those that count; the runtime settles within two
REPEATS = 3
LABELS = 1024  # as in guest/invoke.py


@dataclass(frozen=True)
class Cpu:
    """
    A core as the emulator and the runtime know it.

    Attributes:
        machine: as uname has it.
        model: QEMU's name.
        part: of MIDR, by which XNNPACK picks its micro-kernels.
        features: as /proc/cpuinfo lists them, those of QEMU 7.2's model.
    """

    machine: str
    model: str
    part: int
    features: str


_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
CPUS = {
    "a53": Cpu("aarch64", "cortex-a53", 0xD03, _V8),
    "a57": Cpu("aarch64", "cortex-a57", 0xD07, _V8),
    "a72": Cpu("aarch64", "cortex-a72", 0xD08, _V8),
    "a76": Cpu("aarch64", "cortex-a76", 0xD0B, f"{_V8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp ssbs"),
    "a9": Cpu("armv7l", "cortex-a9", 0xC09, "half thumb fastmult vfp edsp neon vfpv3 tls vfpd32"),
}


@dataclass(frozen=True)
class Count:
    """
    What one invocation of a model costs.

    Attributes:
        instructions: executed in user space by one invocation, inputs already set; the median of `samples`.
        samples: of the invocations that were counted, in order.  They are equal unless the model keeps a state or its
            work depends on it.
        outputs_sha256: of all output tensors' bytes after the last invocation, in the model's order.
        cpu: QEMU's name of the core.
        runtime: as in ``ai-edge-litert 2.3.0``.
        kernels: SHA-256 of the library of kernels, None for the stock runtime.
        method: how it was counted.
    """

    instructions: int
    samples: tuple[int, ...]
    outputs_sha256: str
    cpu: str
    runtime: str
    kernels: str | None
    method: str


def count_instructions(
    model: bytes,
    inputs: Sequence[Array],
    cpu: str = "a53",
    kernels: Path | None = None,
    options: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Count:
    """
    Count the instructions of one invocation of a model.

    Args:
        model: a .tflite file.
        inputs: one array for each input, in the model's order.
        cpu: a name of `CPUS`.
        kernels: the library to load as a delegate, built for the machine of `cpu`.
        options: given to that delegate.
        environment: for the guest, as in ``{"KERNELS_FORCE": "reference"}``.

    Raises:
        CountError: the emulator or a compiler is missing, or what was counted is not exact.
        ModelRefused: the runtime or the delegate says no; with its reason.
        RunnerKilled: the model kills the process that runs it.
        UsageError: no such `cpu`.
    """
    found = count_models([(model, inputs)], cpu, kernels, options, environment)[0]
    if isinstance(found, DeployError):
        raise found
    return found


def count_for(identity: Mapping[str, Any], model: bytes, inputs: Sequence[Array], kernels_mode: str = "off") -> Count:
    """
    Count one invocation as a board's own core would execute it: with its XNNPACK micro-kernels, and with our kernels.

    The runtime is the one of Debian 12 on that machine, the same that virtual boards have, and in any case named in
    the answer.

    Args:
        identity: of the board, as its agent reports it (`devices.facts.identity`).
        kernels_mode: "off", or what the delegate is told, see `deploy.kernels.MODES`.

    Raises:
        CountError: no core like the board's can be emulated; or as `count_instructions`, with its other errors.
        KernelsMissing: `kernels_mode` is not "off", and they do not build for the board.
    """
    cpu = cpu_of(identity)
    if kernels_mode == "off":
        return count_instructions(model, inputs, cpu)
    with tempfile.TemporaryDirectory(prefix="deploy-count-") as folder:
        library = Path(folder) / "libdeploy_kernels.so"
        library.write_bytes(library_for(dict(identity)))
        return count_instructions(model, inputs, cpu, library, {"mode": kernels_mode})


def cpu_of(identity: Mapping[str, Any]) -> str:
    """
    The name in `CPUS` of a board's core, by the part number that /proc/cpuinfo gives.

    Raises:
        CountError: it is none of them.
    """
    part = str(identity.get("cpu_part"))
    for name, core in CPUS.items():
        if identity.get("cpu_implementer") == "0x41" and part == f"{core.part:#05x}":
            return name
    shown = identity.get("cpu") or part
    raise CountError(
        f"the instructions of {shown} on {identity.get('machine')} cannot be counted: only of {', '.join(CPUS)}",
        "`deploy profile BUNDLE --count --cpu a76` counts without a board",
    )


def count_models(
    models: Sequence[tuple[bytes, Sequence[Array]]],
    cpu: str = "a53",
    kernels: Path | None = None,
    options: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Count | ModelRefused | RunnerKilled]:
    """
    As `count_instructions`, for many models at the price of one start of the guest.

    Every model runs in a process of its own and is counted as if it were alone.

    Returns:
        For each model its count, or why there is none.
    """
    core = core_named(cpu)
    with tempfile.TemporaryDirectory(prefix="deploy-count-") as folder:
        place = Path(folder)
        listed: list[tuple[str, str]] = []
        for number, (model, inputs) in enumerate(models):
            files = place / f"{number}.tflite", place / f"{number}.npz"
            files[0].write_bytes(model)
            np.savez(files[1], allow_pickle=False, **{f"in{i}": array for i, array in enumerate(inputs)})
            listed.append((str(files[0]), str(files[1])))
        job = {
            "models": listed,
            "kernels": str(kernels.resolve()) if kernels else None,
            "options": dict(options or {}),
            "warmup": WARM_UP,
            "repeats": REPEATS,
        }
        (place / "job.json").write_text(json.dumps(job))
        answers = place / "answers"
        answers.touch()
        built = sysroot(core.machine, functools.partial(_compile, core))
        marks = _emulate(
            core,
            [*_python(built), str(GUEST / "invoke.py"), str(place / "job.json"), str(answers)],
            {**built.environment, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", **(environment or {})},
            built,
        )
        told = [json.loads(line) for line in answers.read_text().splitlines()]
    if len(told) != len(models):
        raise CountError(f"{core.model}: the guest answered for {len(told)} of {len(models)} models")
    digest = hashlib.sha256(kernels.read_bytes()).hexdigest() if kernels else None
    return [_counted(core, number, answer, marks, digest) for number, answer in enumerate(told)]


def _python(built: Sysroot) -> list[str]:
    # No site (-S): the emulator shows this machine's files where the sysroot has none, its packages among them.
    return [str(built.python), "-S"]


def _compile(core: Cpu, built: Sysroot) -> None:
    """Write the byte code of what the guest imports, so that it starts in one second and not in three."""
    imports = "import numpy, ctypes, gc, hashlib, importlib.metadata, json, operator\n"
    runtime = "ai_edge_litert" if core.machine == "aarch64" else "tflite_runtime"
    _emulate(core, [*_python(built), "-c", f"{imports}import {runtime}.interpreter"], built.environment, built)


def _counted(
    core: Cpu, number: int, answer: dict[str, str], marks: list[Mark], kernels: str | None
) -> Count | ModelRefused | RunnerKilled:
    if "signal" in answer:
        return RunnerKilled(f"the model killed its process with signal {answer['signal']} on an emulated {core.model}")
    if "refused" in answer:
        return ModelRefused(f"{answer['refused']} (on an emulated {core.model})")
    mine = [mark for mark in marks if mark.label // LABELS == number]
    if any(mark.threads != mine[0].threads for mark in mine):
        raise CountError(f"{core.model}: the runtime started a thread; only one can be counted exactly")
    steps = [after.executed - before.executed for before, after in itertools.pairwise(mine)]
    empty = steps[-1]  # what two marks with nothing in between cost
    samples = tuple(step - empty for step in steps[:REPEATS])
    return Count(
        instructions=sorted(samples)[REPEATS // 2],
        samples=samples,
        outputs_sha256=answer["outputs_sha256"],
        cpu=core.model,
        runtime=answer["runtime"],
        kernels=kernels,
        method=f"{emulator(core.machine).name} {_version(emulator(core.machine))}, TCG plugin, user space",
    )


@dataclass(frozen=True)
class Mark:
    """
    Attributes:
        label: what the guest gave.
        executed: instructions since the start, over all threads.
        threads: how many there have been so far; `executed` is exact while this is 1.
    """

    label: int
    executed: int
    threads: int


def count_program(program: Path, arguments: Sequence[str] = (), cpu: str = "a53") -> list[Mark]:
    """
    Run a program, statically linked for the machine of `cpu`, and return its marks (`guest/mark.h`) in order.

    The difference of two marks is what was executed in between, and some five instructions for the mark itself.

    Raises:
        CountError: the emulator or a compiler is missing, or the program fails; with the last line it wrote.
        UsageError: no such `cpu`.
    """
    return _emulate(core_named(cpu), [str(program.resolve()), *arguments], {}, None)


def core_named(cpu: str) -> Cpu:
    """One of `CPUS`, or UsageError with what there is."""
    try:
        return CPUS[cpu]
    except KeyError:
        raise UsageError(f"no core {cpu!r} to count on{nearest(cpu, CPUS)}") from None


def emulator(machine: str) -> Path:
    """The user-mode emulator that takes plugins, or CountError with how to get it."""
    name = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm"}[machine]
    found = shutil.which(name)
    if found is None:
        raise CountError(f"no {name} here", "`sudo apt install qemu-user` (qemu-user-static takes no plugins)")
    return Path(found)


@functools.cache
def _version(path: Path) -> str:
    first = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return first.split(" version ")[-1].split(" ")[0]


def _emulate(core: Cpu, command: list[str], environment: Mapping[str, str], built: Sysroot | None) -> list[Mark]:
    with tempfile.TemporaryDirectory(prefix="deploy-count-") as folder, _root(core, built, Path(folder)) as root:
        marks = Path(folder) / "marks"
        marks.touch()
        qemu = [str(emulator(core.machine)), "-L", str(root), "-cpu", core.model, "-seed", "1"]
        qemu += ["-plugin", f"{plugin()},out={marks}"]
        # No ASLR, and none of the caller's environment: where the stack begins moves what is aligned on it.
        fixed = ["setarch", "-R"] if shutil.which("setarch") else []
        done = subprocess.run(
            [*fixed, *qemu, *command],
            env=dict(environment),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
            raise CountError(f"{Path(command[0]).name} on {core.model} ended with {done.returncode}: {said[-1]}")
        return [Mark(*map(int, line.split())) for line in marks.read_text().splitlines()]


@contextlib.contextmanager
def _root(core: Cpu, built: Sysroot | None, folder: Path) -> Iterator[Path]:
    """
    What the emulator shows the guest as ``/``: the sysroot, and the files by which a program learns what core it is on.

    Where this folder has nothing, the guest sees the host's; without these files that would be an x86's.
    """
    root = folder / "root"
    cpus = root / "sys" / "devices" / "system" / "cpu"
    (root / "proc").mkdir(parents=True)
    (root / "etc").mkdir()
    cpus.mkdir(parents=True)
    (root / "etc" / "ld.so.cache").touch()
    (root / "proc" / "cpuinfo").write_text(cpuinfo(core))
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0\n")
    for entry in built.tree.iterdir() if built else ():
        if entry.name not in ("proc", "etc", "sys"):
            (root / entry.name).symlink_to(entry)
    yield root


def cpuinfo(core: Cpu) -> str:
    """/proc/cpuinfo of one such core."""
    return (
        "processor\t: 0\nBogoMIPS\t: 38.40\n"
        f"Features\t: {core.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: {8 if core.machine == 'aarch64' else 7}\n"
        f"CPU variant\t: 0x0\nCPU part\t: {core.part:#05x}\nCPU revision\t: 4\n\n"
    )


def plugin() -> Path:
    """
    `guest/counter.c` as a shared library of this machine, from the cache or built now.

    Raises:
        CountError: no compiler, or it refuses.
    """
    source = GUEST / "counter.c"
    key = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    built = cache_dir() / "virtual" / f"counter-{key}.so"
    with held(built):
        if built.is_file():
            used(built)
            return built
        gcc = shutil.which("gcc")
        compiler = [gcc] if gcc else [sys.executable, "-m", "ziglang", "cc"]
        with whole(built) as staging:
            done = subprocess.run(
                [*compiler, "-shared", "-fPIC", "-O2", "-o", str(staging), str(source)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise CountError(f"the counter does not compile: {done.stderr.strip().splitlines()[0]}")
    return built
