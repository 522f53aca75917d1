"""What tests on virtual boards share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.virtual import control
from tests.conftest import GOLDEN, ROOT, need_tool
from tests.test_layers import HOME

Deploy = Callable[..., str]


@pytest.fixture
def virtual_cache(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and warm snapshots are made once for this user, and not for every test."""
    for tool, package in (
        ("qemu-system-aarch64", "qemu-system-arm"),
        ("qemu-img", "qemu-utils"),
        ("mksquashfs", "squashfs-tools"),
    ):
        need_tool(tool, package)
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("DEPLOY_HIL_CACHE", str(HOME / ".cache")))


@pytest.fixture
def deploy(virtual_cache: None, tmp_path: Path) -> Iterator[Deploy]:
    """``deploy("push", ...)``: the real command; its standard output.  Boards that it brings up are down afterwards."""

    def run(*words: str, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "deploy", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=900,
        )  # fmt: skip
        assert fails == (done.returncode != 0), f"deploy {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    yield run
    for status in control.status():
        control.down(status.name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits' model with golden vectors of stock LiteRT on this machine."""
    from deploy.build import build

    path = tmp_path_factory.mktemp("bundle") / "digits.bundle"
    build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle.write(path)
    return path
