"""A board's supply: on, off, or off and on again."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

from deploy.boards import Board, CommandPower, LabgridPower
from deploy.errors import ConfigError, PowerError

Action = Literal["on", "off", "cycle"]
OFF_S = 2.0  # of a cycle: so long, capacitors keep a small board alive
COMMAND_S = 60.0
TYPE_IT = "type it yourself"


def switch(board: Board, action: Action, folder: Path) -> None:
    """
    Switch the supply that `power:` of boards.yaml names.  What runs on the board is not asked first.

    Args:
        folder: where commands run.

    Raises:
        ConfigError: boards.yaml names none for this board.
        PowerError: its command, or labgrid's driver, fails or takes longer than `COMMAND_S`.
        PlaceError: labgrid does not switch the board's place.
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
    elif isinstance(board.power, LabgridPower):
        _labgrid(board, board.power, action, folder)
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


# labgrid's drivers as its NetworkPowerDriver uses them (26.0), in a process of their own: most wait without end for a
# switch that does not answer.
_DRIVER = """
import importlib, sys
model, host, index, value = sys.argv[1:]
try:
    driver = importlib.import_module("labgrid.driver.power." + model)
except ModuleNotFoundError as error:
    inside = (error.name or "").startswith("labgrid.driver.power.")
    here = error.name != "labgrid"
    sys.exit("labgrid has no such model" if inside else str(error) if here else "pip install labgrid brings it")
driver.power_set(host, getattr(driver, "PORT", None), index, value == "on")
"""


def _labgrid(board: Board, power: LabgridPower, action: Action, folder: Path) -> None:
    if power.model is None:
        from deploy.farm.places import ask

        if board.place is None:
            raise ConfigError(
                f"board {board.name!r} has neither a labgrid `place:` nor, for its power, a `model:`",
                "`power: {kind: labgrid, model: netio, host: 10.0.0.9, index: 3}` names a switch",
                board=board.name,
            )
        ask(board, "power", action)
        return
    for number, value in enumerate(("off", "on") if action == "cycle" else (action,)):
        if number:
            time.sleep(OFF_S)
        words = [sys.executable, "-c", _DRIVER, power.model, str(power.host), str(power.index), value]
        shown = f"labgrid's {power.model} at {power.host}, {power.index} {value}"
        _run_words(board, words, folder, shown, "`power:` in boards.yaml names switch and socket")


def _run(board: Board, command: str, folder: Path) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise _failed(board, f"`{command}`", str(error), TYPE_IT) from None
    _run_words(board, words, folder, f"`{command}`", TYPE_IT)


def _run_words(board: Board, words: list[str], folder: Path, shown: str, hint: str) -> None:
    try:
        done = subprocess.run(
            words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True,
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
    raise _failed(board, shown, reason, hint)


def _failed(board: Board, shown: str, reason: str, hint: str) -> PowerError:
    return PowerError(f"power of board {board.name!r}: {shown}: {reason}", hint, board=board.name)
