"""`deploy completion`"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from deploy.cli import common


@click.command(
    "completion",
    help="""Print the script that completes verbs, options and board names."""
    + common.example('eval "$(deploy completion bash)"   # in ~/.bashrc'),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    from deploy.cli import cli

    completer = get_completion_class(shell)
    assert completer
    common.show(completer(cli, {}, "deploy", "_DEPLOY_COMPLETE").source())
