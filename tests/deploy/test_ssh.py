"""The transport over SSH, against a real OpenSSH server on loopback."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from deploy import inference, push, runtime
from deploy.boards import Board, SshTransport
from deploy.build import build
from deploy.cli import execute as deploy
from deploy.data import random_inputs
from deploy.errors import BoardUnreachable, HostKeyChanged, NoPython, RuntimeMissing, TransportError, UnknownHostKey
from deploy.session import Session, connect
from tests.conftest import GOLDEN
from tests.route import Route
from tests.sshd import Sshd, keygen

ALIAS = "bench-pi"
CUTS = 100
CUT_EVERY = 50_000  # bytes; thirty of them are more than the pieces that the agent takes whole


def bare_python() -> str:
    """A Python of this machine, in no virtual environment, that has no numpy."""
    for candidate in ("/usr/bin/python3", sys._base_executable):  # type: ignore[attr-defined]
        probe = [candidate, "-c", "import sys; assert sys.version_info >= (3, 9); import numpy"]
        done = subprocess.run(probe, capture_output=True, text=True, env={"HOME": "/nonexistent"}, check=False)
        if "ModuleNotFoundError" in done.stderr:
            return candidate
    pytest.skip("needs a Python 3.9 or newer without numpy: every one of this machine has it")


@pytest.fixture
def sshd(tmp_path: Path, private_home: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "server", bare_python())
    server.write_client_config(private_home, ALIAS)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def board() -> Board:
    return Board.model_validate(
        {"name": "pi", "kind": "generic", "transport": {"kind": "ssh", "host": ALIAS, "timeout_s": 60}}
    )


@pytest.fixture
def known_hosts(private_home: Path) -> Path:
    return private_home / "known_hosts"


def test_a_board_with_only_python3_and_sshd_gets_agent_and_runtime_and_answers_as_this_machine_does(
    sshd: Sshd, board: Board, open_session: Callable[..., Session], local: Board
) -> None:
    """No root, no pip, no network and an empty home there; the golden vectors were made by this machine."""
    bundle = build(str(GOLDEN / "digits_int8.tflite"), name="digits").bundle
    session = open_session(board)
    with pytest.raises(RuntimeMissing):
        session.request("runtime.probe")

    brought = runtime.ensure(session)
    pushed = push.push(session, bundle)

    assert brought["installed"] is not None
    assert pushed.verification is not None
    assert pushed.verification.exact
    files = {path.relative_to(sshd.home).parts[:3] for path in sshd.home.rglob("*") if path.is_file()}
    assert {(".local", "share", "deploy")} == files
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in sshd.home.joinpath(".local").rglob("*")}
    assert {0} == modes
    model = inference.load(session, bundle=bundle.digest)
    (answer,) = inference.infer(session, model, random_inputs(model.inputs, 1, 0))
    assert (1, 10) == answer[0].shape

    session.request("clean")
    assert not any(path.is_file() for path in sshd.home.rglob("*"))


def test_the_host_key_is_pinned_when_the_board_is_met_first_and_recognised_afterwards(
    sshd: Sshd, board: Board, known_hosts: Path
) -> None:
    with connect(board, known_hosts) as first:
        assert f"ED25519 {sshd.fingerprint()}" == first.pinned
    assert stat.S_IMODE(known_hosts.stat().st_mode) == 0o600
    with connect(board, known_hosts) as second:
        assert second.pinned is None
    assert len(known_hosts.read_text().splitlines()) == 1


def test_a_changed_host_key_stops_with_both_fingerprints_and_the_command_that_forgets_the_old_one(
    sshd: Sshd, board: Board, known_hosts: Path
) -> None:
    connect(board, known_hosts).close()
    pinned = sshd.fingerprint()
    sshd.stop()
    sshd.new_host_key()
    sshd.start()

    with pytest.raises(HostKeyChanged) as caught:
        connect(board, known_hosts)

    assert (
        f"board 'pi' shows another host key (ssh {sshd.user}@127.0.0.1:{sshd.port}): "
        f"pinned ED25519 {pinned}, shown ED25519 {sshd.fingerprint()}" == str(caught.value)
    )
    assert caught.value.hint is not None
    forget = caught.value.hint.split("`")[1]
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}' -f {known_hosts}" == forget
    subprocess.run(forget, shell=True, check=True, capture_output=True)
    connect(board, known_hosts).close()


def test_a_host_key_of_another_type_is_a_changed_key_and_is_not_pinned_beside_the_old_one(
    sshd: Sshd, board: Board, known_hosts: Path
) -> None:
    """Else whoever sits in between would only have to offer a type that was not recorded."""
    connect(board, known_hosts).close()
    sshd.stop()
    for path in sshd.folder.glob("host_key*"):
        path.unlink()
    keygen(sshd.folder / "host_key", "ecdsa")
    sshd.start()

    with pytest.raises(HostKeyChanged):
        connect(board, known_hosts)

    assert len(known_hosts.read_text().splitlines()) == 1


def test_a_key_that_the_users_own_known_hosts_holds_is_held_to_it(
    sshd: Sshd, board: Board, known_hosts: Path, private_home: Path
) -> None:
    keygen(private_home / "other")
    kind, key, *_ = (private_home / "other.pub").read_text().split()
    (private_home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")

    with pytest.raises(HostKeyChanged):
        connect(board, known_hosts)

    assert not known_hosts.exists()


def test_a_strict_host_pins_nothing_and_says_what_it_saw(sshd: Sshd, board: Board, known_hosts: Path) -> None:
    with pytest.raises(UnknownHostKey) as caught:
        connect(board, known_hosts, strict=True)

    where = f"ssh {sshd.user}@127.0.0.1:{sshd.port}"
    assert (
        f"board 'pi' is not known yet ({where}): it shows ED25519 {sshd.fingerprint()}, "
        "and --strict-host-key pins nothing" == str(caught.value)
    )
    assert (
        "compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` there; `deploy boards check pi` pins it"
        == caught.value.hint
    )
    assert not known_hosts.exists()
    connect(board, known_hosts).close()
    with connect(board, known_hosts, strict=True) as session:
        assert session.ping() > 0


@pytest.mark.parametrize("how", ["--strict-host-key", "$DEPLOY_STRICT"])
def test_every_verb_that_connects_can_be_strict(
    how: str, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "boards.yaml").write_text(
        f"schema: 1\nboards:\n  pi: {{kind: generic, transport: {{kind: ssh, host: {ALIAS}}}, tags: [lab]}}\n"
    )
    shutil.copy(GOLDEN / "digits_int8.tflite", "d.tflite")
    flag = [how]
    if how.startswith("$"):
        monkeypatch.setenv("DEPLOY_STRICT", "1")
        flag = []
    for words in (
        *(["push", "-b", "pi", "d.tflite"], ["push", "--tag", "lab", "d.tflite"], ["run", "-b", "pi", "d.tflite"]),
        *(["measure", "-b", "pi", "d.tflite"], ["attach", "-b", "pi"], ["releases", "-b", "pi"]),
        *(["rollback", "-b", "pi"], ["boards", "check", "pi"], ["boards", "clean", "pi"]),
    ):
        assert 1 == deploy([*words, *flag]), words
        assert "error: board 'pi' is not known yet" in capfd.readouterr().err, words
    assert not (tmp_path / "known_hosts").exists()


def test_boards_that_are_met_at_once_are_pinned_once_each(sshd: Sshd, board: Board, known_hosts: Path) -> None:
    """Two boards of boards.yaml may be one machine; a line of known_hosts must not be cut by another."""
    boards = [board.model_copy(update={"name": f"pi{n}", "root": f"~/pi{n}"}) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda board: connect(board, known_hosts), boards))
    for session in sessions:
        session.close()

    assert 1 == len(known_hosts.read_text().splitlines())


def test_a_login_that_is_refused_says_how_to_install_a_key(sshd: Sshd, board: Board, known_hosts: Path) -> None:
    (sshd.folder / "authorized_keys").write_text("")

    with pytest.raises(BoardUnreachable) as caught:
        connect(board, known_hosts)

    assert str(caught.value).startswith(f"board 'pi' refuses the login (ssh {sshd.user}@127.0.0.1:{sshd.port}): ")
    assert str(caught.value.hint).startswith(f"`ssh-copy-id -p {sshd.port} {sshd.user}@127.0.0.1` installs your key")


def test_a_board_that_is_off_is_said_to_be_out_of_reach(sshd: Sshd, board: Board, known_hosts: Path) -> None:
    sshd.stop()

    with pytest.raises(BoardUnreachable) as caught:
        connect(board, known_hosts)

    where = f"ssh {sshd.user}@127.0.0.1:{sshd.port}"
    assert f"board 'pi' cannot be reached ({where}): Connection refused" == str(caught.value)


def test_a_server_that_hangs_up_is_not_shown_as_an_error_of_the_library(
    sshd: Sshd, board: Board, known_hosts: Path
) -> None:
    """As sshd does when too many are logging in, or a forwarded port whose far end is not there."""
    sshd.stop()
    with socket.create_server(("127.0.0.1", sshd.port)) as listener:
        hangs_up = threading.Thread(target=lambda: listener.accept()[0].close())
        hangs_up.start()
        with pytest.raises(BoardUnreachable) as caught:
            connect(board, known_hosts)
        hangs_up.join()

    where = f"ssh {sshd.user}@127.0.0.1:{sshd.port}"
    reasons = ("the connection was closed", "Connection reset by peer", "no SSH server answers there")
    assert str(caught.value) in [f"board 'pi' cannot be reached ({where}): {reason}" for reason in reasons]


def test_a_board_without_python3_says_so(tmp_path: Path, private_home: Path, board: Board, known_hosts: Path) -> None:
    server = Sshd(tmp_path / "server", None)
    server.write_client_config(private_home, ALIAS)
    server.start()
    try:
        with pytest.raises(NoPython) as caught:
            connect(board, known_hosts)
    finally:
        server.stop()

    assert "board 'pi' has no 'python3'" == str(caught.value)


def test_the_python_that_boards_yaml_names_is_used(
    tmp_path: Path, private_home: Path, board: Board, known_hosts: Path
) -> None:
    server = Sshd(tmp_path / "server", None)
    server.write_client_config(private_home, ALIAS)
    server.start()
    try:
        with connect(board.model_copy(update={"python": bare_python()}), known_hosts) as session:
            assert "ai-edge-litert" not in session.hello["identity"]
            assert session.ping() > 0
    finally:
        server.stop()


def test_the_agent_ends_when_the_connection_is_cut(sshd: Sshd, board: Board, known_hosts: Path) -> None:
    session = connect(board, known_hosts)
    pid = session.hello["pid"]
    sshd.stop()
    # The listener is gone, the connection's own process holds on: end it as a pulled cable would.
    agent = psutil.Process(pid)
    for ancestor in agent.parents():
        if ancestor.name().startswith("sshd"):
            ancestor.kill()

    with pytest.raises(TransportError):
        for _ in range(100):
            session.ping()
    agent.wait(10)
    session.close()


def test_a_route_that_is_cut_a_hundred_times_loses_nothing_and_little_is_sent_twice(
    sshd: Sshd, board: Board, known_hosts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Mostly the connection survives; when it does not, another one goes on at the byte."""
    data = random.Random(2).randbytes(CUTS * CUT_EVERY)
    sha256 = hashlib.sha256(data).hexdigest()
    connections, there = 0, -1
    with Route(sshd.port, CUT_EVERY, 0.005, reset=30) as route:
        assert isinstance(board.transport, SshTransport)
        through = board.model_copy(update={"transport": board.transport.model_copy(update={"port": route.port})})
        while there < len(data):
            connections += 1
            try:
                with connect(through, known_hosts) as session:
                    before = session.request("store.progress", digests=[sha256]).header["progress"][sha256]
                    assert before == -1 or there <= before
                    there = before
                    session.upload(sha256, data)
                    there = len(data)
            except TransportError:
                continue
        counts = route.counts
    with capsys.disabled():
        resets, cuts = counts["resets"], counts["cuts"]
        print(f"\nssh, {len(data) / 1e6:.0f} MB: {cuts} cuts and {resets} resets, {connections} connections", end="")
    assert CUTS <= counts["cuts"] + counts["resets"]
    assert data == (sshd.home / ".local/share/deploy/store" / sha256).read_bytes()


def test_a_login_shell_that_prints_does_not_confuse_the_conversation(
    sshd: Sshd, board: Board, known_hosts: Path
) -> None:
    wrapper = sshd.folder / "shell"
    wrapper.write_text(wrapper.read_text().replace("#!/bin/sh\n", "#!/bin/sh\necho 'Welcome to Armbian!'; echo\n"))

    with connect(board, known_hosts) as session:
        assert session.ping() > 0


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs ssh: `sudo apt install openssh-client`")
def test_a_jump_host_of_the_users_ssh_config_is_used(
    sshd: Sshd, board: Board, known_hosts: Path, private_home: Path
) -> None:
    """The jump host is the same server; the user's own ssh makes the hop."""
    config = private_home / ".ssh" / "config"
    sshd.write_client_config(private_home, "jump")
    jump = config.read_text() + f"  StrictHostKeyChecking accept-new\n  UserKnownHostsFile {private_home}/jump_hosts\n"
    sshd.write_client_config(private_home, ALIAS)
    command = f"ssh -F {config} -W %h:%p jump"  # OpenSSH takes the home from the password file, not from $HOME
    config.write_text(config.read_text() + f"  ProxyCommand {command}\n" + jump)

    with connect(board, known_hosts) as session:
        assert session.ping() > 0
