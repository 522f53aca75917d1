"""
A folder with a board's C library, Python and runtime, for programs that run under QEMU's user-mode emulators.

It holds Debian's packages for the machine and the wheels that `deploy.runtime` would bring to such a board.  It is made
once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy import runtime
from deploy.paths import cache_dir, held
from deploy.virtual import packages
from deploy.virtual.cache import used

PACKAGES = {
    "aarch64": ("arm64", ["python3.11-minimal", "libpython3.11-stdlib", "libstdc++6"]),
    # Nobody publishes numpy for 32-bit Arm as a wheel.
    "armv7l": ("armhf", ["python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "python3-numpy"]),
}
PYTHON = "3.11.2"  # of Debian 12, as its C library
LIBC = "glibc 2.36"


@dataclass(frozen=True)
class Sysroot:
    """
    Attributes:
        machine: as uname has it.
        place: `place`/tree holds Debian's packages, `place`/wheels numpy and LiteRT.
    """

    machine: str
    place: Path

    @property
    def tree(self) -> Path:
        return self.place / "tree"

    @property
    def python(self) -> Path:
        return self.tree / "usr" / "bin" / "python3.11"

    @property
    def environment(self) -> dict[str, str]:
        """With which `python` finds its library and the runtime."""
        return {
            "PYTHONHOME": str(self.tree / "usr"),  # not /usr: there, qemu-arm's statx sees the host's files
            "PYTHONPATH": f"{self.place / 'wheels'}:{self.tree}/usr/lib/python3/dist-packages",
        }


def sysroot(machine: str, prepare: Callable[[Sysroot], None]) -> Sysroot:
    """
    The sysroot for a machine (``aarch64`` or ``armv7l``), from the cache or made now.

    Args:
        prepare: called once, on a new sysroot that nobody else sees yet.

    Raises:
        ToolMissing, VirtualError: Debian's packages cannot be had.
        RuntimeMissing: the wheels cannot be downloaded.
    """
    identity = {"machine": machine, "python": PYTHON, "libc": LIBC}
    arch, names = PACKAGES[machine]
    key = hashlib.sha256(repr((2, arch, names, PYTHON, runtime.pinned(identity))).encode()).hexdigest()[:16]
    place = cache_dir() / "virtual" / f"sysroot-{machine}-{key}"
    with held(place):
        if not place.is_dir():
            staging = Path(tempfile.mkdtemp(dir=place.parent, prefix=f"{place.name}."))
            try:
                packages.unpack(packages.fetch(arch, names), staging / "tree")
                _link_numpy_s_libraries(staging / "tree" / "usr" / "lib")
                wheels = zipfile.ZipFile(io.BytesIO(runtime.pack_for(identity, f"virtual {machine}")))
                wheels.extractall(staging / "wheels")
                prepare(Sysroot(machine, staging))
                staging.replace(place)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    used(place)
    return Sysroot(machine, place)


def _link_numpy_s_libraries(libraries: Path) -> None:
    """What Debian's packages of linear algebra set up when they are configured."""
    for library in [*libraries.glob("*/blas/lib*.so.3"), *libraries.glob("*/lapack/lib*.so.3")]:
        (library.parent.parent / library.name).symlink_to(f"{library.parent.name}/{library.name}")
