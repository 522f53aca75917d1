"""Holders that are killed, stopped and resumed at random: no two of them are ever on a board at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.farm.leases import Leases
from tests.farm.chaos import BOARDS, Seen, journal, overlaps, users

RUNS = 5  # at least: on a busy machine more rounds are needed until so many have begun


def chaos(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Rounds of it; returns what was counted, after all that must hold was looked at."""
    with users(folder, ("anna", "ben", "cleo"), seed) as them:
        for number in range(5 * rounds):
            if number >= rounds and _runs(folder) >= RUNS:
                break
            them.round()
    seen = {board: journal(folder, board) for board in BOARDS}

    assert {board: [] for board in BOARDS} == {board: overlaps(entries) for board, entries in seen.items()}
    leases = Leases(folder / "farm.sqlite")
    for board in BOARDS:  # whoever was killed last holds nothing up
        lease = leases.take(board, wait=30)
        assert lease.token > max((entry.token for entry in seen[board]), default=0)
    leases.close()
    logs = "".join(path.read_text() for path in folder.glob("*.log"))
    return {
        "kills": them.kills,
        "stops": them.stops,
        "uses": logs.count("used\n"),
        "refused or lost": len(re.findall(r"^(LeaseLost|StaleToken|BoardSilent)", logs, re.MULTILINE)),
        "runs": _runs(folder),
    }


def _runs(folder: Path) -> int:
    return sum(entry.what == "begins" for board in BOARDS for entry in journal(folder, board))


def test_no_two_holders_are_ever_on_a_board_at_once(tmp_path: Path) -> None:
    counted = chaos(tmp_path, rounds=20, seed=1)

    print(counted)
    assert counted["kills"] and counted["stops"]
    assert counted["runs"] >= RUNS


@pytest.mark.long
def test_no_two_holders_are_ever_on_a_board_at_once_in_500_rounds(tmp_path: Path) -> None:
    counted = chaos(tmp_path, rounds=500, seed=2)

    print(counted)
    assert counted["kills"] > 100 and counted["stops"] > 100
    assert counted["refused or lost"] > 20  # else nobody was ever late


def test_the_journal_tells_two_holders_at_once() -> None:
    """Else the tests above would pass on boards that let everybody in."""
    first, late, run = Seen(1, 1, 10, "does", "x"), Seen(3, 1, 10, "does", "x"), Seen(4, 2, 11, "begins", "x")

    assert [] == overlaps([first, Seen(2, 2, 11, "does", "x"), run])
    assert 1 == len(overlaps([first, Seen(2, 2, 11, "does", "x"), late]))
    assert [] == overlaps([run, Seen(5, 2, 11, "ends", "x"), Seen(6, 3, 12, "begins", "x")])
    assert 1 == len(overlaps([run, Seen(6, 3, 12, "begins", "x")]))
