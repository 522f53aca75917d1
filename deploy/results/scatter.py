"""Accuracy, latency and energy of every bundle on a board, and which of them no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.errors import StoreError
from deploy.results.store import Store


@dataclass(frozen=True)
class Point:
    """
    The latest measurement of one bundle.

    Attributes:
        accuracy: top-1 on the board, or where it was not evaluated there on the host that built it; None where neither.
        energy_uj: net, per invocation, of the rail to look at first, or of the only one; None where none was measured.
    """

    run: str
    name: str
    latency_ns: float
    accuracy: float | None
    energy_uj: float | None


def points(store: Store, board: str) -> list[Point]:
    """One point for each bundle that was measured on `board`; runs that cannot be read are left out."""
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in store.runs():
        key = (row["kind"], row["digest"])
        if row["board"] == board and row["status"] == "complete" and key not in latest:
            try:
                latest[key] = store.get(row["id"]).record
            except StoreError:
                continue
    found = []
    for (kind, digest), record in latest.items():
        if kind == "measure" and record.get("latency"):
            accuracy = _accuracy(latest.get(("evaluate", digest), {}), record["bundle"].get("host_accuracy"))
            median = float(record["latency"]["median_ns"])
            found.append(Point(record["id"], record["bundle"]["name"], median, accuracy, _energy(record)))
    return found


def pareto(candidates: Sequence[Point]) -> list[Point]:
    """
    Those that no other one beats in latency and accuracy at once; fastest first.

    Args:
        candidates: with an accuracy each.
    """
    front: list[Point] = []
    for point in sorted(candidates, key=lambda p: (p.latency_ns, -(p.accuracy or 0.0))):
        if not front or (point.accuracy or 0.0) > (front[-1].accuracy or 0.0):
            front.append(point)
    return front


def front(candidates: Sequence[Point]) -> list[Point]:
    """
    Those that no other one beats in latency, accuracy and energy together; fastest first.

    One beats another if it is as good in all that is known of the other, and better in something: a point without an
    energy beats none that has one.

    Args:
        candidates: with an accuracy each.
    """

    def beats(one: Point, other: Point) -> bool:
        pairs = [(one.latency_ns, other.latency_ns), (-(one.accuracy or 0.0), -(other.accuracy or 0.0))]
        if other.energy_uj is not None:
            if one.energy_uj is None:
                return False
            pairs.append((one.energy_uj, other.energy_uj))
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    kept = [point for point in candidates if not any(beats(other, point) for other in candidates)]
    return sorted(kept, key=lambda point: point.latency_ns)


def point_of(record: dict[str, Any], name: str, evaluated: dict[str, Any] | None = None) -> Point | None:
    """A measurement as a point; None for one that has no latency."""
    if not record.get("latency"):
        return None
    accuracy = _accuracy(evaluated or {}, record["bundle"].get("host_accuracy"))
    return Point(record["id"], name, float(record["latency"]["median_ns"]), accuracy, _energy(record))


def _accuracy(evaluated: dict[str, Any], host: Any) -> float | None:
    for entry in (evaluated.get("accuracy"), host):
        if isinstance(entry, dict) and entry.get("samples"):
            return float(entry["correct"]) / float(entry["samples"])
    return None


def _energy(record: dict[str, Any]) -> float | None:
    entries = [e for e in record.get("energy") or () if e.get("net_uj") is not None]
    entries = [e for e in entries if str(e.get("source", "")).startswith("measured")]
    whole = [e for e in entries if e.get("primary")] or (entries if len(entries) == 1 else [])
    return float(whole[0]["net_uj"]) if len(whole) == 1 else None
