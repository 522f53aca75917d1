"""`deploy rollback`"""

from __future__ import annotations

from typing import Any

import click

from deploy.cli import common


@click.command(
    "rollback",
    help="""
    Make RELEASE (as `deploy releases` lists it) current again; without it the release that was current before, so that
    doing it twice comes back.

    Its golden vectors run on the board first; if they fail, nothing is switched.
    """
    + common.example("deploy rollback --board local", "deploy rollback --board local digits/1"),
)
@common.board_option
@click.argument("release", required=False)
@common.json_option
@click.pass_obj
def command(boards_file: str | None, board_name: str, release: str | None, as_json: bool) -> None:
    from deploy import kernels, runtime
    from deploy.releases import rollback

    registry = common.registry(boards_file)
    with (
        common.session_with(registry, registry[board_name]) as session,
        common.progress_bar(f"{board_name}: {release or 'the release before'}") as bar,
    ):
        runtime.ensure(session, bar.bytes, bar.note)
        kernels.ensure(session, "auto", bar.bytes, bar.note)
        done = rollback(session, release, bar.note)
    if as_json:
        shown: dict[str, Any] = {"board": board_name, **vars(done)}
        common.show_json(shown)
    elif done.release == done.before:
        common.show(f"{board_name}: {done.release} is current already")
    else:
        proof = done.verification.summary if done.verification else "no golden vectors: loaded and invoked once"
        common.show(f"{board_name}: {done.release} is current again, instead of {done.before or 'nothing'} ({proof})")
