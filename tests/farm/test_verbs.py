"""Leases as whoever types verbs meets them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.farm.leases import Leases, default_owner
from deploy.farm.seen import Sightings
from tests.conftest import GOLDEN, Said
from tests.farm.clock import TestClock

LAB = """\
schema: 1
boards:
  one: {{kind: generic, transport: {{kind: local}}, root: {folder}/one, tags: [desk]}}
  two: {{kind: generic, transport: {{kind: local}}, root: {folder}/two, tags: [desk], cpu: {{arch: aarch64}}}}
"""


@pytest.fixture(autouse=True)
def lab(tmp_path: Path) -> None:
    """Two boards of this machine, in the folder that `say` speaks in."""
    (tmp_path / "boards.yaml").write_text(LAB.format(folder=tmp_path))


@pytest.fixture
def leases() -> Iterator[Leases]:
    leases = Leases(Path(os.environ["DEPLOY_FARM"]) / "farm.sqlite")
    yield leases
    leases.close()


def test_a_verb_takes_a_lease_shows_it_to_the_board_and_gives_it_back(
    say: Said, leases: Leases, tmp_path: Path
) -> None:
    for number, words in enumerate((["releases", "-b", "one"], ["boards", "check", "one"]), 1):
        code, _, err = say(*words)
        assert (0, "") == (code, err)

        assert [] == leases.show()
        board = json.loads((tmp_path / "one" / "lease").read_text())
        assert (number, default_owner()) == (board["token"], board["owner"])
        assert board["until_ns"] <= time.monotonic_ns()  # the board was told, too


def test_a_verb_waits_and_says_for_whom_and_where_it_stands(say: Said, leases: Leases) -> None:
    held = leases.take("one", owner="anna", purpose="measure kws")
    other = threading.Thread(target=lambda: leases.take("one", owner="ben").release())
    other.start()
    while not leases.queue():
        time.sleep(0.01)

    def give_back() -> None:
        while len(leases.queue()) < 2:
            time.sleep(0.01)
        held.release()

    giving = threading.Thread(target=give_back)
    giving.start()
    code, out, err = say("releases", "-b", "one")

    giving.join()
    other.join()
    assert (0, "one: nothing pushed yet\n") == (code, out)
    assert "waiting: place 2 in the queue for one; one is held by anna (measure kws)" == err.splitlines()[0]


def test_what_is_kept_is_shown_used_and_given_back(say: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_OWNER", "anna")
    code, out, err = say("lease", "take", "--board", "one", "--for", "30m", "--purpose", "debugging")
    assert (0, "one: kept by anna for 30 min\n") == (code, out)
    assert "`deploy lease release --board one` gives it back before\n" == err
    assert 0 == say("releases", "-b", "one")[0]

    monkeypatch.setenv("DEPLOY_OWNER", "ben")
    code, _, err = say("releases", "-b", "one", "--wait", "0")
    assert 1 == code
    assert (
        "error: board 'one' is held by anna (debugging), kept for another 30 min\n"
        "hint:  `--wait 10m` waits in the queue for so long; `deploy lease show` lists who has what\n" == err
    )
    code, _, err = say("lease", "release", "--board", "one")
    assert 1 == code
    assert err.startswith("error: board 'one' is not yours to release: it is held by anna (debugging), kept for")

    _, out, _ = say("lease", "show")
    assert ["one", "anna", "debugging", "kept", "for", "another", "30", "min", "1"] == out.splitlines()[3].split()
    monkeypatch.setenv("DEPLOY_OWNER", "anna")
    assert (0, "one: given back\n", "") == say("lease", "release", "--board", "one")
    assert (0, "nobody has a board\n", "") == say("lease", "show")
    assert (0, "one: free\n", "") == say("lease", "show", "--board", "one")


def test_the_next_free_board_with_a_tag_is_taken(say: Said, leases: Leases) -> None:
    leases.take("one", owner="anna")

    code, out, _ = say("lease", "take", "--tag", "desk", "--json", "--wait", "0")

    assert (0, "two") == (code, json.loads(out)["board"])
    code, _, err = say("lease", "take", "--tag", "desk", "--wait", "0", "--needs", "dotprod")
    assert 1 == code
    assert err.startswith("error: no board will do: one was never reached, and boards.yaml does not say whether it has")


def test_a_run_goes_to_a_board_that_has_what_it_needs(say: Said) -> None:
    """boards.yaml says that two is an aarch64; what it says of itself when it is reached is not asked again."""
    code, out, err = say("run", str(GOLDEN / "digits_int8.tflite"), "--needs", "aarch64", "--kernels", "off", "--json")

    assert 0 == code, err
    assert "two" == json.loads(out)["board"]


def test_a_push_to_a_tag_leaves_out_what_is_in_quarantine_and_says_so(say: Said, leases: Leases) -> None:
    Sightings(leases.file).quarantine("two", "the fan is dead")

    code, out, err = say("push", "--tag", "desk", str(GOLDEN / "digits_int8.tflite"), "--kernels", "off")

    assert (0, 1) == (code, len(out.splitlines()))
    assert out.startswith("one: digits_int8/1 is current")
    assert "two is in quarantine and left out: the fan is dead\n" == err
    assert [] == leases.show()
    assert [2, 1] == [leases.take(board).token for board in ("one", "two")]


def test_where_all_that_would_do_are_in_quarantine_they_are_looked_at_again(say: Said, leases: Leases) -> None:
    sightings = Sightings(leases.file)
    sightings.quarantine("one", "the fan is dead", by_hand=True)
    Sightings(leases.file, TestClock()).quarantine("two", "did not boot then, long ago")

    code, out, err = say("lease", "take", "--tag", "desk")

    assert (0, "two: kept by") == (code, out[:12]), err
    assert ["one"] == [board for board, seen in sightings.all().items() if seen.reason]


def test_a_check_does_not_wait_for_a_board_that_somebody_has(say: Said, leases: Leases) -> None:
    leases.take("one", owner="anna", purpose="measure")

    code, out, err = say("boards", "check")

    assert 1 == code
    assert err.startswith("error: board 'one' is held by anna (measure)\n")
    assert "two" in out


def test_power_is_not_switched_under_somebody_s_run(say: Said, leases: Leases, tmp_path: Path) -> None:
    text = LAB.format(folder=tmp_path).replace("tags: [desk]}", "power: {kind: command, on: touch on, off: 'true'}}")
    (tmp_path / "boards.yaml").write_text(text)
    held = leases.take("one", owner="anna")

    assert 1 == say("boards", "power", "one", "on", "--wait", "0")[0]
    assert not (tmp_path / "on").exists()

    held.release()
    assert (0, "one: on\n", "") == say("boards", "power", "one", "on", "--wait", "0")
    assert (tmp_path / "on").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--for", "soon"), "'soon' is no time such as 90s, 30m or 2h up to 30d"),
        (("--for", "31d"), "'31d' is no time such as 90s, 30m or 2h up to 30d"),
        (("--wait", "-1"), "'-1' is no time such as 90s, 30m or 2h"),
        (("--wait", "nan"), "'nan' is no time such as 90s, 30m or 2h"),
    ],
)
def test_a_time_that_is_none_is_refused(say: Said, words: tuple[str, str], said: str) -> None:
    code, _, err = say("lease", "take", *words)

    assert 2 == code
    assert said in err
