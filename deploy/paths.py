"""Where the host keeps things."""

from __future__ import annotations

import os
from pathlib import Path


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
