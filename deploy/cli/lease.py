"""`deploy lease`"""

from __future__ import annotations

import click

from deploy.cli import common


@click.group(
    "lease",
    help="""
    Keep a board for yourself for a while, and see who has what.

    Every verb takes a lease by itself and gives it back.  A lease that you take here lasts until it ends or is
    released; your verbs use it, one after the other, and everybody else waits.  You are $DEPLOY_OWNER, or user@host:
    whoever shares an account sets the former, as does a CI job (DEPLOY_OWNER=ci-$JOB_ID).
    """
    + common.example("deploy lease take --board local --for 30m", "deploy lease show"),
)
def command() -> None:
    pass


@command.command(
    "take",
    help="""Keep a board, waiting for it in the queue.  Taken again, it lasts anew from now on."""
    + common.example("deploy lease take --board local --for 30m", "deploy lease take --tag lab --needs dotprod"),
)
@common.any_board_name_option
@click.option(
    "--for", "for_s", type=common.Span(1, 30 * 86400), default="30m", show_default=True, metavar="TIME",
    help="How long: 90s, 30m, 2h, 1d.",
)  # fmt: skip
@click.option("--purpose", default="", metavar="TEXT", help="A few words for whoever waits.")
@common.wait_options
@common.json_option
@click.pass_obj
def take(boards_file: str | None, board_name: str | None, for_s: float, purpose: str, as_json: bool) -> None:
    from deploy.farm.hold import leases_of

    registry = common.registry(boards_file)
    boards = common.any_board(registry, board_name)
    names = [board.name for board in boards]
    with leases_of(registry) as leases:
        lease = leases.take(names, for_s=for_s, kept=True, **{**common.how_to_wait(), "purpose": purpose})
    if as_json:
        shown = {"board": lease.board, "owner": lease.owner, "token": lease.token, "for_s": for_s, "purpose": purpose}
        common.show_json(shown)
    else:
        common.show(f"{lease.board}: kept by {lease.owner} for {common.span(for_s)}")
        common.note(f"`deploy lease release --board {lease.board}` gives it back before")


@command.command(
    "show",
    help="""Show who has which board, and who waits for it."""
    + common.example("deploy lease show", "deploy lease show --board local --json"),
)
@click.option("--board", "-b", "board_name", metavar="NAME", help="This board alone.")
@common.json_option
@click.pass_obj
def show(boards_file: str | None, board_name: str | None, as_json: bool) -> None:
    from deploy.farm.hold import leases_of

    registry = common.registry(boards_file)
    if board_name:
        registry[board_name]
    with leases_of(registry) as leases:
        holders = [holder for holder in leases.show() if board_name in (None, holder.board)]
        queue = leases.queue(board_name)
    if as_json:
        common.show_json({"leases": holders, "queue": queue})
        return
    if not (holders or queue):
        common.show("nobody has a board" if board_name is None else f"{board_name}: free")
        return
    table = common.new_table("board", "owner", "purpose", "", "token", right=("token",))
    for holder in holders:
        how = f"kept for another {common.span(holder.left_s)}" if holder.kept else "in use"
        table.add_row(holder.board, holder.owner, holder.purpose, how, str(holder.token))
    for entry in queue:
        priority = f", priority {entry.priority}" if entry.priority else ""
        table.add_row(
            " or ".join(entry.boards), entry.owner, entry.purpose, f"waits, place {entry.place}{priority}", ""
        )
    common.show_table(table)


@command.command(
    "release",
    help="""Give back a board that you keep.""" + common.example("deploy lease release --board local"),
)
@common.board_name_option
@click.pass_obj
def release(boards_file: str | None, board_name: str) -> None:
    from deploy.farm.hold import leases_of

    registry = common.registry(boards_file)
    with leases_of(registry) as leases:
        leases.release_kept(registry[board_name].name)
    common.show(f"{board_name}: given back")
