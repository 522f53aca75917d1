"""`deploy attach`"""

from __future__ import annotations

import click

from deploy.cli import common
from deploy.cli.live import Live
from deploy.cli.measure import show


@click.command(
    "attach",
    help="""
    Pick up measurements whose host vanished: a lost line, a closed laptop, a killed process.

    The board goes on measuring and keeps everything; this fetches it, waiting for the end where there is none yet, and
    stores it as if the line had held.  --list only says what there is.
    """
    + common.example("deploy attach --board local"),
)
@common.board_option
@click.option("--list", "only_list", is_flag=True, help="Only list what is there.")
@common.json_option
@click.pass_obj
def command(boards_file: str | None, board_name: str, only_list: bool, as_json: bool) -> None:
    from deploy.errors import BoardError
    from deploy.measure import attach, spools
    from devices.protocol import errors as codes

    registry = common.registry(boards_file)
    with common.session_with(registry, registry[board_name]) as session:
        waiting = spools(session)
        if only_list:
            rows = [{"spool": s["id"], "bytes": s["bytes"], "grows": s["grows"],
                     "bundle": s["request"]["run"]["bundle"]["name"]} for s in waiting]  # fmt: skip
            if as_json:
                common.show_json(rows)
            for row in [] if as_json else rows:
                state = "still running" if row["grows"] else "done"
                common.show(f"{row['spool']}  {row['bundle']}  {common.size(row['bytes'])}  {state}")
        attached = []
        for spool in [] if only_list else waiting:
            try:
                with Live(f"{spool['request']['run']['bundle']['name']} on {board_name}") as live:
                    run, measured = attach(session, spool, common.store_of(registry), live.update)
            except BoardError as error:
                if error.code not in (codes.CANCELLED, codes.NOT_FOUND):
                    raise
                continue  # its own host, still there, has just called it off
            attached.append({"run": run, "board": board_name, **vars(measured)})
            if not as_json:
                show(board_name, spool["request"]["run"]["bundle"]["name"], measured)
                common.show(f"stored: {run}")
        if as_json and not only_list:
            common.show_json(attached)
    if not (waiting if only_list else attached) and not as_json:
        common.show(f"{board_name}: nothing to attach to")
