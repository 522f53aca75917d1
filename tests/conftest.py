"""What tests share.  A tool that is missing skips with the sentence that says how to get it; in CI it fails."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.boards import LOCAL, Board
from deploy.cli import execute
from deploy.session import Session, connect

Said = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
THOROUGH = bool(os.environ.get("DEPLOY_THOROUGH"))  # more points and versions than a quick run of the suite takes
CORPUS = Path(os.environ.get("DEPLOY_CORPUS", ROOT.parent / "shared" / "corpus"))

# The garbage collector may run a finalizer in the middle of a parser, and Python 3.11 takes no second one there
# ("AST constructor recursion depth mismatch").  pytest's own hook is a second one: it formats what a finalizer raised,
# and a traceback parses the lines that it underlines.
sys.unraisablehook = lambda unraisable: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("DEPLOY_HIL"):
        for item in items:
            if item.get_closest_marker("qemu"):
                item.add_marker(pytest.mark.skip(reason="runs under QEMU: `make test-hil`"))


def pytest_collection_finish() -> None:
    """What was made so far stays to the end: walking through it again and again would stop all threads for long."""
    gc.collect()
    gc.freeze()


def need_tool(name: str, package: str) -> str:
    """Path of a program; skips without it, or fails where CI says that nothing may be missing."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    require_or_skip(path is not None, f"needs {name}: `sudo apt install {package}`")
    assert path
    return path


def require_or_skip(there: bool, sentence: str) -> None:
    """Skip with `sentence` unless `there`; where CI says that nothing may be missing, fail with it."""
    if not there and os.environ.get("DEPLOY_REQUIRE_TOOLS"):
        pytest.fail(sentence, pytrace=False)
    if not there:
        pytest.skip(sentence)


@pytest.fixture(autouse=True)
def private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home for every test: nothing of the user's is read or written.  Built kernels are shared."""
    home = tmp_path_factory.mktemp("home")
    base = tmp_path_factory.getbasetemp()
    kernels = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "kernels"
    kernels.mkdir(exist_ok=True)
    (home / ".cache" / "deploy").mkdir(parents=True)
    (home / ".cache" / "deploy" / "kernels").symlink_to(kernels)
    for variable in ("DATA", "CONFIG", "CACHE", "STATE"):
        monkeypatch.delenv(f"XDG_{variable}_HOME", raising=False)
    for variable in ("DEPLOY_BOARDS", "DEPLOY_DEBUG", "DEPLOY_OWNER", "DEPLOY_PRIORITY", "DEPLOY_WAIT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("DEPLOY_RESULTS", str(home / "results"))
    monkeypatch.setenv("DEPLOY_FARM", str(home / "farm"))
    return home


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """``say("push", "x.bundle")`` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        code = execute([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture
def local(private_home: Path) -> Board:
    """The board `local`, with its disk in the test's home."""
    return LOCAL.model_copy(update={"root": str(private_home / "board")})


@pytest.fixture
def open_session(private_home: Path) -> Iterator[Callable[..., Session]]:
    """``open_session(board, *agent_options)`` connects; all sessions are closed after the test."""
    opened: list[Session] = []

    def open_(board: Board, *agent_options: str) -> Session:
        session = connect(board, private_home / "known_hosts", list(agent_options))
        opened.append(session)
        return session

    yield open_
    for session in opened:
        session.close()


@pytest.fixture
def session(open_session: Callable[..., Session], local: Board) -> Session:
    """A conversation with the real agent on `local`."""
    return open_session(local)


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of real models and data sets."""
    if not (CORPUS / "MANIFEST.json").is_file():
        pytest.skip(f"needs the corpus of real models at {CORPUS}; $DEPLOY_CORPUS names another place")
    return CORPUS
