"""A board's supply: on, off, or off and on again."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path
from typing import Literal

from deploy.boards import Board, CommandPower
from deploy.errors import ConfigError, PowerError

Action = Literal["on", "off", "cycle"]
OFF_S = 2.0  # of a cycle: so long, capacitors keep a small board alive
COMMAND_S = 60.0


def switch(board: Board, action: Action, folder: Path) -> None:
    """
    Switch the supply that `power:` of boards.yaml names.  What runs on the board is not asked first.

    Args:
        folder: where commands run.

    Raises:
        ConfigError: boards.yaml names none for this board.
        PowerError: its command fails, or takes longer than `COMMAND_S`.
        UnknownBoard, VirtualError: the virtual board is not there, or is on already.
    """
    if board.power is None:
        raise ConfigError(
            f"boards.yaml names no `power:` for board {board.name!r}",
            "`power: {kind: command, on: ..., off: ...}` there names what switches it",
            board=board.name,
        )
    if isinstance(board.power, CommandPower):
        _command(board, board.power, action, folder)
    else:
        _virtual(board.power.board, action)


def _virtual(name: str, action: Action) -> None:
    from deploy.virtual import control

    if action in ("off", "cycle"):
        control.ask(name, "power-cut")
    if action in ("on", "cycle"):
        control.ask(name, "power-on")


def _command(board: Board, power: CommandPower, action: Action, folder: Path) -> None:
    if action != "cycle" or power.cycle:
        _run(board, {"on": power.on, "off": power.off, "cycle": power.cycle or ""}[action], folder)
        return
    _run(board, power.off, folder)
    time.sleep(OFF_S)
    _run(board, power.on, folder)


def _run(board: Board, command: str, folder: Path) -> None:
    try:
        done = subprocess.run(
            shlex.split(command), cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=COMMAND_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        reason = f"takes more than {COMMAND_S:.0f} s"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    else:
        if not done.returncode:
            return
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = f"exit status {done.returncode}{': ' + said[-1] if said else ''}"
    raise PowerError(f"power of board {board.name!r}: `{command}`: {reason}", "type it yourself", board=board.name)
