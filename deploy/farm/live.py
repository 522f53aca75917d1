"""
What plans do right now, for whoever looks on: one small file for each plan that runs, beside the leases.

A file that has not been written for a while belongs to a plan that was killed.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.farm.runner import Runner

STALE_S = 15.0
EVERY_S = 0.5
SHARE = 0.02  # of the time that writing may take: a plan of ten thousand cells is written less often


class Publisher:
    """
    Writes what a runner does; give it as the runner's `watch`.

    Args:
        folder: of the farm's files.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "plans" / f"{time.time_ns():x}.{os.getpid()}.json"
        self._began = time.time()
        self._next = 0.0

    def __call__(self, runner: Runner) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        with suppress(OSError):  # a full disk must not end what is being measured; the store will say so
            self._path.parent.mkdir(parents=True, exist_ok=True)
            staging = self._path.with_suffix(".new")
            staging.write_text(json.dumps(self._picture(runner)))
            os.replace(staging, self._path)
        took = time.monotonic() - now
        self._next = time.monotonic() + max(EVERY_S, took / SHARE)

    def close(self) -> None:
        self._path.unlink(missing_ok=True)

    def _picture(self, runner: Runner) -> dict[str, Any]:
        pulses = runner.pulses
        cells = runner.told()
        return {
            "plan": runner.plan.name,
            "path": str(runner.plan.path),
            "pid": os.getpid(),
            "began": self._began,
            "written": time.time(),
            "counts": dict(Counter(cell["state"] for cell in cells)),
            "cells": cells,
            "running": {board: dict(pulse) for board, pulse in pulses.items()},
        }


def plans(folder: Path) -> list[dict[str, Any]]:
    """Every plan that runs, as `Publisher` wrote it, oldest first; ``stale`` is set where it may have been killed."""
    found = []
    for path in sorted((folder / "plans").glob("*.json")):
        try:
            picture = json.loads(path.read_text())
            picture["stale"] = time.time() - picture["written"] > STALE_S + 3 * EVERY_S
            if not Path(f"/proc/{picture['pid']}").exists():
                path.unlink(missing_ok=True)
                continue
        except (OSError, ValueError, LookupError, TypeError):
            continue
        found.append(picture)
    return found
