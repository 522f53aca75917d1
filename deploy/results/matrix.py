"""
The report of a plan: a matrix of its cells, and for each board which bundles no other one beats.

What a plan measured is remembered beside the runs, in ``plans/<name>.json``: cell -> its run, or why there is none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deploy import __version__
from deploy.errors import StoreError, nearest
from deploy.paths import whole
from deploy.results import report
from deploy.results.scatter import Point, front, point_of
from deploy.results.store import Store
from deploy.units import duration, energy

SCHEMA = 1


def remember(store: Store, plan: str, cells: Sequence[dict[str, Any]]) -> None:
    """
    Write down where a plan stands, instead of what was written before.

    Args:
        cells: each with cell, bundle, place, setting, state, board, run and error.

    Raises:
        StoreError: the disk is full.
    """
    path = _path(store, plan)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as staging:
            staging.write_text(json.dumps({"schema": SCHEMA, "plan": plan, "cells": list(cells)}, indent=1) + "\n")
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def recall(store: Store, plan: str) -> list[dict[str, Any]]:
    """
    What `remember` wrote last of a plan.

    Raises:
        StoreError: nothing, or nothing that can be read.
    """
    path = _path(store, plan)
    try:
        told = json.loads(path.read_text())
        if told["schema"] != SCHEMA:
            raise StoreError(f"{path}: schema {told['schema']!r}; this version reads {SCHEMA}")
        cells: list[dict[str, Any]] = told["cells"]
        return cells
    except OSError:
        known = sorted(each.stem for each in path.parent.glob("[!.]*.json"))
        raise StoreError(f"no plan {plan!r} was run{nearest(plan, known)}", "`deploy farm run PLAN` runs one") from None
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{path}: {error}") from None


def _path(store: Store, plan: str) -> Path:
    return store.root / "plans" / f"{plan}.json"


def render(store: Store, plan: str, cells: Sequence[dict[str, Any]] | None = None) -> str:
    """
    The page.

    Args:
        cells: of a plan that runs, as `remember` takes them; what was remembered if not given.

    Raises:
        StoreError: the plan was never run, or jinja2 or matplotlib are not installed.
    """
    cells = recall(store, plan) if cells is None else cells
    page = report.template("matrix.html.j2", plan)
    evaluated = _accuracies(store)
    records: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if cell["run"]:
            try:
                records[cell["cell"]] = store.get(cell["run"]).record
            except StoreError:
                continue  # it was deleted; its cell says so
    places = list(dict.fromkeys(cell["place"] for cell in cells))
    found: dict[str, dict[str, Point]] = {}  # by board, as numbers of different boards are not ranked
    several = len({cell["setting"] for cell in cells}) > 1
    for cell in cells:
        record = records.get(cell["cell"])
        name = f"{cell['bundle']} {cell['setting']}" if several else cell["bundle"]
        on_board = record and evaluated.get((record["bundle"]["digest"], record["board"]["name"]))
        if record and record.get("accuracy"):  # the plan evaluated it there
            on_board = record
        point = point_of(record, name, on_board or None) if record else None
        if record and point:
            found.setdefault(record["board"]["name"], {})[cell["cell"]] = point
    fronts = {board: front([p for p in some.values() if p.accuracy is not None]) for board, some in found.items()}
    best = {point.run for points in fronts.values() for point in points}
    points = {cell: point for some in found.values() for cell, point in some.items()}
    shown = {c["cell"]: _shown(c, records.get(c["cell"]), points.get(c["cell"]), best) for c in cells}
    by_place = {(cell["bundle"], cell["setting"], cell["place"]): shown[cell["cell"]] for cell in cells}
    rows = [
        {"bundle": bundle, "setting": setting,
         "cells": [by_place.get((bundle, setting, place), _EMPTY) for place in places]}
        for bundle, setting in dict.fromkeys((cell["bundle"], cell["setting"]) for cell in cells)
    ]  # fmt: skip
    counts = Counter(cell["state"] for cell in cells)
    return str(
        page.render(
            title=f"plan {plan}",
            counts=f"{len(cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items()),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
            places=places,
            rows=rows,
            plots=[
                {
                    "title": f"Accuracy, latency and energy: {board}",
                    "svg": report.scatter(list(some.values()), lambda point: point.run in best, fronts[board]),
                }
                for board, some in found.items()
                if len(some) > 1
            ],
        )
    )


_EMPTY: dict[str, Any] = {"lines": (), "bad": (), "small": (), "front": False}


def _shown(cell: dict[str, Any], record: dict[str, Any] | None, point: Point | None, best: set[str]) -> dict[str, Any]:
    if record is None or point is None:
        why = cell["error"] or ("the run is gone" if cell["run"] else cell["state"])
        return {**_EMPTY, "bad": [why]}
    latency = record["latency"]
    interval = ""
    if latency["low_ns"] is not None and latency["high_ns"] is not None:
        interval = f" [{duration(latency['low_ns'])}, {duration(latency['high_ns'])}]"
    lines = [f"{duration(point.latency_ns)}{interval}"]
    lines += [f"{energy(point.energy_uj)} net"] if point.energy_uj is not None else []
    lines += [f"{point.accuracy:.2%}"] if point.accuracy is not None else []
    on = f"on {record['board']['name']}, " if record["board"]["name"] != cell["place"] else ""
    return {
        "lines": lines,
        "bad": [code for code in record.get("verdict") or () if code != "ok"],
        "small": [f"{on}{record['id']}"],
        "front": point.run in best,
    }


def _accuracies(store: Store) -> dict[tuple[str, str], dict[str, Any]]:
    """The latest accuracy of every bundle on every board where it was evaluated."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in store.runs():
        key = (row["digest"], row["board"])
        if row["kind"] == "evaluate" and row["status"] == "complete" and key not in found:
            try:
                found[key] = store.get(row["id"]).record
            except StoreError:
                continue
    return found
