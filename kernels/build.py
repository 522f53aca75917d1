"""
Build libdeploy_kernels.so: ``python kernels/build.py [--target x86_64|aarch64|armv7] [--out FILE]``.

Cross-compiles from any host with the Clang that comes with the package ``ziglang``, against an old glibc, and links
nothing but libc.  Objects are kept in build/kernels, and compiled again when their source or any header has changed.
``--sanitize`` builds for this machine with its own compiler and AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / "build" / "kernels"
STALE_S = 24 * 3600
SKIPPED = {"bench"}  # programs and probes of their own
TARGETS = {
    # glibc 2.17 is that of manylinux2014; armv7 boards have at least Debian 10's 2.28, and their kernels need NEON.
    "x86_64": ["-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64"],
    "aarch64": ["-target", "aarch64-linux-gnu.2.17", "-mcpu=generic"],
    "armv7": ["-target", "arm-linux-gnueabihf.2.28", "-mcpu=cortex_a9"],
}
COMPILE = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffunction-sections",
    "-Wall",
    "-Wextra",
    "-Wshadow",
    "-Werror",
]
LINK = [
    "-shared",
    "-nostdlib++",
    "-Wl,-z,nodelete",
    "-Wl,-z,defs",
    "-Wl,--gc-sections",
    "-Wl,-soname,libdeploy_kernels.so",
]


class BuildFailed(Exception):
    """The compiler's own words."""


def build(
    target: str,
    out: Path,
    *,
    objects: Path = CACHE,
    sanitize: bool = False,
    jobs: int | None = None,
    program: Path | None = None,
) -> Path:
    """
    Build the library for `target` (a key of TARGETS) into `out` and return `out`.  Several builds may go on at once.

    Args:
        objects: where compiled files are kept between builds.
        program: a C++ file; `out` becomes a static program of it and the library's objects, for an emulator.

    Raises:
        BuildFailed: a compiler is missing or reports an error.
    """
    if sanitize:
        compiler = [os.environ.get("CXX", "g++")]
        # Unoptimised, it compiles in a third of the time.  GCC 12 sees uninitialised registers in its own intrinsics.
        flags = [*COMPILE, "-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
                 "-Wno-maybe-uninitialized", "-Wno-uninitialized"]  # fmt: skip
        link = [*LINK[2:], "-shared", "-fsanitize=address,undefined"]
        link.remove("-Wl,-z,defs")  # the sanitizers' functions come with the program that loads us
    else:
        compiler = [sys.executable, "-m", "ziglang", "c++", *TARGETS[target]]
        flags, link = [*COMPILE, "-g0"], [*LINK, "-s"]
    headers = b"".join(file.read_bytes() for file in sorted(HERE.rglob("*.h")))
    folder = objects / (f"{target}-sanitize" if sanitize else target)
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path, isa_flags: Sequence[str]) -> Path:
        command = [*compiler, *flags, *isa_flags, f"-I{HERE}", "-c", str(source)]
        digest = hashlib.sha256(repr(command).encode() + headers + source.read_bytes()).hexdigest()[:16]
        name = str(source.relative_to(HERE)).replace(os.sep, "_").removesuffix(".cc")
        obj = folder / f"{name}-{digest}.o"
        if not obj.exists():
            part = obj.with_suffix(f".{os.getpid()}.part")
            _run([*command, "-o", str(part)])
            part.replace(obj)
        obj.touch()
        return obj

    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        compiled = list(pool.map(lambda pair: compile_one(*pair), sources(target)))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(f".{os.getpid()}.part")
    if program:
        # The objects ask nothing of a C library in which glibc and musl differ, and only musl comes as a static one.
        triple = TARGETS[target][1].split(".")[0].replace("gnu", "musl")
        static = [*compiler[:4], "-target", triple, TARGETS[target][2], "-static", "-nostdlib++"]
        _run([*static, *flags, f"-I{HERE}", f"-I{HERE.parent}", str(program), *map(str, compiled), "-o", str(part)])
    else:
        _run([*compiler, *link, *map(str, compiled), "-o", str(part), "-lpthread"])
    part.replace(out)
    for stale in set(folder.glob("*.o")) - set(compiled):
        # Another build may be about to link what looks stale to us.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - stale.stat().st_mtime > STALE_S:
                stale.unlink()
    return out


def sources(target: str) -> Iterator[tuple[Path, list[str]]]:
    """Each source that `target` needs, with the flags that the suffix of its name asks for (isas.txt)."""
    isas = {}
    for line in (HERE / "isas.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            suffix, architectures, flags = (part.strip() for part in line.split("|"))
            isas[suffix] = (architectures.split(), flags.split())
    for file in sorted(HERE.rglob("*.cc")):
        if file.relative_to(HERE).parts[0] in SKIPPED:
            continue
        architectures, flags = isas.get(file.stem.rpartition("_")[2], (list(TARGETS), []))
        if target in architectures:
            yield file, flags


def host_target() -> str:
    """The key of TARGETS for this machine."""
    machine = platform.machine()
    return {"AMD64": "x86_64", "arm64": "aarch64", "armv7l": "armv7"}.get(machine, machine)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise BuildFailed(f"there is no compiler {command[0]}") from None
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build libdeploy_kernels.so.")
    parser.add_argument("--target", choices=TARGETS, default=host_target())
    parser.add_argument("--out", type=Path, help="default: build/kernels/<target>/libdeploy_kernels.so")
    parser.add_argument("--objects", type=Path, default=CACHE, help="where compiled files are kept (build/kernels)")
    parser.add_argument("--sanitize", action="store_true", help="for this machine, with its own C++ compiler ($CXX)")
    arguments = parser.parse_args()
    name = f"{arguments.target}-sanitize" if arguments.sanitize else arguments.target
    out = arguments.out or arguments.objects / name / "libdeploy_kernels.so"
    try:
        build(arguments.target, out, objects=arguments.objects, sanitize=arguments.sanitize)
    except BuildFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
