"""Leases: who holds the board, by fencing tokens."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.boards import Board
from deploy.errors import BoardError, StaleToken
from deploy.session import Session
from tests.devices.wire import Agent, fault

Open = Callable[..., Session]


def works(session: Session) -> bool:
    """Something that needs the lease, and changes nothing."""
    try:
        session.request("meters.stop")
    except StaleToken:
        return False
    return True


def test_an_older_holder_is_refused_in_the_middle_of_its_conversation(open_session: Open, local: Board) -> None:
    older, newer = open_session(local), open_session(local)
    older.claim(7, "anna", 60)
    assert works(older)

    newer.claim(8, "ben", 60)

    with pytest.raises(StaleToken) as caught:
        older.request("store.put", b"late", sha256="0" * 64, bytes=4, offset=0)
    assert "token 7 is older than 8 (of ben) (board 'local')" == str(caught.value)
    assert (7, 8, "ben", "stale-token") == (
        caught.value.token,
        caught.value.seen,
        caught.value.owner,
        caught.value.code,
    )
    assert works(newer)
    with pytest.raises(StaleToken):
        older.claim(7, "anna", 60)


def test_what_changes_nothing_may_be_asked_by_anybody(open_session: Open, local: Board) -> None:
    open_session(local).claim(1, "anna", 60)
    nobody = open_session(local)

    assert nobody.ping() > 0
    assert nobody.request("release.current").header["current"] is None
    assert nobody.request("release.list").payload == b"[]"
    assert not works(nobody)


def test_without_a_token_a_board_is_free_until_somebody_holds_it_and_again_when_that_ends(
    open_session: Open, local: Board
) -> None:
    nobody = open_session(local)
    assert works(nobody)
    holder = open_session(local)
    holder.claim(3, "anna", 60)
    with pytest.raises(StaleToken) as caught:
        nobody.request("meters.stop")
    assert "this conversation shows no token, and 3 holds the board (of anna) (board 'local')" == str(caught.value)

    holder.claim(3, "anna", 1e-6)

    assert works(nobody)
    assert works(holder)


def test_a_lower_token_is_refused_for_ever_also_when_the_lease_has_ended_and_by_another_agent(
    open_session: Open, local: Board
) -> None:
    open_session(local).claim(5, "anna", 1e-6)

    with pytest.raises(StaleToken) as caught:
        open_session(local).claim(4, "ben", 60)

    assert "token 4 is older than 5 (of anna) (board 'local')" == str(caught.value)


def test_a_lease_of_before_a_reboot_has_ended_and_its_token_is_remembered(open_session: Open, local: Board) -> None:
    """The monotonic clock begins anew then: what it said before means nothing."""
    open_session(local).claim(5, "anna", 3600)
    file = Path(local.root) / "lease"
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot": "another"}))

    session = open_session(local)

    assert works(session)
    with pytest.raises(StaleToken):
        session.claim(4, "ben", 60)


@pytest.mark.parametrize(
    ("token", "owner", "seconds"),
    [
        *((token, "a", 1) for token in (0, -1, 2**63, True, "1")),
        *((1, owner, 1) for owner in ("", 7, "a" * 201)),
        *((1, "a", seconds) for seconds in (0, 1e9, float("nan"))),
    ],
)
def test_a_claim_that_makes_no_sense_changes_nothing(
    tmp_path: Path, token: object, owner: object, seconds: object
) -> None:
    with Agent(tmp_path / "board") as agent:
        code, _ = fault(agent.request("session.claim", token=token, owner=owner, seconds=seconds))

        assert "bad-request" == code
    assert not (tmp_path / "board" / "lease").exists()


def test_a_lease_file_that_is_damaged_opens_nothing(open_session: Open, local: Board) -> None:
    session = open_session(local)
    session.claim(5, "anna", 60)
    (Path(local.root) / "lease").write_text("{}")

    with pytest.raises(BoardError, match="is damaged: which token was the highest is not known"):
        session.request("meters.stop")
