"""
The kernel's own drivers of power sensors, for the very kernel of an image.

No Debian kernel has them built: they are compiled out of tree from Debian's kernel source against Debian's headers,
without root.  Behind them stands `i2c-stub`, the kernel's chip that is none, with one line added: its bus takes the
device tree's node, so that drivers bind by themselves, with the labels and shunts of the tree.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from deploy.errors import VirtualError
from deploy.paths import cache_dir, held
from deploy.virtual import packages
from deploy.virtual.cache import used
from deploy.virtual.image import Image

RECIPE = 1  # part of the modules' name in the cache; raise it when this file changes what is made
BUS = "deploy,i2c-stub"  # `compatible` of the bus in the device tree
SOURCES = [
    "drivers/i2c/i2c-stub.c",
    "drivers/hwmon/ina3221.c",
    "drivers/hwmon/ina2xx.c",
    "drivers/hwmon/ina238.c",
    "drivers/hwmon/pmbus/pmbus_core.c",
    "drivers/hwmon/pmbus/pmbus.h",
    "drivers/hwmon/pmbus/irps5401.c",
]
OURS = Path(__file__).with_name("guest") / "vcio.c"
MODULES = sorted(Path(name).stem for name in [*SOURCES, "vcio.c"] if name.endswith(".c"))
_ADDED = (
    "\tret = i2c_add_adapter(&stub_adapter);",
    f'\tstub_adapter.dev.of_node = of_find_compatible_node(NULL, NULL, "{BUS}");\n',
)
# Debian's name -> the kernel's, GNU's prefix, and the package of the compiler.
_CROSS = {"arm64": ("arm64", "aarch64-linux-gnu-", "gcc-aarch64-linux-gnu")}


def build(image: Image, note: Callable[[str], None]) -> Path:
    """
    A folder with `MODULES` as ``.ko`` for the kernel of `image`, from the cache or made now.

    Args:
        note: told in a few words what takes long.

    Raises:
        ToolMissing: a compiler or a tool; with the command that installs it.
        VirtualError: there is no such kernel in Debian's archive any more, or the compiler refuses.
    """
    if image.arch not in _CROSS:
        raise VirtualError(f"no sensor modules are made for {image.arch} kernels")
    key = hashlib.sha256(repr((RECIPE, SOURCES, _ADDED, OURS.read_text())).encode()).hexdigest()[:12]
    built = cache_dir() / "virtual" / "modules" / f"{image.kernel_release}-{key}"
    with held(built):
        if built.is_dir():
            used(built)
            return built
        prefix, package = _CROSS[image.arch][1:]
        packages.need(f"{prefix}gcc", package)
        packages.need("make", "make")
        packages.need("xz", "xz-utils")
        with tempfile.TemporaryDirectory(dir=built.parent, prefix=f".{built.name}.") as folder:
            staging = Path(folder)
            note(f"fetching the kernel's source and headers for {image.kernel_release}")
            _headers(image, staging / "headers")
            note("compiling the drivers of the power sensors")
            made = _compile(image, staging)
            made.rename(built)
        return built


def _version(image: Image) -> str:
    """Of Debian's packages, as ``6.1.192-2``."""
    described = json.loads((image.folder / "image.json").read_text())["packages"]
    version: str = described[f"linux-image-{image.kernel_release}"]
    return version


def _headers(image: Image, into: Path) -> None:
    """Headers of the guest's machine and build programs of this one, in one tree; and the sources."""
    version, series = _version(image), image.kernel_release.rsplit("-", 2)[0].rsplit(".", 1)[0]  # 6.1.0-56-arm64
    here = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=False).stdout.strip()
    fetched = packages.fetch(
        image.arch, [f"linux-headers-{image.kernel_release}={version}"], leave_out=r"(?!linux-headers-).*"
    )
    tools = [f"linux-kbuild-{series}={version}", f"linux-source-{series}={version}"]
    fetched += packages.fetch(here or "amd64", tools, leave_out=r"(?!linux-(kbuild|source)-).*")
    packages.unpack(fetched, into)
    # It names the other tree by where it would be installed.
    makefile = into / "usr" / "src" / f"linux-headers-{image.kernel_release}" / "Makefile"
    makefile.write_text(makefile.read_text().replace("/usr/src/", f"{into}/usr/src/"))


def _compile(image: Image, staging: Path) -> Path:
    architecture, prefix, _ = _CROSS[image.arch]
    sources, work = staging / "headers" / "usr" / "src", staging / "modules"
    work.mkdir()
    (packed,) = sources.glob("linux-source-*.tar.xz")
    top = packed.name.removesuffix(".tar.xz")
    # --occurrence: stop at the last one, and do not unpack the gigabyte behind it.
    _run(["tar", "-xJf", packed, "-C", staging, "--occurrence=1", *(f"{top}/{name}" for name in SOURCES)])
    for name in SOURCES:
        shutil.copy(staging / top / name, work)
    shutil.copy(OURS, work)
    stub = work / "i2c-stub.c"
    place, line = _ADDED
    if stub.read_text().count(place) != 1:
        raise VirtualError("the kernel's i2c-stub.c has changed: the bus cannot take a node of the device tree")
    stub.write_text("#include <linux/of.h>\n" + stub.read_text().replace(place, line + place))
    objects = " ".join(f"{name}.o" for name in MODULES)
    (work / "Kbuild").write_text(f"obj-m := {objects}\nccflags-y += -I$(src)\n")
    tree = sources / f"linux-headers-{image.kernel_release}"
    variables = [f"ARCH={architecture}", f"CROSS_COMPILE={prefix}", f"CC={prefix}gcc"]
    _run(["make", "-s", f"-j{os.cpu_count() or 1}", "-C", tree, f"M={work}", *variables, "modules"])
    made = staging / "made"
    made.mkdir()
    for name in MODULES:
        _run([f"{prefix}strip", "--strip-debug", "-o", made / f"{name}.ko", work / f"{name}.ko"])
    return made


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        said = errors[0].strip() if errors else "no reason given"
        raise VirtualError(f"the sensor modules cannot be made: {Path(command[0]).name} says: {said}")
