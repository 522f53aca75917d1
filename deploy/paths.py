"""Where the host keeps things."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """
    A file beside `path` to write to, which takes its place when the block ends and goes when it fails.

    So whoever reads `path` finds what was there before or all that is new, whatever stops the writer.  The file's name
    begins with a dot, and ends as `path` does: some writers choose the format by it.

    Raises:
        OSError: the folder is not there or cannot be written to.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{path.suffix}")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """
    One process at a time makes what belongs at `path`, or uses it; the others wait for the end of the block.

    The lock is ``PATH.lock``, and stays.  Look again inside whether another has made it meanwhile.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    import fcntl  # which Windows does not have

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cache_dir() -> Path:
    """What can be fetched or made again: ``$XDG_CACHE_HOME/deploy``."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "deploy"


def boards_file(explicit: str | None = None) -> Path | None:
    """The file to use: `explicit`, $DEPLOY_BOARDS, ./boards.yaml, ~/.config/deploy/boards.yaml; None if none is."""
    chosen = explicit or os.environ.get("DEPLOY_BOARDS")
    if chosen:
        return Path(chosen)
    user = config_dir() / "boards.yaml"
    return next((path for path in (Path("boards.yaml"), user) if path.is_file()), None)


def state_dir(boards: Path | None) -> Path:
    """Where what belongs to a board file lies: its folder, or the user's configuration folder."""
    return config_dir() if boards is None else boards.resolve().parent


def config_dir() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "deploy"


def results_dir(state_dir: Path) -> Path:
    """The results store: ``$DEPLOY_RESULTS``, or ``results/`` beside boards.yaml."""
    chosen = os.environ.get("DEPLOY_RESULTS")
    return Path(chosen) if chosen else state_dir / "results"


def farm_file(state_dir: Path) -> Path:
    """Leases, and how the boards are: in the folder ``$DEPLOY_FARM``, or ``.farm/`` beside boards.yaml."""
    chosen = os.environ.get("DEPLOY_FARM")
    return (Path(chosen) if chosen else state_dir / ".farm") / "farm.sqlite"
