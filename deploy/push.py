"""
Push: a bundle onto a board, proven there before it counts.

Only blobs that the board's store lacks travel, each from the byte where an earlier attempt ended.  The golden
vectors run on the board; only then is the release made current, by one rename.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deploy import inference
from deploy.bundle import Bundle
from deploy.data import random_inputs
from deploy.errors import DeployError, GoldenMismatch
from deploy.session import Progress, Session
from deploy.verify import Verification, verify


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
    """

    release: str
    sent_bytes: int
    total_bytes: int
    verification: Verification | None
    was_current: bool


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
    total = sum(map(len, bundle.files.values()))
    found = session.request("release.find", bundle=bundle.digest).header
    current = found["current"]
    if found["release"] and current and current["bundle"] == bundle.digest:
        return Pushed(found["release"], 0, total, None, True)
    sent = done = 0
    for name, entry in sorted(bundle.manifest.files.items()):

        def file_progress(have: int, _of: int, before: int = done) -> None:
            if progress:
                progress(before + have, total)

        sent += session.upload(entry.sha256, bundle.files[name], file_progress)
        done += entry.bytes
        if progress:
            progress(done, total)
    release = session.request("release.stage", bundle.manifest_bytes).header["release"]
    if note:
        note("proving it on the board")
    try:
        verification = _prove(session, bundle)
    except DeployError:
        try:
            session.request("release.drop", release=release)
        except DeployError:
            pass  # one that proved itself before stays; and nothing may hide why this one did not
        raise
    session.request("release.activate", release=release)
    return Pushed(release, sent, total, verification, False)


def _prove(session: Session, bundle: Bundle) -> Verification | None:
    subject = bundle.name
    if bundle.manifest.golden is not None:
        verification = verify(session, bundle)
        if not verification.passed:
            raise GoldenMismatch(
                f"{subject}: {verification.summary} (board {session.board.name!r}); nothing was switched",
                f"`deploy inspect {bundle.name}.bundle` says which runtime made the golden vectors",
                verification=verification,
            )
        return verification
    model = inference.load(session, bundle=bundle.digest, subject=subject)
    once = random_inputs(model.inputs, 1, bundle.manifest.seed)
    list(inference.infer(session, model, once, subject=subject))
    inference.unload(session, subject)
    return None
