"""Power by boards.yaml: real programs that write down what they were asked for, and why they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import power
from deploy.boards import LOCAL, Board
from deploy.errors import ConfigError, PowerError


def switched(tmp_path: Path, **commands: str) -> Board:
    script = tmp_path / "hub"
    script.write_text('#!/bin/sh\necho "$*" >>asked\nif [ "$1" = stuck ]; then echo "no such port" >&2; exit 3; fi\n')
    script.chmod(0o755)
    return LOCAL.model_validate({**LOCAL.model_dump(), "name": "pi", "power": {"kind": "command", **commands}})


@pytest.mark.parametrize(
    ("cycle", "action", "asked"),
    [
        (None, "on", ["2 on"]),
        (None, "off", ["'2' off;"]),  # no shell takes the words apart
        (None, "cycle", ["'2' off;", "2 on"]),
        ("./hub cycle", "cycle", ["cycle"]),
    ],
)
def test_power_is_switched_by_the_commands_of_boards_yaml(tmp_path, monkeypatch, cycle, action, asked):
    monkeypatch.setattr(power, "OFF_S", 0.0)
    board = switched(tmp_path, on="./hub '2 on'", off="""./hub "'2' off;" """, **({"cycle": cycle} if cycle else {}))

    power.switch(board, action, tmp_path)

    assert asked == (tmp_path / "asked").read_text().splitlines()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("./hub stuck", "`./hub stuck`: exit status 3: no such port"),
        ("./nonesuch", "`./nonesuch`: No such file or directory"),
        ("./hub 'open", "`./hub 'open`: No closing quotation"),
    ],
)
def test_a_command_that_fails_is_shown_with_its_reason(tmp_path, command, reason):
    with pytest.raises(PowerError) as caught:
        power.switch(switched(tmp_path, on=command, off="./hub"), "on", tmp_path)

    assert f"power of board 'pi': {reason}" == str(caught.value)


def test_a_board_that_nothing_switches_says_what_boards_yaml_needs(tmp_path):
    with pytest.raises(ConfigError) as caught:
        power.switch(LOCAL, "cycle", tmp_path)

    assert "boards.yaml names no `power:` for board 'local'" == str(caught.value)
    assert "`power: {kind: command, on: ..., off: ...}` there names what switches it" == caught.value.hint
