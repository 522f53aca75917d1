"""Which boards will do: names, tags, and what a board must have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.boards import Registry, parse
from deploy.errors import NoSuchBoard, UnknownBoard, UsageError
from deploy.farm.choose import candidates, missing, words
from deploy.farm.seen import Seen

LAB = """\
schema: 1
boards:
  pi4: {kind: raspberry-pi, transport: {kind: ssh, host: pi4}, tags: [lab], cpu: {arch: aarch64, features: [asimd]}}
  pi5: {kind: raspberry-pi, transport: {kind: ssh, host: pi5}, tags: [lab]}
  orin:
    kind: jetson
    transport: {kind: serial, port: /dev/ttyUSB0}
    tags: [attic]
    power: {kind: command, on: ./on, off: ./off}
"""


def seen(board: str, reason: str | None = None, rails: Any = None, **identity: Any) -> dict[str, Seen]:
    found = {"identity": {"at_s": 0.0, "is": identity}}
    if rails is not None:
        found["rails"] = {"at_s": 0.0, "is": rails}
    return {board: Seen(board, 0.0, found, reason)}


@pytest.fixture
def lab() -> Registry:
    return parse(LAB, Path("boards.yaml"))


def names(*chosen: Any, **how: Any) -> list[str]:
    return [board.name for board in candidates(*chosen, **how)]


@pytest.mark.parametrize(
    ("need", "expected"),
    [
        ("raspberry-pi", ["pi4", "pi5"]),
        ("aarch64", ["pi4", "pi5"]),
        ("dotprod", ["pi5"]),
        ("asimddp", ["pi5"]),  # as the kernel calls it
        ("memory>=4G", ["pi5"]),
        ("memory>=4000M", ["pi5"]),
        ("cpus>=4", ["pi5"]),
        ("meter", ["pi5"]),
        ("power", ["orin"]),
        ("serial", ["orin"]),
        ("raspberry-pi, aarch64 neon", ["pi4", "pi5"]),
    ],
)
def test_a_need_is_met_by_what_boards_yaml_says_or_what_the_board_said(
    lab: Registry, need: str, expected: list[str]
) -> None:
    found = seen(
        "pi5", machine="aarch64", cpu_features=["asimd", "asimddp"], memory_bytes=4_060_000_000, cpus=4,
        rails=[{"name": "VDD", "chip": "pmic"}],
    )  # fmt: skip

    assert expected == names(lab, [], [], [need], found)


def test_tags_and_needs_go_together_and_nothing_but_what_was_asked_for_is_taken(lab: Registry) -> None:
    assert ["pi4"] == names(lab, [], ["lab"], ["asimd"])
    assert ["orin", "pi4", "pi5"] == names(lab, ["orin"], ["lab"])
    assert ["pi4", "pi5", "orin"] == names(lab, [], [], ["real"])


def test_a_board_in_quarantine_is_taken_only_by_name(lab: Registry) -> None:
    found = seen("pi4", reason="does not boot")

    assert ["pi5"] == names(lab, [], ["lab"], [], found)
    assert ["pi4"] == names(lab, ["pi4"], [], [], found)


def test_where_none_will_do_it_says_why_for_each(lab: Registry) -> None:
    found = {**seen("pi4", machine="aarch64", cpu_features=["asimd"]), "orin": Seen("orin", reason="the fan is dead")}

    with pytest.raises(NoSuchBoard) as caught:
        candidates(lab, [], ["lab", "attic"], ["dotprod"], found)

    unseen = "was never reached, and boards.yaml does not say whether it has dotprod"
    assert (
        f"no board will do: pi4 has no dotprod; pi5 {unseen}; orin {unseen}, is in quarantine: the fan is dead"
        == str(caught.value)
    )


@pytest.mark.parametrize(
    ("need", "said"),
    [
        ("dotprot", "nothing is known to need 'dotprot'; did you mean 'dotprod'?"),
        ("memory>=lots", "nothing is known to need 'memory>=lots'; did you mean 'memory>=2G'?"),
        ("cpus>=4G", "'cpus>=4G' counts CPUs, and G is a unit of memory"),
    ],
)
def test_a_need_that_is_none_names_the_nearest(need: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        words([need])

    assert said == str(caught.value)


def test_an_unknown_name_or_tag_is_said_as_ever(lab: Registry) -> None:
    with pytest.raises(UnknownBoard, match="did you mean 'pi5'"):
        candidates(lab, ["pi"], [])
    with pytest.raises(UnknownBoard, match="did you mean 'lab'"):
        candidates(lab, [], ["labs"])


def test_a_virtual_board_is_told_from_a_real_one_by_what_it_says(lab: Registry) -> None:
    found = seen("pi4", emulated=True)["pi4"]

    assert ["is virtual"] == missing(lab["pi4"], ["real"], found)
    assert [] == missing(lab["pi4"], ["virtual"], found)
