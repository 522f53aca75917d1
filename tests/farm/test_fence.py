"""What the board itself does about leases: the last word is its agent's."""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.boards import Board, Registry
from deploy.errors import BoardHeld, LeaseLost, StaleToken, WrongBoard
from deploy.farm.hold import hold, leases_of
from deploy.farm.leases import Leases
from deploy.session import Session, connect
from devices.protocol.framing import Kind
from tests.devices.test_agent import FOREVER, MODEL, PAYLOAD, SHA256
from tests.devices.test_facts import tree
from tests.devices.test_guard import works
from tests.devices.wire import Agent, fault, gone

Open = Callable[..., Session]


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    leases = Leases(tmp_path / "farm.sqlite")
    yield leases
    leases.close()


@pytest.fixture
def registry(local: Board, tmp_path: Path) -> Registry:
    return Registry({"local": local}, None)


# Two lease files


def test_a_lease_of_another_file_is_refused_however_high_its_token_until_this_one_ends(
    open_session: Open, local: Board
) -> None:
    """Two laptops that share no lease file count each for itself: tokens of both say nothing of who was first."""
    ours, theirs = open_session(local), open_session(local)
    ours.claim(3, "anna", 60, issuer="this file")

    with pytest.raises(BoardHeld) as caught:
        theirs.claim(99, "ben", 60, issuer="that file")

    assert "anna holds this board by another lease file (board 'local')" == str(caught.value)
    assert 50 < caught.value.left_s <= 60
    assert works(ours)
    ours.request("session.release")
    theirs.claim(99, "ben", 60, issuer="that file")
    assert not works(ours)


def test_whoever_waits_for_a_lease_of_another_file_gets_the_board_when_it_ends(
    open_session: Open, local: Board, leases: Leases
) -> None:
    holder = open_session(local)
    holder.claim(99, "ben", 1.0, issuer="that file")

    with leases.take("local", owner="anna") as lease:
        assert 1 == lease.token
        with connect(local, Path("known_hosts"), lease=lease, wait_s=20) as session:
            assert works(session)

        assert 100 == lease.token  # lifted above what the board has seen
    assert 101 == leases.take("local").token
    with pytest.raises(StaleToken):
        holder.claim(99, "ben", 60, issuer="that file")


def test_a_board_remembers_what_a_lost_file_forgot(registry: Registry, leases: Leases, tmp_path: Path) -> None:
    for _ in range(3):
        with hold(registry, registry["local"], leases=leases):
            pass
    new = Leases(tmp_path / "new.sqlite")

    with hold(registry, registry["local"], leases=new) as session:
        assert works(session)

    assert [] == new.show()
    assert 5 == new.take("local").token
    new.close()


# One conversation


def test_a_lease_that_its_host_renews_does_not_end(tmp_path: Path) -> None:
    with Agent(tmp_path / "board") as holder, Agent(tmp_path / "board") as nobody:
        holder.request("session.claim", token=1, owner="anna", seconds=0.2)
        holder.send(Kind.HEARTBEAT, {"lease_s": 60.0})
        holder.request("ping")
        threading.Event().wait(0.25)

        assert "stale-token" == nobody.error("meters.stop")[0]

        holder.send(Kind.HEARTBEAT, {"lease_s": float("inf")})  # nor is it shortened, or lengthened, by nonsense
        holder.send(Kind.HEARTBEAT, {"lease_s": ["x"]})
        holder.request("ping")
        assert "stale-token" == nobody.error("meters.stop")[0]


def test_a_conversation_that_ends_gives_the_board_back_at_once(
    registry: Registry, leases: Leases, open_session: Open, local: Board
) -> None:
    nobody = open_session(local)
    with hold(registry, local, leases=leases, for_s=3600) as session:
        assert works(session)
        assert not works(nobody)

    assert works(nobody)


def test_nothing_is_sent_once_the_lease_has_ended(registry: Registry, leases: Leases, local: Board) -> None:
    with hold(registry, local, leases=leases) as session:
        with leases.file.writing() as db:
            db.execute("UPDATE leases SET token = token + 1")  # as if somebody else had taken it meanwhile
        (lease,) = leases._held
        with pytest.raises(LeaseLost):
            lease.renew()

        with pytest.raises(LeaseLost, match=r"the lease of board 'local' has ended"):
            session.ping()


def test_a_claim_waits_for_what_is_being_done_and_comes_before_what_follows(tmp_path: Path) -> None:
    """Whoever has a token that is still good may be in the middle of a write."""
    with Agent(tmp_path / "board") as older, Agent(tmp_path / "board") as newer:
        older.request("session.claim", token=1, owner="anna", seconds=60)
        lock = os.open(tmp_path / "board" / "lease.lock", os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_SH)  # as `older` while it does something
        request = newer.ask("session.claim", token=2, owner="ben", seconds=60)
        assert ([], [], []) == select.select([newer._stdout], [], [], 0.3)

        os.close(lock)

        assert Kind.REPLY is newer.answer(request).kind
        assert "stale-token" == older.error("meters.stop")[0]


# What still runs


@pytest.fixture
def measuring(tmp_path: Path) -> Iterator[Agent]:
    """
    The agent of a holder that has stopped: its host takes nothing of what it measures, for ten minutes if it may, and
    asks for nothing.
    """
    with Agent(tmp_path / "board") as agent:
        agent.put(MODEL, SHA256)
        agent.request("session.claim", token=1, owner="anna", seconds=60)
        assert Kind.REPLY is agent.request("model.load", sha256=SHA256).kind
        request = agent.ask("model.measure", PAYLOAD, **FOREVER)
        agent.receive(Kind.EVENT, request=request)
        yield agent
        while os.read(agent._stdout.fileno(), 1 << 20):
            pass


def test_what_runs_for_a_holder_before_makes_the_board_busy(measuring: Agent, tmp_path: Path) -> None:
    with Agent(tmp_path / "board") as newer:
        newer.request("session.claim", token=2, owner="ben", seconds=60)

        assert ("busy", "another conversation runs a model on this board") == newer.error("runtime.probe")

    measuring.receive(Kind.EVENT)  # goes on
    psutil.Process(measuring.pid).kill()


def test_what_runs_for_a_holder_before_ends_when_the_new_one_demands_it(measuring: Agent, tmp_path: Path) -> None:
    runner = measuring.runner()
    with Agent(tmp_path / "board") as newer:
        newer.request("session.claim", token=2, owner="ben", seconds=60, evict=True)

        assert Kind.REPLY is newer.request("runtime.probe").kind

    assert gone(runner)


def test_a_holder_that_listens_is_told_why_its_run_was_ended(tmp_path: Path) -> None:
    with Agent(tmp_path / "board") as older, Agent(tmp_path / "board") as newer:
        older.put(MODEL, SHA256)
        older.request("session.claim", token=1, owner="anna", seconds=60)
        older.request("model.load", sha256=SHA256)
        request = older.ask("model.measure", PAYLOAD, **{**FOREVER, "warmup_max_s": 600.0})  # tells nothing meanwhile
        older.request("ping")
        newer.request("session.claim", token=2, owner="ben", seconds=60, evict=True)

        assert Kind.REPLY is newer.request("runtime.probe").kind

        assert ("stale-token", "a newer holder of the board has ended this") == fault(older.answer(request))
        assert Kind.REPLY is older.request("ping").kind


def test_a_board_that_is_held_does_one_thing_at_a_time(tmp_path: Path) -> None:
    """Also where nobody measures: without leases, models may run side by side."""
    with Agent(tmp_path / "board") as one, Agent(tmp_path / "board") as two:
        one.put(MODEL, SHA256)
        for agent in (one, two):
            agent.request("session.claim", token=1, owner="anna", seconds=60)
        one.request("model.load", sha256=SHA256)
        one.ask("model.measure", PAYLOAD, **{**FOREVER, "warmup_max_s": 600.0})
        one.request("ping")

        assert ("busy", "another conversation runs a model on this board") == two.error("model.load", sha256=SHA256)
        psutil.Process(one.pid).kill()  # nobody takes what it measures


# Who answers


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"proc/device-tree/serial-number": "10000000deadbeef\0"}, "has the serial number '10000000deadbeef'"),
        ({}, "has no serial number"),
    ],
)
def test_a_board_with_another_serial_number_is_refused_before_it_is_touched(
    local: Board, tmp_path: Path, leases: Leases, shown: dict[str, str], said: str
) -> None:
    board = local.model_copy(update={"serial_number": "10000000CAFE0001"})
    options = ["--sysroot", str(tree(tmp_path / "sysroot", shown))]

    with (
        pytest.raises(WrongBoard) as caught,
        hold(Registry({"local": board}, None), board, leases=leases, agent_options=options),
    ):
        pass

    assert f"what answers as board 'local' {said}, boards.yaml says '10000000CAFE0001'" == str(caught.value)
    assert not (Path(board.root) / "lease").exists()
    assert [] == leases.show()


def test_the_board_that_is_meant_is_taken_by_its_serial_number_in_any_case(local: Board, tmp_path: Path) -> None:
    board = local.model_copy(update={"serial_number": "10000000CAFE0001"})
    sysroot = tree(tmp_path / "sysroot", {"proc/device-tree/serial-number": "10000000cafe0001\0"})

    with connect(board, tmp_path / "known_hosts", ["--sysroot", str(sysroot)]) as session:
        assert "10000000cafe0001" == session.hello["identity"]["serial"]


def test_what_a_board_says_of_itself_is_kept(registry: Registry, local: Board) -> None:
    from deploy.farm.hold import seen_of

    assert {} == seen_of(registry)

    with leases_of(registry) as leases, hold(registry, local, leases=leases) as session:
        identity = session.hello["identity"]

    assert identity == (seen_of(registry)["local"].found or {})["identity"]["is"]
