"""Every Python a board may have, from bare to a bit-exact answer."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import push, runtime
from deploy.boards import Board
from deploy.build import build
from deploy.errors import NoPython
from deploy.session import Session
from tests.conftest import GOLDEN, THOROUGH

_PLACES = [
    *os.environ.get("PATH", "").split(":"),
    *Path(pwd.getpwuid(os.getuid()).pw_dir).glob(".pyenv/versions/*/bin"),
]


def _found(minors: range) -> dict[str, str]:
    """Version -> a Python of this machine without numpy."""
    found: dict[str, str] = {}
    for minor in minors:
        for place in _PLACES:
            program = Path(place) / f"python3.{minor}"
            if f"3.{minor}" in found or not program.exists():
                continue
            # A pyenv shim of a version that is not chosen fails both questions.
            starts, has_numpy = (
                subprocess.run([program, "-c", code], capture_output=True, check=False, timeout=30).returncode == 0
                for code in ("import ctypes, zlib", "import numpy")
            )
            if starts and not has_numpy:
                found[f"3.{minor}"] = str(program)
    return found


EVERY = _found(range(9, 15))
PYTHONS = EVERY if THOROUGH else {version: EVERY[version] for version in [*EVERY][:1] + [*EVERY][-1:]}
OLD = _found(range(5, 9))  # Ubuntu 20.04 has 3.8, 18.04 has 3.6


@pytest.mark.slow
@pytest.mark.parametrize("version", PYTHONS)
def test_a_bare_python_gets_a_runtime_that_answers_bit_for_bit(
    version: str, local: Board, open_session: Callable[..., Session]
) -> None:
    bundle = build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle
    session = open_session(local.model_copy(update={"python": PYTHONS[version]}))

    runtime.ensure(session)
    pushed = push.push(session, bundle)

    assert session.hello["identity"]["python"].startswith(f"{version}.")
    assert pushed.verification is not None
    assert pushed.verification.exact


@pytest.mark.skipif(not OLD, reason="needs a Python 3.5 to 3.8, as pyenv builds them")
def test_a_python_that_is_too_old_is_refused_by_name(local: Board, open_session: Callable[..., Session]) -> None:
    """The program that brings the agent must run there, to say so."""
    for version, program in OLD.items():
        with pytest.raises(NoPython) as caught:
            open_session(local.model_copy(update={"python": program}))

        assert f"board 'local' has Python {version}." in str(caught.value)
        assert str(caught.value).endswith("; the agent needs 3.9 or newer")
