"""Which wheels fit a board, and what of them is sent."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.tags import Tag, cpython_tags

from deploy.errors import RuntimeMissing
from deploy.runtime import LOCK, _locked_for, _pack, _platforms, pack_for, pinned


def board(machine: str, python: str, libc: str | None = "glibc 2.31") -> dict[str, Any]:
    return {"machine": machine, "python": python, "libc": libc, "implementation": "cpython"}


@pytest.mark.parametrize(
    ("machine", "python", "expected"),
    [
        ("aarch64", "3.11.2", ["ai-edge-litert==2.3.0", "numpy==2.4.6"]),
        ("x86_64", "3.11.2", ["ai-edge-litert==2.3.0", "numpy==2.4.6"]),
        ("x86_64", "3.9.2", ["ai-edge-litert==2.1.0", "numpy==2.0.2"]),  # the last with wheels for 3.9
        ("aarch64", "3.9.18", ["ai-edge-litert==2.1.0", "numpy==2.0.2"]),
        ("aarch64", "3.10.12", ["ai-edge-litert==2.3.0", "numpy==2.2.6"]),
        ("x86_64", "3.13.1", ["ai-edge-litert==2.3.0", "numpy==2.5.5"]),
        ("armv7l", "3.10.4", ["tflite-runtime==2.14.0"]),  # a PYNQ: its image has a numpy, and PyPI has none
        ("riscv64", "3.11.2", []),
    ],
)
def test_the_lock_is_read_for_the_board_and_not_for_this_machine(
    machine: str, python: str, expected: list[str]
) -> None:
    assert expected == pinned(board(machine, python))


def test_every_line_for_pip_is_pinned_with_hashes_and_has_no_marker() -> None:
    """pip would hold a marker against the Python that it runs on."""
    for machine in ("aarch64", "x86_64", "armv7l"):
        for line in _locked_for(board(machine, "3.11.2")):
            assert re.fullmatch(r"[a-z-]+==[0-9.]+( --hash=sha256:[0-9a-f]{64})+", line), line


def test_every_hash_of_the_lock_belongs_to_some_board() -> None:
    """A marker that is misread would leave its package out silently."""
    chosen = {
        line
        for machine in ("aarch64", "x86_64", "armv7l")
        for python in ("3.9.2", "3.10.2", "3.11.2", "3.12.2")
        for line in _locked_for(board(machine, python))
    }

    assert set(re.findall(r"sha256:\w+", LOCK.read_text())) == {
        digest for line in chosen for digest in re.findall(r"sha256:\w+", line)
    }


@pytest.mark.parametrize(
    ("libc", "newest"),
    [("glibc 2.31", 31), ("glibc 2.36", 36), ("glibc 2.17", 17), (None, 17), ("musl 1.2", 17)],
)
def test_platforms_go_from_the_boards_own_c_library_down_to_the_oldest_of_the_wheels(
    libc: str | None, newest: int
) -> None:
    """PEP 600: a wheel for an older glibc runs on a newer one, never the other way round."""
    expected = [f"manylinux_2_{minor}_aarch64" for minor in range(newest, 16, -1)]

    # 2.17 has a name of its own besides.
    assert expected[:-1] == _platforms(board("aarch64", "3.11.2", libc))[: len(expected) - 1]
    assert "manylinux2014_aarch64" == _platforms(board("aarch64", "3.11.2", libc))[-1]
    assert len(set(_platforms(board("aarch64", "3.11.2", libc)))) in (len(expected), len(expected) + 1)


# What the package index offered when the lock was made: distribution, Pythons, platforms; for x86_64 as for aarch64.
OFFERED = [
    ("ai-edge-litert==2.1.0", ("3.9", "3.10", "3.11", "3.12", "3.13"), ("manylinux_2_27_aarch64",)),
    ("ai-edge-litert==2.3.0", ("3.10", "3.11", "3.12", "3.13", "3.14"), ("manylinux_2_27_aarch64",)),
    ("numpy==2.0.2", ("3.9", "3.10", "3.11", "3.12"), ("manylinux_2_17_aarch64", "manylinux2014_aarch64")),
    ("numpy==2.2.6", ("3.10", "3.11", "3.12", "3.13"), ("manylinux_2_17_aarch64", "manylinux2014_aarch64")),
    ("numpy==2.4.6", ("3.11", "3.12", "3.13", "3.14"), ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64")),
    ("numpy==2.5.5", ("3.12", "3.13", "3.14", "3.15"), ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64")),
    ("tflite-runtime==2.14.0", ("3.8", "3.9", "3.10", "3.11"), ("manylinux_2_34_armv7l",)),
]


def fitting(machine: str, python: str, libc: str) -> list[str]:
    """Of the distributions that are pinned for a board, those of which a wheel fits it; the tags are packaging's."""
    identity = board(machine, f"{python}.1", libc)
    version = tuple(map(int, python.split(".")))
    tags = set(cpython_tags(version, platforms=_platforms(identity)))
    wheels = [
        (name, Tag(f"cp{offered.replace('.', '')}", f"cp{offered.replace('.', '')}", platform))
        for name, pythons, platforms in OFFERED
        for offered in pythons
        for platform in platforms
        if name in pinned(identity)
    ]
    return sorted({name for name, tag in wheels if tag in tags})


@pytest.mark.parametrize("libc", ["glibc 2.31", "glibc 2.35", "glibc 2.36"])  # Ubuntu 20.04, 22.04, Debian 12
@pytest.mark.parametrize("python", ["3.9", "3.10", "3.11", "3.12", "3.13"])
def test_every_64_bit_arm_from_ubuntu_20_04_on_has_wheels_of_all_that_is_pinned_for_it(python: str, libc: str) -> None:
    assert sorted(pinned(board("aarch64", f"{python}.1", libc))) == fitting("aarch64", python, libc)
    assert 2 == len(fitting("aarch64", python, libc))


@pytest.mark.parametrize(
    ("python", "libc", "there"),
    [
        ("3.9", "glibc 2.31", False),  # Debian 11: the wheel wants 2.34
        ("3.10", "glibc 2.35", True),  # PYNQ 3.0, which is an Ubuntu 22.04
        ("3.11", "glibc 2.36", True),
        ("3.12", "glibc 2.39", False),  # Ubuntu 24.04: nobody built it for a Python this new
        ("3.13", "glibc 2.41", False),
    ],
)
def test_a_32_bit_arm_has_a_wheel_for_glibc_2_34_to_python_3_11_alone(python: str, libc: str, there: bool) -> None:
    assert (["tflite-runtime==2.14.0"] if there else []) == fitting("armv7l", python, libc)


def test_the_offers_above_are_those_of_the_lock() -> None:
    """Else they would tell of wheels that nobody is sent any more."""
    assert {entry.split()[0] for entry in LOCK.read_text().splitlines() if "==" in entry.split(";")[0]} == {
        name for name, _, _ in OFFERED
    }


# What is sent

KEPT = (
    "ai_edge_litert/__init__.py",
    "ai_edge_litert/interpreter.py",
    "ai_edge_litert/_pywrap_tensorflow_interpreter_wrapper.so",
    "ai_edge_litert/libLiteRt.so",  # 2.1 is linked against it
    "ai_edge_litert-2.3.0.dist-info/METADATA",  # the version is read from here
    "numpy/__init__.py",
    "numpy/_core/_multiarray_umath.cpython-311-aarch64-linux-gnu.so",
    "numpy/testing/__init__.py",  # numpy.__init__ names it
    "numpy/typing.py",
    "numpy.libs/libscipy_openblas64_.so",
)
LEFT_OUT = (
    "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
    "ai_edge_litert/vendors/qualcomm/dispatch.so",
    "ai_edge_litert/tools/apply_plugin_main",
    "ai_edge_litert/aot/core.py",
    "numpy/f2py/crackfortran.py",
    "numpy/_core/tests/test_umath.py",
    "numpy/testing/tests/test_utils.py",
    "numpy/_core/include/numpy/arrayobject.h",
    "numpy/_core/lib/libnpymath.a",
    "numpy/__init__.pyi",
)


def wheel(path: Path, names: tuple[str, ...], year: int = 2024) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("numpy/", (year, 1, 1, 0, 0, 0)), b"")
        for name in names:
            archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), name.encode())
    return path


def test_what_inference_never_opens_is_left_out_of_the_pack(tmp_path: Path) -> None:
    packed = _pack([wheel(tmp_path / "a.whl", KEPT + LEFT_OUT)])

    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert {name: name.encode() for name in KEPT} == {name: archive.read(name) for name in archive.namelist()}


def test_a_pack_holds_every_wheel(tmp_path: Path) -> None:
    packed = _pack([wheel(tmp_path / "a.whl", KEPT[:5]), wheel(tmp_path / "b.whl", KEPT[5:])])

    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert sorted(KEPT) == sorted(archive.namelist())


def test_the_same_wheels_give_the_same_pack_whenever_and_however_they_were_zipped(tmp_path: Path) -> None:
    """Its digest names the runtime on the board: a new one would be sent and installed again."""
    one = _pack([wheel(tmp_path / "a.whl", KEPT)])
    two = _pack([wheel(tmp_path / "b.whl", tuple(reversed(KEPT)), year=1999)])

    assert one == two


# Boards that nothing fits


def test_a_machine_that_nobody_publishes_wheels_for_is_said_at_once(private_home: Path) -> None:
    with pytest.raises(RuntimeMissing) as caught:
        pack_for(board("riscv64", "3.11.2", "glibc 2.36"), "visionfive")

    expected = "no runtime for board 'visionfive' (riscv64, Python 3.11.2, glibc 2.36): nobody publishes wheels for it"
    assert (expected, "visionfive") == (str(caught.value), caught.value.board)
    assert not list(private_home.rglob("*.zip"))


def test_what_pip_cannot_find_is_said_with_the_boards_machine_and_python(
    private_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip itself, kept from every index: the same answer with and without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(RuntimeMissing) as caught:
        pack_for(board("aarch64", "3.11.2"), "pi5-desk")

    assert str(caught.value).startswith(
        "no runtime for board 'pi5-desk' (aarch64, Python 3.11.2, glibc 2.31): "
        "No matching distribution found for ai-edge-litert==2.3.0"
    )
    assert "the host downloads it and needs its package index once; later pushes use the cache" == caught.value.hint
    assert not list(private_home.rglob("*.zip"))
