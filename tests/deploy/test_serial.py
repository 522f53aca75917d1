"""The transport over a serial line: a real tty, a paced and lossy line, getty and a shell, and the real agent."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import serial

from deploy import push
from deploy.boards import Board
from deploy.build import build
from deploy.errors import BoardSilent, BoardUnreachable, NoPython
from deploy.fleet import Outcome, push_to_all
from deploy.session import Session, connect
from deploy.transport.serial import stored_password
from tests.conftest import GOLDEN, ROOT
from tests.console import Console
from tests.line import Line
from tests.terminal_server import TerminalServer

FAST = 921_600  # of the line itself, whatever the tty is set to: the agent alone takes 7 s at 115200
CUTS = 100
CUT_EVERY = 1500  # bytes


class Bench:
    """A line with a console at its end, and the board of boards.yaml that it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self._stack = ExitStack()
        self.line: Line
        self.console: Console | None = None

    def set_up(self, *, line: dict[str, Any] | None = None, **console: Any) -> Board:
        self.line = self._stack.enter_context(Line(**{"baud": FAST, **(line or {})}))
        self.console = self._stack.enter_context(Console(self.line.board, self.folder, **console))
        return self.board(user=console.get("user", "pi"))

    def board(self, **transport: Any) -> Board:
        settings = {"kind": "serial", "port": self.line.host, **transport}
        return Board.model_validate({"name": "zero", "kind": "generic", "transport": settings, "python": None})

    @contextmanager
    def agent_on_the_line(self) -> Iterator[subprocess.Popen[bytes]]:
        """A line with no shell at its end, as on a board that starts the agent itself."""
        self.line = self._stack.enter_context(Line(FAST))
        environment = {"HOME": str(self.folder), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        with open(self.line.board, "r+b", buffering=0) as tty:
            words = [sys.executable, "-m", "devices", "--line"]
            there = subprocess.Popen(words, stdin=tty, stdout=tty, env=environment, start_new_session=True)
        try:
            yield there
        finally:
            there.kill()
            there.wait()

    def connect(self, board: Board, password: str | None = None) -> Session:
        def ask(prompt: str) -> str:
            self.asked.append(prompt)
            assert password is not None
            return password

        session = connect(board, self.folder / "known_hosts", None, ask if password is not None else None)
        self._stack.callback(session.close)
        return session

    def type(self, text: str, wanted: str, patience_s: float = 8.0) -> str:
        """As a person with a terminal: type, and read until `wanted` came."""
        said = ""
        with serial.Serial(self.line.host, 115_200, timeout=0.05, exclusive=True) as port:
            end = time.monotonic() + patience_s
            while wanted not in said and time.monotonic() < end:
                port.write(text.encode())
                pause = time.monotonic() + 1.0
                while time.monotonic() < pause and wanted not in said:
                    said += port.read(4096).decode("utf-8", "replace")
        return said

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_a_bare_shell_is_enough_and_gets_its_console_back(bench: Bench) -> None:
    session = bench.connect(bench.set_up(user=None))

    assert session.ping() > 0
    session.close()

    assert "\n42\r" in bench.type(" echo $((6*7))\r", "\n42\r")
    assert " echo;" not in bench.type(" stty -a\r", "iexten")


def test_a_password_is_asked_for_used_and_the_login_ended_afterwards(bench: Bench) -> None:
    board = bench.set_up(password="raspberry")

    session = bench.connect(board, "raspberry")
    session.close()

    assert [f"password of pi on zero ({bench.line.host}): "] == bench.asked
    assert "login: " in bench.type("\r", "login: ")


def test_a_login_without_a_password_asks_nobody(bench: Bench) -> None:
    assert bench.connect(bench.set_up()).ping() > 0


def test_a_wrong_password_is_said_to_be_refused_and_not_shown(bench: Bench) -> None:
    board = bench.set_up(password="raspberry")

    with pytest.raises(BoardUnreachable) as caught:
        bench.connect(board, "hunter2")

    where = f"serial {bench.line.host} at 115200 baud"
    assert f"board 'zero' cannot be reached ({where}): the login as 'pi' is refused" == str(caught.value)
    assert "hunter2" not in f"{caught.value.hint}{caught.value.facts}"


def test_a_password_that_nobody_can_be_asked_for_is_an_error(bench: Bench) -> None:
    with pytest.raises(BoardUnreachable, match=r"it wants the password of 'pi', and nobody is here to ask"):
        bench.connect(bench.set_up(password="raspberry"))


def test_a_board_among_many_logs_in_with_a_password_that_was_asked_for_before(bench: Bench) -> None:
    """As several boards are pushed to at once, nobody can be asked in between."""
    board = bench.set_up(password="raspberry").model_copy(update={"python": sys.executable})
    bundle = build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle

    def push_with(passwords: dict[str, str]) -> Outcome:
        (outcome,) = push_to_all([board], bundle, bench.folder / "hosts", lambda _: Nobody(), passwords=passwords)
        return outcome

    assert "nobody is here to ask" in str(push_with({}).error)
    assert "digits/1" == getattr(push_with({"zero": "raspberry"}).pushed, "release", None)


class Nobody:
    """Watches a push."""

    def note(self, text: str) -> None: ...

    def bytes(self, done: int, total: int) -> None: ...


def test_a_password_comes_from_the_keyring_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name; none of its many backends is here."""
    assert None is stored_password("zero")
    (tmp_path / "keyring.py").write_text(
        "def get_password(service, name):\n    return {('deploy', 'zero'): 'raspberry'}[service, name]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keyring", raising=False)

    assert "raspberry" == stored_password("zero")
    assert None is stored_password("another")  # this backend fails; then a person is asked


@contextmanager
def kernel_messages(bench: Bench, text: str) -> Iterator[None]:
    """While it lasts the kernel logs `text`, with a number in it, some ten times a second."""
    over = threading.Event()

    def log() -> None:
        count = 0
        while not over.wait(0.1):
            count += 1
            bench.line.tell(f"log [ {count:5}.123456] {text.format(count)}")

    thread = threading.Thread(target=log)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_kernel_messages_in_between_disturb_neither_login_nor_conversation(bench: Bench) -> None:
    board = bench.set_up(password="raspberry")

    with kernel_messages(bench, "usb 1-1: new high-speed USB device number {} using xhci_hcd"):
        session = bench.connect(board, "raspberry")
        assert [True] * 10 == [session.ping() > 0 for _ in range(10)]


def test_a_bundle_arrives_over_a_line_with_an_error_in_a_thousand_bytes(bench: Bench) -> None:
    """Everything: login, typing the receiver in, the agent, the bundle."""
    board = bench.set_up(line={"errors": 1e-3, "seed": 4}).model_copy(update={"python": sys.executable})
    bundle = build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle

    pushed = push.push(bench.connect(board), bundle)

    assert pushed.verification is not None
    assert pushed.verification.exact
    assert bench.console
    store = bench.console.home / ".local/share/deploy/store"
    wanted = bundle.manifest.files["model.tflite"].sha256
    assert wanted == hashlib.sha256((store / wanted).read_bytes()).hexdigest()


def test_a_line_that_is_cut_a_hundred_times_damages_bytes_and_carries_kernel_messages_loses_nothing(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one transfer, and in both directions: an acknowledgement that is hit must do no harm either."""
    session = bench.connect(bench.set_up(user=None))
    data = random.Random(1).randbytes(CUTS * CUT_EVERY)
    bench.line.tell(f"cuts {CUTS} {CUT_EVERY} 0.01")
    bench.line.tell("errors 2e-4")
    with kernel_messages(bench, "EXT4-fs (mmcblk0p2): re-mounted, opts: (null), ~}}~ {}"):
        assert len(data) == session.upload(hashlib.sha256(data).hexdigest(), data)
    bench.line.tell("errors 0")
    counts = bench.line.counts()
    link = session._channel._link  # type: ignore[attr-defined]
    with capsys.disabled():
        said = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
        print(f"\nserial, {len(data) / 1000:.0f} kB, {link.resent / 1000:.0f} kB of them resent: {said}", end="")
    assert {"cuts", "flipped", "lost", "inserted", "doubled", "kernel messages"} == set(counts)
    assert CUTS == counts["cuts"]


def test_an_adapter_that_is_pulled_out_and_put_back_changes_nothing_and_one_that_stays_away_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is what /dev/serial/by-id is: the same name, whatever the adapter is called this time."""
    monkeypatch.setattr("deploy.transport.serial.SILENCE_S", 2.0)
    bench.set_up(user=None)
    link = bench.folder / "usb-FTDI_FT232R-if00-port0"

    def plug() -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(bench.line.host)

    plug()
    board = bench.board(port=str(link))
    session = bench.connect(board)
    data = random.Random(5).randbytes(120_000)
    sha256 = hashlib.sha256(data).hexdigest()
    pulled: list[int] = []

    def pull(there: int, total: int) -> None:
        """The first time it comes back at once, the second time it does not."""
        if there > 30_000 * (len(pulled) + 1) and len(pulled) < 2:
            pulled.append(there)
            bench.line.unplug()
            if len(pulled) == 1:
                bench.line.plug()
                plug()

    with pytest.raises(BoardSilent) as caught:
        session.upload(sha256, data, pull)

    assert 2 == len(pulled)
    assert f"the agent on 'zero' ended: {link}: " in str(caught.value)
    session.close()
    bench.line.plug()
    plug()
    sent = bench.connect(board).upload(sha256, data)
    assert sent <= len(data) - pulled[1]


def test_a_host_that_was_killed_leaves_a_board_that_the_next_host_meets(bench: Bench) -> None:
    """The board's end of the line still runs: it takes the new connection, and no login is needed."""
    board = bench.set_up(password="raspberry")
    program = f"""
import sys, time
from pathlib import Path
from deploy.boards import Board
from deploy.session import connect
board = Board.model_validate({board.model_dump(mode="json", exclude_none=True)!r} | {{"name": "zero"}})
session = connect(board, Path("known_hosts"), None, lambda prompt: "raspberry")
sys.stdout.write(str(session.hello["pid"]) + "\\n")
sys.stdout.flush()
time.sleep(60)
"""
    first = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout
    pid = int(first.stdout.readline())
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    first.stdout.close()

    second = bench.connect(board)

    assert pid != second.hello["pid"]
    assert second.ping() > 0
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=10)
    second.close()
    assert "login: " in bench.type("\r", "login: ")


def test_an_agent_that_owns_the_line_without_any_shell_is_met(bench: Bench) -> None:
    with bench.agent_on_the_line() as there:
        session = bench.connect(bench.board())
        assert session.ping() > 0
        session.close()
        assert 0 == there.wait(10)


@pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")  # of pyserial
def test_a_port_may_be_that_of_a_terminal_server(bench: Bench) -> None:
    """RFC 2217: bring everything, talk, and give the console back, with TCP in between."""
    bench.set_up(user=None)
    with TerminalServer(bench.line.host, raw=False) as server:
        session = bench.connect(bench.board(port=server.url))
        data = random.Random(3).randbytes(5000)
        assert len(data) == session.upload(hashlib.sha256(data).hexdigest(), data)
        session.close()

    assert {115_200} == set(server.rates)
    assert "\n42\r" in bench.type(" echo $((6*7))\r", "\n42\r")


def test_a_port_may_be_a_socket_that_carries_bytes_and_nothing_else(bench: Bench) -> None:
    """The agent owns the other end already: what is brought is none of the socket's business."""
    with bench.agent_on_the_line(), TerminalServer(bench.line.host, raw=True) as server:
        session = bench.connect(bench.board(port=server.url))
        data = random.Random(3).randbytes(5000)
        assert len(data) == session.upload(hashlib.sha256(data).hexdigest(), data)
        session.close()


def test_a_higher_rate_is_agreed_on_and_left_at_the_end(bench: Bench) -> None:
    """On a pty a rate is but a number, which both ends set."""
    bench.set_up(user=None)

    session = bench.connect(bench.board(max_baud=921_600))

    channel: Any = session._channel
    assert 921_600 == channel._port._port.baudrate
    assert session.ping() > 0
    session.close()
    said = bench.type(" stty -a\r", "iexten")
    assert "speed " in said
    assert "speed 921600" not in said


def test_the_board_s_end_that_is_killed_leaves_a_usable_console(bench: Bench) -> None:
    session = bench.connect(bench.set_up(user=None))
    for ancestor in psutil.Process(session.hello["pid"]).parents():
        if "alarm" in " ".join(ancestor.cmdline()) or "--line" in ancestor.cmdline():
            ancestor.kill()
            break
    else:
        pytest.fail("nobody serves the line")
    channel: Any = session._channel
    channel._stopped = True
    channel._pump.join()
    channel._port.close()

    # What the host still said was typed into the shell, and may hold a quote.
    bench.type("\x03", "$ ")
    assert "\n42\r" in bench.type(" echo $((6*7))\r", "\n42\r")


def test_a_board_without_python_says_so(bench: Bench) -> None:
    with pytest.raises(NoPython, match="board 'zero' has no 'python3'"):
        bench.connect(bench.set_up(user=None, python=None))


def test_a_port_that_is_in_use_says_how_to_find_by_whom(bench: Bench) -> None:
    board = bench.set_up(user=None)
    with serial.Serial(bench.line.host, exclusive=True), pytest.raises(BoardUnreachable) as caught:
        bench.connect(board)

    assert "another program uses the port" in str(caught.value)
    assert f"`fuser -v {bench.line.host}` names it" == caught.value.hint


def test_a_silent_board_is_said_to_be_silent(bench: Bench) -> None:
    bench.line = bench._stack.enter_context(Line(FAST))

    with pytest.raises(BoardUnreachable, match="nothing comes, not even an echo"):
        bench.connect(bench.board(user="pi"))


@pytest.mark.parametrize(
    ("says", "error"),
    [(b"\r\nZynq> ", "its boot loader answers"), (b"\xf8\x80\xfe\x00\xf8\x80\xfe" * 3, "what comes is no text")],
    ids=["u-boot", "wrong baud"],
)
def test_whoever_else_answers_is_named(says: bytes, error: str, bench: Bench) -> None:
    bench.line = bench._stack.enter_context(Line(FAST))
    over = threading.Event()

    def answer() -> None:
        with serial.Serial(bench.line.board, timeout=0.05) as port:
            while not over.is_set():
                if port.read(4096):
                    port.write(says)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with pytest.raises(BoardUnreachable, match=error):
            bench.connect(bench.board(user="pi"))
    finally:
        over.set()
        thread.join()


def test_a_login_prompt_without_a_user_in_boards_yaml_is_an_error(bench: Bench) -> None:
    bench.set_up()
    with pytest.raises(BoardUnreachable, match=r"it wants a login, and boards\.yaml names no user"):
        bench.connect(bench.board())
