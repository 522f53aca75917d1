"""
The kernel of the PYNQ-Z2: Debian has none for the Zynq, so it is built from Debian's source, once, and cached.

It takes some minutes, as long as nothing of it changes, once for a cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import VirtualError
from deploy.paths import cache_dir, held
from deploy.virtual import packages
from deploy.virtual.cache import used

RECIPE = 1
SOURCE = "linux-source-6.1"
CROSS = "arm-linux-gnueabihf-"
BOARD = Path(__file__).with_name("board")

_LEFT_OUT = ("Documentation/*/*", "tools/testing")  # its Kconfig names files everywhere else
_TOOLS = (
    ("make", "make"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc"), ("xz", "xz-utils"),
    (f"{CROSS}gcc", "gcc-arm-linux-gnueabihf"), ("gcc", "gcc libc6-dev"),
)  # fmt: skip

Note = Callable[[str], None]


@dataclass(frozen=True)
class Kernel:
    """
    Attributes:
        folder: with ``kernel``, ``tree.dtb`` and ``modules/``.
    """

    folder: Path

    @property
    def release(self) -> str:
        return (self.folder / "release").read_text().strip()


def ensure(note: Note) -> Kernel:
    """
    The kernel, from the cache or built now.

    Raises:
        ToolMissing: a compiler, or what a kernel's build needs, is not here.
        VirtualError: the source cannot be had, or does not build; with the last error.
    """
    texts = [(BOARD / name).read_text() for name in ("zynq.config", "pynq-z2.dts")]
    key = hashlib.sha256("\0".join([str(RECIPE), SOURCE, *texts]).encode()).hexdigest()[:12]
    folder = cache_dir() / "virtual" / "kernels" / f"zynq-{key}"
    with held(folder):
        if not (folder / "release").is_file():
            for tool, package in _TOOLS:
                packages.need(tool, package)
            shutil.rmtree(folder, ignore_errors=True)
            for left in folder.parent.glob(f".{folder.name}.*"):  # by one that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
                made = _build(Path(scratch), note)
                made.rename(folder)
        used(folder)
    return Kernel(folder)


def _build(scratch: Path, note: Note) -> Path:
    note("fetching the kernel's source (140 MB)")
    (package,) = packages.fetch("armhf", [SOURCE], rf"(?!{SOURCE}$).*")
    note("unpacking it")
    packages.unpack([package], scratch / "deb")
    source = scratch / "source"
    source.mkdir()
    left_out = [f"--exclude={SOURCE}/{name}" for name in _LEFT_OUT]
    _run(["tar", "xJf", str(scratch / f"deb/usr/src/{SOURCE}.tar.xz"), "-C", str(source), *left_out], scratch)
    tree = source / SOURCE
    note("building the kernel: 5 to 15 minutes on two cores, this once")
    shutil.copyfile(BOARD / "pynq-z2.dts", tree / "arch/arm/boot/dts/deploy-pynq-z2.dts")
    make = ["make", "-s", "ARCH=arm", f"CROSS_COMPILE={CROSS}", f"-j{os.cpu_count() or 2}"]
    _run([*make, f"KCONFIG_ALLCONFIG={BOARD / 'zynq.config'}", "allnoconfig"], tree)
    _run([*make, "zImage", "modules", "deploy-pynq-z2.dtb"], tree)
    made = scratch / "made"
    (made / "modules").mkdir(parents=True)
    shutil.copyfile(tree / "arch/arm/boot/zImage", made / "kernel")
    shutil.copyfile(tree / "arch/arm/boot/dts/deploy-pynq-z2.dtb", made / "tree.dtb")
    for path in tree.rglob("*.ko"):
        shutil.copyfile(path, made / "modules" / path.name)
    shutil.copyfile(tree / ".config", made / "config")
    shutil.copyfile(tree / "include/config/kernel.release", made / "release")
    return made


def _run(words: list[str], folder: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "KBUILD_BUILD_USER": "deploy", "KBUILD_BUILD_HOST": "deploy"}
    environment["KBUILD_BUILD_TIMESTAMP"] = "2024-01-01"
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "rror" in line] or done.stderr.strip().splitlines()
        raise VirtualError(f"the kernel does not build: {(errors or ['no reason given'])[0]}")
