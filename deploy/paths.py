"""Where the host keeps things."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """What can be fetched or made again: ``$XDG_CACHE_HOME/deploy``."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "deploy"


def results_dir(state_dir: Path) -> Path:
    """The results store: ``$DEPLOY_RESULTS``, or ``results/`` beside boards.yaml."""
    chosen = os.environ.get("DEPLOY_RESULTS")
    return Path(chosen) if chosen else state_dir / "results"
