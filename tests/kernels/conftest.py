from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.library import Library

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library for this machine, built from the tree as it is."""
    path = tmp_path_factory.mktemp("kernels") / "libdeploy_kernels.so"
    words = [sys.executable, str(ROOT / "kernels" / "build.py"), "--out", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Library(path)
