"""
The way to a board: a lease first, then a conversation as its holder.

Every verb goes through `hold`, and so does whoever runs plans or tests.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from deploy.boards import Board, Registry
from deploy.errors import BoardError
from deploy.farm.leases import PERIOD_S, Leases, Standing
from deploy.farm.places import acquired
from deploy.farm.seen import Seen, Sightings
from deploy.paths import farm_file
from deploy.session import Session, connect


@contextlib.contextmanager
def leases_of(registry: Registry) -> Iterator[Leases]:
    """The leases of these boards; what is still held is given back at the end."""
    leases = Leases(farm_file(registry.state_dir))
    try:
        yield leases
    finally:
        leases.close()


def seen_of(registry: Registry) -> dict[str, Seen]:
    """What is known of these boards."""
    with leases_of(registry) as leases:
        return Sightings(leases.file).all()


@contextlib.contextmanager
def hold(
    registry: Registry,
    boards: Board | Sequence[Board],
    *,
    leases: Leases | None = None,
    purpose: str = "",
    owner: str | None = None,
    priority: int = 0,
    wait: float | None = None,
    for_s: float = PERIOD_S,
    on_wait: Callable[[Standing], None] | None = None,
    evict: bool = False,
    ask: Callable[[str], str] | None = None,
    strict: bool = False,
    trust: bool = True,
    agent_options: list[str] | None = None,
) -> Iterator[Session]:
    """
    A conversation with a board whose lease is ours; both end together.

    Args:
        boards: the one that is wanted, or several of which any will do: the first that is free.
        leases: of the registry's file; made for this once if not given.
        purpose, owner, priority, wait, for_s, on_wait: see `Leases.take`.
        evict: end what still runs on the board for holders before.
        ask, strict, trust, agent_options: see `deploy.session.connect`.

    Raises:
        LeaseHeld: nothing was free after `wait`.
        BoardHeld: somebody with another lease file had the board all the while.
        PlaceError: labgrid does not give its place.
        TransportError, BoardError: see `deploy.session.connect`.
    """
    wanted = [boards] if isinstance(boards, Board) else list(boards)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if leases is None:
            leases = stack.enter_context(leases_of(registry))
        lease = stack.enter_context(
            leases.take(
                [board.name for board in wanted],
                owner=owner, purpose=purpose, for_s=for_s, priority=priority, wait=wait, on_wait=on_wait,
            )
        )  # fmt: skip
        board = next(board for board in wanted if board.name == lease.board)
        left = None if wait is None else max(0.0, wait - (time.monotonic() - began))
        sightings = Sightings(leases.file, leases.clock)
        stack.enter_context(acquired(board, sightings))
        session = stack.enter_context(
            connect(
                board, registry.known_hosts, agent_options,
                ask=ask, strict=strict, trust=trust, lease=lease, evict=evict, wait_s=left,
            )
        )  # fmt: skip
        sightings.saw(board.name, identity=session.hello["identity"], **_state(session))
        yield session


def _state(session: Session) -> dict[str, Any]:
    """Temperatures and the like, where the board tells them."""
    try:
        state = session.request("state").header
    except BoardError:
        return {}
    return {"state": {key: value for key, value in state.items() if key != "id"}}
