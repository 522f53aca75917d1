"""
Push: a bundle onto a board, proven there before it counts.

Only blobs that the board's store lacks travel, each from the byte where an earlier attempt ended; a model that
resembles one that is there travels as the difference, see `bring`.  The golden vectors run on the board; only then is
the release made current, by one rename.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy import accelerate
from deploy.bring import Line, bring, remember
from deploy.bundle import Bundle
from deploy.errors import DeployError
from deploy.session import Progress, Session
from deploy.verify import Verification, prove


@dataclass(frozen=True)
class Pushed:
    """
    Attributes:
        release: ``name/n`` on the board.
        sent_bytes: of the bundle's files; 0 when all was there.
        total_bytes: of the bundle's files.
        verification: of the golden vectors; None when the bundle has none, and then the model was only loaded and
            invoked once.
        was_current: it was the current release already, and nothing was done.
        pruned: older releases that were removed, see `keep_releases` in boards.yaml.
        delta_base: SHA-256 of the model on the board that the new one was told as the difference to; None when it went
            whole, or was there.
        accelerator: what the board told of it while it was proven, see `deploy.accelerate.summary`.
    """

    release: str
    sent_bytes: int
    total_bytes: int
    verification: Verification | None
    was_current: bool
    pruned: tuple[str, ...] = ()
    delta_base: str | None = None
    accelerator: dict[str, Any] | None = None


def already(session: Session, bundle: Bundle) -> Pushed | None:
    """
    What a push would say if it had nothing to do; None if it has.

    One round trip, with nothing started on the board: also the runtime is as it was when the release proved itself.
    """
    found = session.request("release.find", bundle=bundle.digest).header
    current = found["current"]
    if not (found["fit"] and found["release"] and current and current["bundle"] == bundle.digest):
        return None
    compiled = accelerate.compiled_for(session, bundle)
    if compiled and found.get("accelerated") != vars(compiled.entry):
        return None
    return Pushed(found["release"], 0, sum(map(len, bundle.files.values())), None, True)


def push(
    session: Session,
    bundle: Bundle,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Pushed:
    """
    Bring `bundle` to the board and make it current.

    The board's runtime must be there (`deploy.runtime.ensure`).

    Args:
        progress: called with bytes that are there and bytes in all, over all files.
        note: told in a few words what takes long.

    Raises:
        GoldenMismatch: the answers there are not the golden ones; the release before stays current.
        BoardError: e.g. DiskFull, ModelRefused, RunnerKilled; likewise.
    """
    started = time.monotonic()
    nothing_to_do = already(session, bundle)
    if nothing_to_do:
        return nothing_to_do
    compiled = accelerate.compiled_for(session, bundle)
    extra = compiled.files if compiled else {}
    total = sum(map(len, [*bundle.files.values(), *extra.values()]))
    line = Line(time.monotonic() - started)
    sent = done = 0
    delta_base = None
    for name, entry in sorted(bundle.manifest.files.items()):

        def file_progress(have: int, _of: int, before: int = done) -> None:
            if progress:
                progress(before + have, total)

        brought = bring(session, bundle, name, line, file_progress)
        sent += brought.sent_bytes
        delta_base = delta_base or brought.base
        done += entry.bytes
        if progress:
            progress(done, total)
    staged: dict[str, Any] = {"signature": bundle.signature.decode() if bundle.signature else None}
    if compiled:
        staged["accelerated"] = vars(compiled.entry)
        for sha256, data in extra.items():
            sent += session.upload(sha256, data)
            done += len(data)
            if progress:
                progress(done, total)
    release = session.request("release.stage", bundle.manifest_bytes, subject=bundle.name, **staged).header["release"]
    if note:
        note("proving it on the board")
    try:
        verification = prove(session, bundle.digest, bundle.name, bundle.manifest.golden, bundle.manifest.seed)
    except DeployError:
        try:
            session.request("release.drop", release=release)
        except DeployError:
            pass  # one that proved itself before stays; and nothing may hide why this one did not
        raise
    switched = session.request("release.activate", release=release, keep=session.board.keep_releases).header
    remember(bundle)
    pruned = tuple(switched["pruned"])
    return Pushed(release, sent, total, verification, False, pruned, delta_base, session.accelerator)
