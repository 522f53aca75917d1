"""Push to several boards at once."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import bundle as bundles
from deploy import runtime
from deploy.boards import LOCAL, Board, parse
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import BoardUnreachable, GoldenMismatch, UnknownBoard
from deploy.fleet import Outcome, push_to_all
from devices.protocol.manifest import GOLDEN as GOLDEN_FILE
from tests.conftest import GOLDEN, Said
from tests.deploy.test_push import _altered


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two boards on this machine with the tag lab, and one in the attic that is not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boards.yaml").write_text(
        f"""\
schema: 1
boards:
  one: {{kind: generic, transport: {{kind: local}}, root: {tmp_path}/one, tags: [lab]}}
  two: {{kind: generic, transport: {{kind: local}}, root: {tmp_path}/two, tags: [lab, desk]}}
  dead: {{kind: generic, transport: {{kind: ssh, host: 127.0.0.1, port: 1, user: pi}}, tags: [attic]}}
"""
    )
    return tmp_path / "boards.yaml"


class Watcher:
    """What one board's line was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.last: tuple[int, int] | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def bytes(self, done: int, total: int) -> None:
        self.last = (done, total)


def here(folder: Path, name: str) -> Board:
    return LOCAL.model_copy(update={"name": name, "root": str(folder / name)})


def everywhere(boards: list[Board], bundle: Bundle, known_hosts: Path) -> tuple[list[Outcome], dict[str, Watcher]]:
    watchers = {board.name: Watcher() for board in boards}
    return list(push_to_all(boards, bundle, known_hosts, lambda board: watchers[board.name])), watchers


def test_every_board_gets_the_bundle_and_is_told_about(digits: Bundle, tmp_path: Path) -> None:
    boards = [here(tmp_path, f"board{n}") for n in range(4)]

    outcomes, watchers = everywhere(boards, digits, tmp_path / "known_hosts")

    assert {board.name for board in boards} == {outcome.board.name for outcome in outcomes}
    assert ["digits/1"] * 4 == [outcome.pushed.release for outcome in outcomes if outcome.pushed]
    total = sum(map(len, digits.files.values()))
    assert [(total, total)] * 4 == [watcher.last for watcher in watchers.values()]
    assert all(["reaching it", "proving it on the board"] == watcher.notes for watcher in watchers.values())


def test_a_board_that_does_not_answer_holds_up_no_other(digits: Bundle, tmp_path: Path, deaf: int) -> None:
    """It is reached first, and heard of last."""
    transport = {"kind": "ssh", "host": "127.0.0.1", "port": deaf, "user": "pi", "timeout_s": 8}
    silent = Board.model_validate({"name": "silent", "kind": "generic", "transport": transport})

    outcomes, _ = everywhere([silent, here(tmp_path, "one"), here(tmp_path, "two")], digits, tmp_path / "known_hosts")

    assert "silent" == outcomes[-1].board.name
    assert isinstance(outcomes[-1].error, BoardUnreachable)
    assert all(outcome.pushed for outcome in outcomes[:-1])


def test_a_bundle_that_does_not_prove_itself_fails_everywhere_and_switches_nothing(
    digits: Bundle, tmp_path: Path
) -> None:
    boards = [here(tmp_path, "one"), here(tmp_path, "two")]
    everywhere(boards, digits, tmp_path / "known_hosts")
    wrong = bundles.make(digits.manifest, {**digits.files, GOLDEN_FILE: _altered(digits)})

    outcomes, _ = everywhere(boards, wrong, tmp_path / "known_hosts")

    assert all(isinstance(outcome.error, GoldenMismatch) for outcome in outcomes)
    outcomes, _ = everywhere(boards, digits, tmp_path / "known_hosts")
    assert [True, True] == [outcome.pushed.was_current for outcome in outcomes if outcome.pushed]


def test_several_boards_print_a_line_each_and_fail_if_one_did(say: Said, lab: Path) -> None:
    code, _, err = say("build", GOLDEN / "digits_int8.tflite", "-o", "digits.bundle")
    assert 0 == code, err

    code, out, err = say("push", "-b", "two", "-b", "dead", "-b", "one", "digits.bundle")

    assert 1 == code
    sent = "is current (28.0 KiB of 28.0 KiB sent; 8 golden vectors bit-exact (80 values))"
    assert f"two: digits/1 {sent}\none: digits/1 {sent}\n" == out
    assert (
        "error: board 'dead' cannot be reached (ssh pi@127.0.0.1:1): Connection refused\n"
        "hint:  `ssh -p 1 pi@127.0.0.1` shows what your own ssh says\n" == err
    )


def test_json_is_a_list_when_several_boards_were_asked_for(say: Said, lab: Path) -> None:
    say("build", GOLDEN / "digits_int8.tflite", "-o", "digits.bundle")

    code, out, _ = say("push", "--tag", "desk", "--tag", "attic", "digits.bundle", "--json")
    assert 1 == code
    two, dead = json.loads(out)
    assert ("two", True, "digits/1") == (two["board"], two["ok"], two["release"])
    assert ("dead", False) == (dead["board"], dead["ok"])
    assert dead["hint"].startswith("`ssh -p 1")

    code, out, _ = say("push", "--tag", "desk", "digits.bundle", "--json")
    assert (0, ["two"]) == (code, [entry["board"] for entry in json.loads(out)])
    code, out, _ = say("push", "-b", "two", "digits.bundle", "--json")
    assert (0, "two") == (code, json.loads(out)["board"])


def test_names_and_tags_are_united_and_the_nearest_tag_is_suggested(lab: Path) -> None:
    registry = parse(lab.read_text(), lab)

    assert ["two", "one"] == [board.name for board in registry.select(["two"], ["lab", "desk"])]
    with pytest.raises(UnknownBoard) as caught:
        registry.select([], ["labs"])
    assert f"no board in {lab} has the tag 'labs'; did you mean 'lab'?" == str(caught.value)


def test_the_runtime_of_a_platform_is_fetched_once_however_many_boards_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package index is not at hand here: what stands for pip counts, and takes its time."""
    fetched: list[str] = []
    started = threading.Event()

    def download(lines: list[str], identity: dict[str, str], version: str, folder: Path, board: str) -> list[Path]:
        fetched.append(version)
        started.wait(0.3)
        return []

    monkeypatch.setattr(runtime, "_download", download)
    platforms = [{"machine": "aarch64", "python": python, "libc": "glibc 2.36"} for python in ("3.11.2", "3.12.1")]
    threads = [threading.Thread(target=runtime.pack_for, args=(platforms[n % 2], f"board{n}")) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ["3.11", "3.12"] == sorted(fetched)
