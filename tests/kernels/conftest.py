from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.kernels.library import Library


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """
    ``built(*options)`` builds the library from the tree as it is, once for all workers of a run.

    Objects are shared with every build of the checkout; whoever comes second waits, and then links only.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def build(*options: str) -> Path:
        folder = shared / "-".join(["library", *(option.strip("-") for option in options)])
        folder.mkdir(exist_ok=True)
        path = folder / "libdeploy_kernels.so"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                words = [sys.executable, str(ROOT / "kernels" / "build.py"), *options, "--out", str(path)]
                done = subprocess.run(words, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
        return path

    return build


@pytest.fixture(scope="session")
def kernels(built: Callable[..., Path]) -> Library:
    """The library for this machine."""
    return Library(built())
