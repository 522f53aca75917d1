"""`deploy push`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli import common


@click.command(
    "push",
    help="""
    Bring BUNDLE (or a .tflite) to a board.

    The board needs python3 and nothing else: the agent travels along, and numpy and LiteRT where the board lacks
    them.  Only what is missing there is sent.  The golden vectors run on the board before the bundle becomes current.
    """
    + common.example("deploy push --board local net.bundle"),
)
@common.board_option
@common.bundle_argument
@common.json_option
@click.pass_obj
def command(boards_file: str | None, board_name: str, bundle_path: Path, as_json: bool) -> None:
    registry = common.registry(boards_file)
    board = registry[board_name]
    bundle = common.read_bundle(bundle_path)
    with common.session_with(registry, board) as session:
        pushed = common.push_to(session, bundle)
        if as_json:
            common.show_json({"board": board.name, "bundle": bundle.digest, **vars(pushed)})
        else:
            common.show(common.pushed_line(session, pushed))
