"""Releases: what a board keeps, what it says is there, and going back."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import bundle as bundles
from deploy.boards import Board
from deploy.build import build
from deploy.bundle import Bundle
from deploy.errors import BoardError, GoldenMismatch, NotOnBoard
from deploy.push import push
from deploy.releases import listing, rollback
from deploy.session import Session
from deploy.verify import prove
from devices.protocol.manifest import GOLDEN as GOLDEN_FILE
from devices.protocol.manifest import MODEL
from tests.conftest import GOLDEN, Said
from tests.deploy.test_push import _altered, current

Open = Callable[..., Session]


@pytest.fixture(scope="module")
def digits() -> Bundle:
    return build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle


def version(digits: Bundle, number: int, name: str = "digits") -> Bundle:
    """Another bundle with the same answers: what stands behind a flatbuffer's end means nothing."""
    files = {**digits.files, MODEL: digits.model + bytes([number]) * 8}
    return bundles.make(replace(digits.manifest, name=name, seed=number), files)


def blobs(board: Board) -> set[str]:
    return {path.name for path in (Path(board.root) / "store").iterdir()}


def files(*some: Bundle) -> set[str]:
    return {entry.sha256 for bundle in some for entry in bundle.manifest.files.values()}


def test_the_list_says_what_is_there_which_is_current_and_which_was_before(session: Session, digits: Bundle) -> None:
    assert [] == listing(session)
    first, second = version(digits, 1), version(digits, 2, "other")
    push(session, first)
    push(session, second)

    there = listing(session)

    assert [("digits/1", first.digest, False, True), ("other/1", second.digest, True, False)] == [
        (entry.release, entry.bundle, entry.current, entry.previous) for entry in there
    ]
    assert sum(map(len, first.files.values())) == there[0].bytes
    assert all(entry.proven and not entry.signed for entry in there)


def test_rollback_goes_to_what_was_current_before_and_twice_comes_back(session: Session, digits: Bundle) -> None:
    for number in (1, 2, 3):
        push(session, version(digits, number))

    back = rollback(session)

    assert ("digits/2", "digits/3") == (back.release, back.before)
    assert back.verification is not None
    assert back.verification.exact
    assert "digits/2" == current(session)
    assert "digits/3" == rollback(session).release == current(session)


def test_rollback_crosses_bundles_as_there_is_one_current_release(session: Session, digits: Bundle) -> None:
    push(session, version(digits, 1))
    push(session, version(digits, 2, "other"))

    assert "digits/1" == rollback(session).release == current(session)


def test_rollback_goes_to_a_release_that_is_named(session: Session, digits: Bundle) -> None:
    for number in (1, 2, 3):
        push(session, version(digits, number))

    assert "digits/1" == rollback(session, "digits/1").release == current(session)
    again = rollback(session, "digits/1")
    assert ("digits/1", "digits/1", None) == (again.release, again.before, again.verification)


def test_there_may_be_nothing_to_go_back_to(session: Session, digits: Bundle) -> None:
    with pytest.raises(NotOnBoard) as empty:
        rollback(session)
    push(session, digits)
    with pytest.raises(NotOnBoard) as only_one:
        rollback(session)
    with pytest.raises(NotOnBoard) as unknown:
        rollback(session, "digit/1")

    reason = "there is nothing to go back to: "
    assert f"{reason}nothing was pushed yet (board 'local')" == str(empty.value)
    assert f"{reason}nothing was current before digits/1 (board 'local')" == str(only_one.value)
    assert "no release 'digit/1' on board 'local'; did you mean 'digits/1'?" == str(unknown.value)
    assert "`deploy releases --board local` lists what is there" == unknown.value.hint


def test_a_release_that_no_longer_answers_right_is_not_switched_to(
    session: Session, digits: Bundle, local: Board
) -> None:
    """The board changed since: here its golden vectors, as if another runtime answered."""
    wrong = bundles.make(digits.manifest, {**digits.files, GOLDEN_FILE: _altered(digits)})
    session.upload(wrong.manifest.files[GOLDEN_FILE].sha256, wrong.files[GOLDEN_FILE])
    session.upload(wrong.manifest.files[MODEL].sha256, wrong.model)
    session.request("release.stage", wrong.manifest_bytes)
    session.request("release.activate", release="digits/1")
    push(session, digits)

    with pytest.raises(GoldenMismatch) as caught:
        rollback(session)

    assert str(caught.value).endswith("(board 'local'); nothing was switched")
    assert "digits/2" == current(session)


def test_a_damaged_file_of_an_older_release_is_noticed_before_the_switch(
    session: Session, digits: Bundle, local: Board
) -> None:
    first = version(digits, 1)
    push(session, first)
    push(session, version(digits, 2))
    blob = Path(local.root) / "store" / first.manifest.files[MODEL].sha256
    blob.write_bytes(bytes(blob.stat().st_size))

    with pytest.raises(BoardError, match="was damaged on the board's disk"):
        rollback(session)

    assert "digits/2" == current(session)


def test_a_board_keeps_as_many_releases_of_a_bundle_as_boards_yaml_says_and_the_files_they_need(
    open_session: Open, local: Board, digits: Bundle
) -> None:
    session = open_session(local.model_copy(update={"keep_releases": 3}))
    other = version(digits, 9, "other")
    push(session, other)
    made = [version(digits, number) for number in range(1, 6)]

    pruned = [push(session, bundle).pruned for bundle in made]

    assert [(), (), (), ("digits/1",), ("digits/2",)] == pruned
    assert {"digits/3", "digits/4", "digits/5", "other/1"} == {entry.release for entry in listing(session)}
    assert files(other, *made[2:]) == blobs(local)


def test_the_current_release_and_the_one_before_it_are_never_removed(
    open_session: Open, local: Board, digits: Bundle
) -> None:
    session = open_session(local.model_copy(update={"keep_releases": 1}))
    for number in (1, 2, 3):
        push(session, version(digits, number))
    assert {"digits/2", "digits/3"} == {entry.release for entry in listing(session)}

    rollback(session)
    push(session, version(digits, 4))

    assert {"digits/2", "digits/4"} == {entry.release for entry in listing(session)}
    assert "digits/2" == rollback(session).release


def test_what_a_killed_push_left_behind_goes_with_the_next_one_but_for_partial_files(
    open_session: Open, local: Board, digits: Bundle
) -> None:
    killed = open_session(local)
    left = version(digits, 1)
    for name, entry in left.manifest.files.items():
        killed.upload(entry.sha256, left.files[name])
    killed.request("release.stage", left.manifest_bytes)
    orphan = "0" * 64
    killed.request("store.put", b"half", sha256=orphan, bytes=8, offset=0)
    killed.close()

    session = open_session(local)
    push(session, new := version(digits, 2))

    assert {"digits/2"} == {entry.release for entry in listing(session)}
    assert {*files(new), f"{orphan}.part"} == blobs(local)


def test_nothing_is_removed_while_another_host_brings_files(open_session: Open, local: Board, digits: Bundle) -> None:
    """Its release does not exist yet, so nothing says which files it needs."""
    one, other = (open_session(local.model_copy(update={"keep_releases": 1})) for _ in range(2))
    coming = version(digits, 7)
    for name, entry in coming.manifest.files.items():
        other.upload(entry.sha256, coming.files[name])
    for number in (1, 2, 3):
        push(one, version(digits, number))
    assert 3 == len(listing(one))

    assert "digits/4" == push(other, coming).release
    assert {"digits/3", "digits/4"} == {entry.release for entry in listing(other)}


def test_two_hosts_that_push_at_once_both_finish_and_every_release_that_is_left_answers(
    open_session: Open, local: Board, digits: Bundle
) -> None:
    """Different bundles of one name, the same bundle from both, and a bound that has each prune the other's."""
    sessions = [open_session(local.model_copy(update={"keep_releases": 2})) for _ in range(2)]
    failed: list[BaseException] = []

    def go(session: Session, numbers: list[int]) -> None:
        try:
            for number in numbers:
                push(session, version(digits, number))
        except BaseException as error:
            failed.append(error)

    plans = ([1, 2, 7, 3], [4, 5, 7, 6])
    threads = [threading.Thread(target=go, args=pair) for pair in zip(sessions, plans, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [] == failed
    there = listing(sessions[0])
    assert current(sessions[0]) in {entry.release for entry in there}
    for entry in there:
        assert entry.bundle is not None
        verification = prove(sessions[0], entry.bundle, entry.release, entry.golden)
        assert verification is not None
        assert verification.exact


def test_the_order_is_that_of_the_activations_whatever_the_clock_of_the_board_says(
    session: Session, digits: Bundle, local: Board
) -> None:
    """A Pi without a battery wakes up in 1970, and later in the future."""
    for number, year_s in ((1, 4e9), (2, 0), (3, 2e9)):
        pushed = push(session, version(digits, number))
        folder = Path(local.root) / "releases" / pushed.release
        for path in (*folder.iterdir(), folder, Path(local.root) / "history"):
            os.utime(path, (year_s, year_s))

    assert "digits/2" == rollback(session).release
    assert [4e9, 0, 2e9] == [entry.when_s for entry in listing(session)]


def test_an_activation_that_was_killed_before_it_was_written_down_is_added_by_the_next(
    session: Session, digits: Bundle, local: Board
) -> None:
    push(session, version(digits, 1))
    push(session, version(digits, 2))
    history = Path(local.root) / "history"
    history.write_text(history.read_text().splitlines(keepends=True)[0])
    assert "digits/1" == next(entry.release for entry in listing(session) if entry.previous)

    push(session, version(digits, 3))

    assert "digits/2" == rollback(session).release


def test_a_history_that_makes_no_sense_is_passed_over(session: Session, digits: Bundle, local: Board) -> None:
    push(session, version(digits, 1))
    push(session, version(digits, 2))
    history = Path(local.root) / "history"
    history.write_text('garbage\n{"release": 7}\n[]\n' + history.read_text() + '{"release": "../../etc"}\n{')

    assert "digits/1" == rollback(session).release
    assert 0o600 == history.stat().st_mode & 0o777


def test_the_verbs_list_go_back_and_say_what_they_did(digits: Bundle, tmp_path: Path, say: Said) -> None:
    def says(*words: str) -> str:
        code, out, err = say(*words)
        assert 0 == code, err
        return out

    assert "local: nothing pushed yet\n" == says("releases")
    for number in (1, 2):
        version(digits, number).write(tmp_path / "net.bundle")
        says("push", "net.bundle")

    lines = [line.split() for line in says("releases").splitlines()]
    assert ["digits/1", version(digits, 1).digest[:12], "before"] == [lines[3][0], lines[3][1], lines[3][-1]]
    assert ["digits/2", "current"] == [lines[4][0], lines[4][-1]]
    proof = "8 golden vectors bit-exact (80 values)"
    assert f"local: digits/1 is current again, instead of digits/2 ({proof})\n" == says("rollback")
    assert "local: digits/1 is current already\n" == says("rollback", "digits/1")
    back = json.loads(says("rollback", "digits/2", "--json"))
    assert ("local", "digits/2", "digits/1", True) == (
        back["board"], back["release"], back["before"], back["verification"]["passed"]
    )  # fmt: skip
    assert [False, True] == [entry["current"] for entry in json.loads(says("releases", "--json"))]
