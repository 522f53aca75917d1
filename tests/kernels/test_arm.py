"""Every Arm variant equals its reference: the whole table under QEMU's user mode, on the cores it is made for."""

import subprocess
import sys
from pathlib import Path

import pytest

from kernels import build
from tests.conftest import ROOT, need_tool, require_or_skip

pytestmark = pytest.mark.qemu

# Per core what its instruction set adds; each runs the variants of the ones before as well.
CORES = {
    "cortex-a53": ("aarch64", {"neon"}),
    "cortex-a76": ("aarch64", {"neon", "neondot"}),
    "max": ("aarch64", {"neon", "neondot", "neoni8mm"}),
    "cortex-a9": ("armv7", {"armv7neon"}),
}
FAMILIES = {"w8", "w4", "w2", "binary", "tile8", "tile4"}


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    there = (
        subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, check=False).returncode == 0
    )
    require_or_skip(there, "needs the package ziglang: `pip install ziglang`")


@pytest.fixture(scope="module")
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's objects and arm_variants.cc, one static program per architecture."""
    target = str(request.param)
    need_tool({"aarch64": "qemu-aarch64", "armv7": "qemu-arm"}[target], "qemu-user")
    out = tmp_path_factory.mktemp("arm") / f"variants-{target}"
    return build.build(target, out, program=ROOT / "tests" / "kernels" / "arm_variants.cc")


@pytest.mark.parametrize(
    ("program", "core"), [(target, core) for core, (target, _) in CORES.items()], indirect=["program"], ids=list(CORES)
)
def test_every_variant_of_a_core_equals_its_reference_between_guard_pages(program: Path, core: str) -> None:
    target, isas = CORES[core]
    qemu = need_tool({"aarch64": "qemu-aarch64", "armv7": "qemu-arm"}[target], "qemu-user")

    done = subprocess.run([qemu, "-cpu", core, str(program)], capture_output=True, text=True, timeout=600, check=False)

    lines = done.stdout.splitlines()
    assert (0, "equal") == (done.returncode, lines[-1] if lines else ""), done.stdout + done.stderr
    ran = {tuple(line.split()[0].split("_")[1::2]) for line in lines[:-1]}
    # A core that does not find its own instructions would run the plain variants only, and prove nothing.
    assert {(family, isa) for family in FAMILIES for isa in isas if has(family, isa)} == {r for r in ran if has(*r)}


def has(family: str, isa: str) -> bool:
    """Counting bits gains nothing from dot products."""
    return family in FAMILIES and (family != "binary" or isa in ("neon", "armv7neon"))
