"""
Releases: what lies on a board, and going back to what was current before.

The board numbers its releases, keeps some of them (`keep_releases` in boards.yaml) and remembers the order in which
they became current.  The host needs no bundle to go back: everything that proves a release lies on the board with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy.errors import BundleError, NotOnBoard, TransportError, nearest
from deploy.session import Session
from deploy.verify import Verification, prove


@dataclass(frozen=True)
class Release:
    """
    One release on a board.

    Attributes:
        release: ``name/n``.
        bundle: digest of the bundle; None where the manifest on the board is damaged.
        bytes: of its files, of which other releases may share some.
        golden: vectors and the runtime that made them; None without golden vectors.
        when_s: since the epoch, when it was made, by the board's clock: for people, as that may be wrong by years.
        current, previous: it is, or was before that.
        proven: it was current once; else a push was cut short.
        signed: it has a signature; whether the right one, the board decides when it runs.
    """

    release: str
    bundle: str | None
    bytes: int
    golden: dict[str, Any] | None
    when_s: float
    current: bool
    previous: bool
    proven: bool
    signed: bool


@dataclass(frozen=True)
class RolledBack:
    """
    Attributes:
        release: current now.
        before: current until then; None if nothing was.
        verification: of the golden vectors, just now; None where the release has none, or was current already.
    """

    release: str
    before: str | None
    verification: Verification | None


def listing(session: Session) -> list[Release]:
    """What is on the board, by name and number."""
    data = session.request("release.list").payload
    try:
        return [Release(**entry) for entry in json.loads(data)]
    except (ValueError, TypeError) as error:
        raise TransportError(f"board {session.board.name!r} sent a list that makes no sense: {error}") from None


def rollback(session: Session, release: str | None = None, note: Callable[[str], None] | None = None) -> RolledBack:
    """
    Make an older release current again, after it has answered its golden vectors once more.

    The board's runtime must be there (`deploy.runtime.ensure`).

    Args:
        release: ``name/n``; None is the one that was current before the current one, so that doing it twice comes back.
        note: told in a few words what takes long.

    Raises:
        NotOnBoard: there is no such release, or nothing to go back to.
        GoldenMismatch, ModelRefused, RunnerKilled, Untrusted: it does not prove itself; nothing was switched.
    """
    board = session.board.name
    there = listing(session)
    before = next((entry.release for entry in there if entry.current), None)
    hint = f"`deploy releases --board {board}` lists what is there"
    if release is None:
        target = next((entry for entry in there if entry.previous), None)
        if target is None:
            what = f"nothing was current before {before}" if before else "nothing was pushed yet"
            raise NotOnBoard(f"there is nothing to go back to: {what} (board {board!r})", hint, board=board)
    else:
        target = next((entry for entry in there if entry.release == release), None)
        if target is None:
            known = nearest(release, [entry.release for entry in there])
            raise NotOnBoard(f"no release {release!r} on board {board!r}{known}", hint, board=board, release=release)
    if target.current:
        return RolledBack(target.release, before, None)
    if target.bundle is None:
        raise BundleError(f"release {target.release} on board {board!r} is damaged", hint, board=board)
    if note:
        note("proving it on the board")
    verification = prove(session, target.bundle, target.release, target.golden)
    session.request("release.activate", release=target.release)
    return RolledBack(target.release, before, verification)
