"""How the boards are: leases, queue, and what was seen of them last, in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deploy.boards import Registry
from deploy.farm.hold import leases_of
from deploy.farm.leases import Leases
from deploy.farm.queue import Holder
from deploy.farm.seen import Sightings

State = Literal["free", "in use", "kept", "quarantine"]


@dataclass(frozen=True)
class Status:
    """
    One board.

    Attributes:
        state: of its lease, unless it is in quarantine.
        holders: who uses it, and who keeps it.
        waiting: how many stand in its queue.
        seen_ago_s: since it answered last; None: never, as far as is known.
        hottest_c: the hottest of its zones, in degrees Celsius, when it was seen last; None: unknown.
        reason: why it is in quarantine.
    """

    board: str
    kind: str
    tags: tuple[str, ...]
    state: State
    holders: tuple[Holder, ...]
    waiting: int
    seen_ago_s: float | None
    hottest_c: float | None
    reason: str | None

    def shown(self) -> dict[str, Any]:
        """As JSON can carry it, with the holders as one text, ``holder``."""
        told = {key: value for key, value in vars(self).items() if key not in ("holders", "waiting")}
        return {**told, "tags": list(self.tags), "holder": "; ".join(map(str, self.holders))}


def statuses(registry: Registry, names: Sequence[str] = (), leases: Leases | None = None) -> list[Status]:
    """
    How these boards are, or all.  None of them is asked.

    Args:
        leases: of the registry's file; opened for this once if not given.

    Raises:
        UnknownBoard: a name that is not there.
    """
    if leases is None:
        with leases_of(registry) as opened:
            return statuses(registry, names, opened)
    boards = [registry[name] for name in names] or list(registry)
    sightings = Sightings(leases.file, leases.clock)
    held, queue, seen, now = leases.show(), leases.queue(), sightings.all(), leases.clock.wall_s()
    found = []
    for board in boards:
        holders = tuple(holder for holder in held if holder.board == board.name)
        known = seen.get(board.name)
        state: State = "in use" if any(not holder.kept for holder in holders) else "kept" if holders else "free"
        found.append(
            Status(
                board.name,
                board.kind,
                board.tags,
                "quarantine" if known and known.reason is not None else state,
                holders,
                sum(board.name in entry.boards for entry in queue),
                now - known.seen_s if known and known.seen_s is not None else None,
                hottest_c(known.found) if known and known.found else None,
                known.reason if known else None,
            )
        )
    return found


def hottest_c(found: dict[str, Any]) -> float | None:
    """Of what a board said, see `Seen.found`."""
    zones = found.get("state", {}).get("is", {}).get("temperatures_mc")
    values = [value for value in zones.values() if isinstance(value, int)] if isinstance(zones, dict) else []
    return max(values) / 1000 if values else None
