"""`deploy releases`"""

from __future__ import annotations

import click

from deploy.cli import common


@click.command(
    "releases",
    help="""
    List what is on a board: every release of every bundle, which one is current, and which was before.

    A board keeps some releases of each bundle (`keep_releases` in boards.yaml, 5 if not given); `deploy rollback` goes
    back to one of them.  The time is by the board's clock.
    """
    + common.example("deploy releases --board local"),
)
@common.board_option
@common.json_option
@click.pass_obj
def command(boards_file: str | None, board_name: str, as_json: bool) -> None:
    from datetime import datetime

    from deploy.releases import listing

    registry = common.registry(boards_file)
    with common.session_with(registry, registry[board_name]) as session:
        found = listing(session)
    if as_json:
        common.show_json(found)
        return
    if not found:
        common.show(f"{board_name}: nothing pushed yet")
        return
    table = common.new_table("release", "digest", "made", "size", "", right=("size",))
    for entry in found:
        marks = ["current"] if entry.current else ["before"] if entry.previous else []
        marks += ["signed"] if entry.signed else []
        marks += [] if entry.proven else ["unproven"]
        digest = entry.bundle[:12] if entry.bundle else "damaged"
        made = datetime.fromtimestamp(entry.when_s).strftime("%Y-%m-%d %H:%M")
        table.add_row(entry.release, digest, made, common.size(entry.bytes), ", ".join(marks))
    common.show_table(table)
