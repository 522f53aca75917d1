"""One conversation with one agent, and every way in which it can go wrong."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.boards import Board
from deploy.errors import BoardError, BoardSilent, DiskFull, NoPython, TransportError
from deploy.session import Session, connect
from devices.protocol import errors as codes

Open = Callable[..., Session]


@pytest.fixture
def board_with(local: Board, tmp_path: Path) -> Callable[[str], Board]:
    """A board whose ``python3`` is the shell script that is given."""

    def make(script: str) -> Board:
        program = tmp_path / "python3"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return local.model_copy(update={"python": str(program)})

    return make


def test_the_hello_tells_what_the_board_is(session: Session) -> None:
    identity = session.hello["identity"]

    assert session.hello["root"] == session.board.root
    assert ".".join(map(str, sys.version_info[:3])) == identity["python"]
    assert {"machine", "kernel", "cpus", "memory_bytes"} <= set(identity)


def test_the_agent_is_sent_once_and_found_by_its_hash_afterwards(open_session: Open, local: Board) -> None:
    first = open_session(local)
    folder = Path(local.root) / "agent" / first.hello["agent"]
    made = folder.stat().st_mtime_ns
    first.close()

    second = open_session(local)

    assert first.hello["agent"] == second.hello["agent"]
    # Byte code appears inside; the folder itself is not unpacked anew.
    assert [folder.name] == [path.name for path in folder.parent.iterdir()]
    assert made == folder.stat().st_mtime_ns


def test_a_board_without_its_python_says_which_one_and_how_to_name_another(local: Board, open_session: Open) -> None:
    with pytest.raises(NoPython) as caught:
        open_session(local.model_copy(update={"python": "python3.99"}))

    assert "board 'local' has no 'python3.99'" == str(caught.value)
    assert "`python:` of 'local' in boards.yaml" in str(caught.value.hint)


def test_a_python_that_is_too_old_is_named_with_its_version(
    board_with: Callable[[str], Board], open_session: Open
) -> None:
    with pytest.raises(NoPython) as caught:
        open_session(board_with("echo DEPLOY-OLD 3.7.3"))

    assert "board 'local' has Python 3.7.3; the agent needs 3.9 or newer" == str(caught.value)


def test_a_command_that_ends_before_the_agent_speaks_is_quoted(
    board_with: Callable[[str], Board], open_session: Open
) -> None:
    with pytest.raises(TransportError) as caught:
        open_session(board_with("echo 'Illegal instruction' >&2; exit 3"))

    expected = "board 'local' ended with status 3 before the agent spoke; it said: Illegal instruction"
    assert expected == str(caught.value)


def test_an_agent_that_ends_in_the_middle_is_noticed_at_once(session: Session) -> None:
    psutil.Process(session.hello["pid"]).kill()

    with pytest.raises(BoardSilent) as caught:
        session.ping()

    assert str(caught.value).startswith("the agent on 'local' ended")


def test_a_board_that_falls_silent_is_given_up_after_the_time_that_the_message_says(
    session: Session,
) -> None:
    """Stopped, not killed: the pipe stays open, as a hung board's would."""
    agent = psutil.Process(session.hello["pid"])
    session._silence_s = 0.5
    agent.suspend()
    try:
        with pytest.raises(BoardSilent) as caught:
            session.ping()
    finally:
        agent.resume()

    assert "board 'local' sent nothing for 0.5 s (last: nothing)" == str(caught.value)
    assert "`deploy boards check local` asks what is alive" == caught.value.hint


def test_an_agent_of_another_protocol_is_refused(board_with: Callable[[str], Board], open_session: Open) -> None:
    """The script is a real agent of the future: it speaks the frames, and says 2."""
    speak = (
        "from devices.protocol.framing import *; import os;"
        "os.write(1, Encoder().encode(Message(Kind.HELLO, {'protocol': 2}))); os.read(0, 1)"
    )
    root = Path(__file__).resolve().parent.parent.parent
    board = board_with(f'PYTHONPATH={root} exec {sys.executable} -c "{speak}"')

    with pytest.raises(TransportError) as caught:
        open_session(board)

    assert "the agent on 'local' speaks protocol 2, this deploy speaks 1" == str(caught.value)


def test_an_unknown_operation_is_an_error_and_the_conversation_goes_on(session: Session) -> None:
    with pytest.raises(BoardError) as caught:
        session.request("teleport")

    assert caught.value.code == codes.UNKNOWN_OP
    assert "this agent knows no 'teleport' (board 'local')" == str(caught.value)
    assert session.ping() > 0


def test_closing_ends_the_agent(open_session: Open, local: Board) -> None:
    session = open_session(local)
    pid = session.hello["pid"]

    session.close()

    assert not psutil.pid_exists(pid)


def test_a_root_that_cannot_be_written_says_which_folder(open_session: Open, local: Board, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(TransportError) as caught:
        open_session(local.model_copy(update={"root": str(tmp_path / "file" / "deploy")}))

    assert f"board 'local' cannot keep the agent: Not a directory: {tmp_path}/file/deploy" == str(caught.value)
    assert not isinstance(caught.value, DiskFull)


@pytest.mark.parametrize("damage", [b"", b"import gone"])
def test_an_agent_whose_files_a_power_cut_left_empty_is_brought_again(
    open_session: Open, local: Board, damage: bytes
) -> None:
    open_session(local).close()
    for path in (Path(local.root) / "agent").rglob("*.py"):
        path.write_bytes(damage)

    assert open_session(local).ping() > 0


def test_an_upload_goes_on_where_the_last_one_ended(session: Session, open_session: Open, local: Board) -> None:
    import hashlib

    data = bytes(range(256)) * 4096
    sha256 = hashlib.sha256(data).hexdigest()
    half = len(data) // 2
    session.request("store.put", data[:half], sha256=sha256, bytes=len(data), offset=0)
    psutil.Process(session.hello["pid"]).kill()

    sent = open_session(local).upload(sha256, data)

    assert len(data) - half == sent
    assert (Path(local.root) / "store" / sha256).read_bytes() == data


def test_a_board_that_takes_nothing_is_given_up_instead_of_waited_for(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.transport.local.WRITE_TIMEOUT_S", 0.5)  # the constant, not the code
    agent = psutil.Process(session.hello["pid"])
    agent.suspend()
    try:
        with pytest.raises(BoardSilent) as caught:
            session.request("store.put", bytes(4 << 20), sha256="0" * 64, bytes=4 << 20, offset=0)
    finally:
        agent.resume()

    assert "board 'local' took nothing for 0.5 s" == str(caught.value)


def test_a_board_whose_heart_beats_and_who_never_answers_is_given_up(
    board_with: Callable[[str], Board], open_session: Open
) -> None:
    """A real peer that speaks the frames: a hello, then nothing but heartbeats."""
    speak = (
        "from devices.protocol.framing import *; import os, time\n"
        "e = Encoder(); say = lambda *m: os.write(1, e.encode(Message(*m)))\n"
        "say(Kind.HELLO, {'protocol': 1, 'identity': {'machine': 'm', 'python': '3.9.0'}})\n"
        "while True: say(Kind.HEARTBEAT); time.sleep(0.05)"
    )
    root = Path(__file__).resolve().parent.parent.parent
    session = open_session(board_with(f'PYTHONPATH={root} exec {sys.executable} -c "{speak}"'))

    with pytest.raises(BoardSilent) as caught:
        session.request("ping", within_s=0.4)

    assert "board 'local' is alive and does not answer (last: nothing)" == str(caught.value)


def test_what_a_board_says_cannot_forge_lines_or_move_the_cursor(
    board_with: Callable[[str], Board], open_session: Open
) -> None:
    with pytest.raises(TransportError) as caught:
        open_session(board_with("printf 'bad\\033]0;pwned\\007 end\\n' >&2; exit 3"))

    assert str(caught.value).endswith("it said: bad ]0;pwned  end")


def test_an_agent_that_lies_damaged_on_the_board_is_brought_again(open_session: Open, local: Board) -> None:
    # Not the environment's Python: an editable install would lend the module that is missing.
    local = local.model_copy(update={"python": sys._base_executable})  # type: ignore[attr-defined]
    first = open_session(local)
    first.close()
    damaged = Path(local.root) / "agent" / first.hello["agent"] / "devices" / "agent.py"
    damaged.unlink()

    assert open_session(local).ping() > 0
    assert damaged.is_file()


def test_a_root_that_holds_other_things_keeps_them_when_it_is_cleaned(session: Session, local: Board) -> None:
    (Path(local.root) / "photos").mkdir()

    session.request("clean")

    assert ["photos"] == [path.name for path in Path(local.root).iterdir()]


def test_connecting_twice_at_once_is_possible(open_session: Open, local: Board, private_home: Path) -> None:
    with connect(local, private_home / "known_hosts") as one, connect(local, private_home / "known_hosts") as two:
        assert one.ping() > 0
        assert two.ping() > 0
