"""
The `deploy` command: verbs, exit codes, and all that is printed.

Exit codes: 0 done; 1 an error, said in one line with a hint; 2 the command line was not understood.  Results go to
standard output (`--json` for machines), progress and errors to standard error.  A verb's module is imported when the
verb is used: `deploy --help` must not wait for what it does not need.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

# verb -> its one line of help; the module deploy.cli.<verb> has a command `command`.
VERBS = {
    "build": "Make a bundle from a model.",
    "inspect": "Show what a model or a bundle holds.",
    "accelerate": "Compile a model for a PYNQ board's accelerator.",
    "boards": "List, check and add boards.",
    "push": "Bring a bundle to a board and prove it there.",
    "releases": "List what is on a board.",
    "rollback": "Make an older release current again.",
    "run": "Run a bundle on a board and show its answers.",
    "measure": "Measure latency and energy on a board.",
    "profile": "Show what each operator takes on a board.",
    "attach": "Pick up measurements whose host vanished.",
    "evaluate": "Measure accuracy on a board.",
    "verify": "Compare a board's answers with the golden ones.",
    "keygen": "Make a key that signs bundles.",
    "sign": "Sign a bundle.",
    "runs": "List, show and export what was measured.",
    "compare": "Compare measurements, with an interval.",
    "gate": "Pass or fail a bundle against a baseline, for CI.",
    "explain": "Say what a verdict means and what to do.",
    "report": "Write an HTML report of a run.",
    "farm": "Run plans on many boards.",
    "lease": "Keep a board for yourself, and see who has what.",
    "virtual": "Bring up boards that QEMU plays.",
    "doctor": "Check this machine and say what is missing.",
    "completion": "Print shell completion.",
}


class _Verbs(click.Group):
    """Knows every verb, imports one."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"deploy.cli.{name}").command
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from deploy.errors import nearest

            raise click.UsageError(f"no verb {args[0]!r}{nearest(args[0], VERBS)}", context)
        return super().resolve_command(context, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--boards", "boards_file", metavar="FILE", help="Board file [$DEPLOY_BOARDS, ./boards.yaml].")
@click.version_option(package_name="deploy-hil", prog_name="deploy")
@click.pass_context
def cli(context: click.Context, boards_file: str | None) -> None:
    """
    Put compressed neural networks on real boards and bring the truth back.

    \b
      deploy build net.keras --data train.npz -o net.bundle
      deploy push --board local net.bundle
      deploy measure --board local net.bundle
    """
    context.obj = boards_file


def execute(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    # A service manager's stop and a closed terminal's hang-up are handled as Ctrl-C is: what arrived is kept.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _interrupt_again)
    try:
        result: Any = cli.main(args, prog_name="deploy", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "deploy"
        return _fail(error.format_message(), f"`{command} --help` shows how", 2)
    except click.ClickException as error:
        return _fail(error.format_message(), None, 1)
    except (KeyboardInterrupt, click.Abort):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not turn the message into a traceback
        words = set(sys.argv if args is None else args)
        keeps = words & {"measure", "evaluate", "attach", "profile", "gate"}
        hint = "what had arrived is kept: `deploy runs list`" if keeps else None
        return _fail("interrupted", "the same command goes on where it was" if {"farm", "run"} <= words else hint, 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `deploy runs | head` is no error
        return 1
    except Exception as error:
        from deploy.errors import DeployError

        if isinstance(error, DeployError):
            return _fail(str(error), error.hint, error.exit_code)
        if os.environ.get("DEPLOY_DEBUG"):
            raise
        if isinstance(error, OSError):  # a full disk under our output, a file that vanished
            return _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), None, 1)
        return _fail(f"internal: {type(error).__name__}: {error}", "a bug; `DEPLOY_DEBUG=1 deploy ...` shows where", 1)


def _interrupt(_number: int, _frame: Any) -> None:
    # Python swallows an exception that strikes in a callback of its import system: ask again until it is heard.
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    raise KeyboardInterrupt


def _interrupt_again(_number: int, _frame: Any) -> None:
    if sys.exc_info()[0] is None:  # else it was heard, and what is open is being closed
        raise KeyboardInterrupt


def _fail(message: str, hint: str | None, code: int) -> int:
    for line in message.splitlines():
        click.echo(f"error: {line}", err=True)
    if hint:
        click.echo(f"hint:  {hint}", err=True)
    return code
