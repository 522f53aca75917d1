"""What the pages show, as JSON can carry it: boards, queue, plans and what runs, runs that are over."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Protocol

from deploy.boards import Registry
from deploy.errors import DeployError
from deploy.farm import live
from deploy.farm.leases import Leases
from deploy.farm.status import statuses
from deploy.paths import farm_file
from deploy.results.store import Store

CELLS = 60  # of a plan that are listed, those that run and those that failed first
_FIRST = ("running", "failed", "building", "waiting", "done", "known")


class Gateways(Protocol):
    """Boards of other hosts; `deploy.farm.cluster.Cluster` is it."""

    def gateways(self) -> list[dict[str, Any]]: ...
    def boards(self) -> Any: ...
    def ready(self) -> Any: ...
    def pulses(self) -> Any: ...
    def statuses(self) -> dict[str, dict[str, Any]]: ...


class View:
    """
    Args:
        far: the boards of a scheduler's gateways, to be shown with those of this machine.
    """

    def __init__(self, registry: Registry, store: Store, far: Gateways | None = None) -> None:
        self.store = store
        self._registry = registry
        self._folder = farm_file(registry.state_dir).parent
        self._leases = Leases(farm_file(registry.state_dir))
        self._far = far

    def now(self) -> dict[str, Any]:
        """
        The farm at this moment.

        Keys: ``time``; ``boards``: board, kind, tags, state, holder, seen_ago_s, hottest_c, reason, where;
        ``queue``: boards, owner, purpose, priority, place, waits_s; ``running``: board, cell, phase, invocations,
        median_ns, watts; ``plans``: plan, began_s ago, counts, stale, cells; ``trouble``: what cannot be read, or None.
        """
        trouble = None
        boards: list[dict[str, Any]] = []
        queue: list[dict[str, Any]] = []
        try:
            for entry in statuses(self._registry, leases=self._leases):
                boards.append({**entry.shown(), "where": "here"})
            now = self._leases.clock.wall_s()
            for waiting in self._leases.queue():
                queue.append({**asdict(waiting), "waits_s": max(0.0, now - waiting.since_s)})
        except DeployError as error:
            trouble = str(error)
        plans = live.plans(self._folder)
        pulses: dict[str, Any] = {}
        for plan in plans:
            if not plan["stale"]:
                pulses |= plan["running"]
        if self._far is not None:
            boards += self._far_boards()
            pulses |= self._far.pulses()
        running = [{"board": board, **pulse} for board, pulse in sorted(pulses.items())]
        return {
            "time": time.time(),
            "boards": boards,
            "queue": queue,
            "running": running,
            "plans": [self._plan(plan) for plan in plans],
            "trouble": trouble,
        }

    def cells(self, plan: str) -> list[dict[str, Any]] | None:
        """Of a plan that runs; None where none of that name does."""
        cells = [told["cells"] for told in live.plans(self._folder) if told["plan"] == plan]
        return cells[-1] if cells else None

    def _far_boards(self) -> list[dict[str, Any]]:
        assert self._far
        boards, told, found = self._far.boards(), self._far.statuses(), []
        for each in self._far.gateways():
            for name in each["boards"]:
                board = boards.get(name)
                away = {"board": name, "kind": board.kind if board else "", "tags": list(board.tags) if board else [],
                        "state": "away", "holder": "", "seen_ago_s": each["last_seen_s"], "hottest_c": None,
                        "reason": each["refused"]}  # fmt: skip
                found.append({**told.get(name, away), "where": each["gateway"]})
        return found

    @staticmethod
    def _plan(plan: dict[str, Any]) -> dict[str, Any]:
        cells = sorted(plan["cells"], key=lambda cell: _FIRST.index(cell["state"]))
        told = {key: plan[key] for key in ("plan", "counts", "stale")}
        more = max(0, len(cells) - CELLS)
        return {**told, "began_s": max(0.0, time.time() - plan["began"]), "cells": cells[:CELLS], "more": more}

    def close(self) -> None:
        with suppress(DeployError):
            self._leases.close()
