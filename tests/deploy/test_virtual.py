"""Virtual boards, as far as they can be proven without QEMU: who owns which process, names, images, trees, archives."""

from __future__ import annotations

import gzip
import json
import mmap
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from deploy import boards
from deploy.cli import cli, execute
from deploy.errors import ConfigError, ToolMissing, UnknownBoard, UsageError, VirtualError
from deploy.power import switch
from deploy.virtual import control, fdt, image, initramfs, machine, memory, packages
from deploy.virtual.extras import Extras, File
from deploy.virtual.image import Image
from deploy.virtual.kinds import KINDS, find
from deploy.virtual.registry import Place
from tests.conftest import ROOT, need_tool

FAKE = ROOT / "tests" / "fake_qemu.py"
Bring = Callable[..., control.Starting]


# Processes: a stand-in for QEMU, and the real keeper, lines and command line


def describe(name: str, fault: str = "-", beside: Sequence[str] = ()) -> Place:
    """A board's folder, ready for its keeper."""
    place = Place(name)
    place.folder.mkdir(parents=True)
    words = [sys.executable, str(FAKE), "{qmp}", "{console}", "{uart}", "{control}", fault]
    ssh = {"kind": "ssh", "host": "127.0.0.1", "port": 1, "user": "pi"}
    described = {
        "name": name, "kind": "pi4", "virtual": "fake", "cores": 2, "memory_mib": 256, "port": 2222,
        "serial_number": "1000", "command": words, "snapshot": None, "save": False, "up": False,
        "beside": list(beside), "line": {"baud": 0, "latency_s": 0, "errors": 0, "seed": 0},
        "entries": {name: {"kind": "raspberry-pi", "virtual": "fake", "transport": ssh}},
    }  # fmt: skip
    place.described.write_text(json.dumps(described))
    return place


STARTER = """
import sys
from deploy.virtual import control
from deploy.virtual.registry import Place
place = Place(sys.argv[1])
board = control.start_keeper(place)
print("ready", flush=True)
sys.stdin.readline()
board.adopt()
print("adopted", flush=True)
"""


class Host:
    """A host command that brings a board up: `go` lets it adopt the board and end."""

    def __init__(self, name: str) -> None:
        self.place = Place(name)
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER, name], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ready(self) -> Host:
        assert self.process.stdout and self.process.stderr
        assert "ready\n" == self.process.stdout.readline(), self.process.stderr.read()
        return self

    def go(self) -> None:
        self.process.communicate("\n")


def family(place: Place) -> list[psutil.Process]:
    """The keeper, QEMU and the two lines of a board."""
    keeper = psutil.Process(json.loads(place.described.read_text())["pid"])
    return [keeper, *keeper.children(recursive=True)]


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=60)
    return [] == [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def bring() -> Iterator[Callable[..., Host]]:
    """``bring(name, fault="-", go=True)``: a host command has brought a board up."""
    hosts: list[Host] = []

    def bring_(name: str, fault: str = "-", go: bool = True) -> Host:
        describe(name, fault)
        host = Host(name).ready()
        hosts.append(host)
        if go:
            host.go()
        return host

    yield bring_
    for host in hosts:
        host.process.kill()
        host.process.communicate()
        if host.place.folder.exists():
            control.down(host.place.name)


def test_a_board_outlives_the_command_that_brought_it_up_until_down(bring: Callable[..., Host]) -> None:
    place = bring("pi4").place
    processes = family(place)

    assert ["pi4"] == [board.name for board in control.status()]
    assert "running" == control.status()[0].state
    assert 4 == len(processes)
    control.down("pi4")
    assert all_gone(processes)
    assert not place.folder.exists()


def test_a_host_killed_before_the_board_is_its_own_leaves_nothing(bring: Callable[..., Host]) -> None:
    host = bring("pi4", go=False)
    processes = family(host.place)

    host.process.kill()

    assert all_gone(processes)
    assert not host.place.folder.exists()


def test_a_host_killed_while_the_board_boots_leaves_nothing() -> None:
    place = describe("pi4", "never")
    host = Host("pi4")
    while '"pid"' not in place.described.read_text() or len(family(place)) < 4:
        time.sleep(0.01)
    processes = family(place)

    host.process.kill()
    host.process.communicate()

    assert all_gone(processes)
    assert not place.folder.exists()


def test_with_a_killed_keeper_everything_of_its_board_dies(bring: Callable[..., Host]) -> None:
    """And what it leaves behind counts for nothing, until `down` or the next `up` removes it."""
    place = bring("pi4").place
    processes = family(place)

    processes[0].kill()

    assert all_gone(processes)
    assert "left" == control.status()[0].state
    assert ["local"] == [board.name for board in boards.load()]
    with pytest.raises(VirtualError, match="its keeper is gone, and QEMU with it"):
        control.ask("pi4", "hang")


BESIDE = """
import sys
for line in sys.stdin:
    with open("resets", "a") as told:
        told.write(line)
    print("ready", flush=True)
"""


def test_what_plays_a_part_of_a_board_is_reset_with_it_and_ends_when_it_is_off(private_home: Path) -> None:
    place = describe("pynq", beside=[sys.executable, "-S", "-c", BESIDE])
    with control.start_keeper(place) as board:
        board.adopt()
    try:
        assert 5 == len(family(place))
        control.ask("pynq", "reset")
        assert ["reset /machine/unattached/device[3]"] * 2 == (place.folder / "resets").read_text().splitlines()
        control.ask("pynq", "power-cut")
        assert 3 == len(family(place))
        control.ask("pynq", "power-on")
        processes = family(place)
        assert 5 == len(processes)
        processes[0].kill()
        assert all_gone(processes)
    finally:
        control.down("pynq")


def test_a_board_whose_part_does_not_start_does_not_come_up_and_says_why() -> None:
    place = describe("pynq", beside=[sys.executable, "-S", "-c", "raise SystemExit('no model')"])

    with pytest.raises(VirtualError, match="the accelerator's window does not open: no model"):
        control.start_keeper(place)

    assert not place.folder.exists()


def test_a_board_that_dies_says_why_with_the_end_of_its_console(bring: Callable[..., Host]) -> None:
    bring("pi4", "dies")
    while control.status()[0].state == "running":
        time.sleep(0.05)

    with pytest.raises(VirtualError) as caught:
        control.ask("pi4", "clock", "0")

    assert "board 'pi4': the board is dead: the board switched itself off, or its kernel panicked" in str(caught.value)
    assert str(caught.value).endswith("console: Oops: the guest ends")
    assert "`deploy virtual reset pi4` brings it back as it first was" == caught.value.hint


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        # Escape sequences of a console must not reach a terminal.
        ("panic", "kernel panicked\n  console: Booting Linux\n  console: Kernel panic - not syncing: no root[31m"),
        ("port", "port 2222 of 127.0.0.1 is taken"),
    ],
)
def test_a_board_that_does_not_come_up_says_why_and_leaves_nothing(fault: str, reason: str) -> None:
    place = describe("pi4", fault)
    with pytest.raises(VirtualError) as caught:
        control.start_keeper(place)

    assert str(caught.value).startswith("board 'pi4' does not come up: ")
    assert str(caught.value).endswith(reason)
    assert not place.folder.exists()


def test_power_cut_hang_and_reset_do_what_they_say(bring: Callable[..., Host]) -> None:
    place = bring("pi4").place
    qemu = next(process for process in family(place) if str(FAKE) in process.cmdline())

    assert "hung" == control.ask("pi4", "hang")["state"]
    assert "running" == control.ask("pi4", "resume")["state"]
    assert "off" == control.ask("pi4", "power-cut")["state"]
    assert all_gone([qemu])
    with pytest.raises(VirtualError, match="the board is off"):
        control.ask("pi4", "disk-full")
    assert "running" == control.ask("pi4", "power-on")["state"]
    assert "running" == control.ask("pi4", "reset")["state"]
    assert 2 == place.console_log.read_text().count("Booting Linux")


def test_power_of_boards_yaml_may_be_that_of_a_virtual_board(bring: Callable[..., Host], tmp_path: Path) -> None:
    bring("pi4")
    entry = {"kind": "generic", "transport": {"kind": "local"}, "power": {"kind": "virtual", "board": "pi4"}}
    board = boards.Board.model_validate(entry)

    switch(board, "off", tmp_path)
    assert "off" == control.status()[0].state
    switch(board, "on", tmp_path)
    assert "running" == control.status()[0].state
    switch(board, "cycle", tmp_path)
    assert "running" == control.status()[0].state


def test_control_commands_come_back_with_what_they_said(bring: Callable[..., Host]) -> None:
    bring("pi4")

    assert "ran uptime" == control.ask("pi4", "run", "uptime")["said"]
    with pytest.raises(VirtualError, match="'soon' is no time"):
        control.ask("pi4", "clock", "soon")


# Names


def test_a_board_that_is_up_stands_in_the_registry_and_may_hide_no_other(
    bring: Callable[..., Host], tmp_path: Path
) -> None:
    bring("pi4")

    assert "fake" == boards.load()["pi4"].virtual
    file = tmp_path / "boards.yaml"
    file.write_text("schema: 1\nboards:\n  pi4: {kind: generic, transport: {kind: local}}\n")
    with pytest.raises(ConfigError) as caught:
        boards.load(str(file))
    assert f"{file}: board 'pi4' is also a virtual board that is up" == str(caught.value)


def test_a_name_is_taken_by_a_board_that_is_up_and_by_one_of_the_file(
    bring: Callable[..., Host], tmp_path: Path
) -> None:
    bring("pi4")
    file = tmp_path / "boards.yaml"
    file.write_text("schema: 1\nboards:\n  bench.console: {kind: generic, transport: {kind: local}}\n")

    with pytest.raises(ConfigError, match="board 'pi4' is up already"):
        control.up("pi4", control.Options(), print)
    control.down("pi4")
    with pytest.raises(ConfigError, match=re.escape("board 'bench.console' is there already")):
        control.up("pi4", control.Options(name="bench"), print, str(file))


def test_two_commands_cannot_bring_up_one_name(bring: Callable[..., Host]) -> None:
    host = bring("pi4", go=False)

    with pytest.raises(ConfigError, match="board 'pi4' is up already, or coming up"), control.claim(Place("pi4")):
        pass
    host.go()
    assert "running" == control.status()[0].state


def test_what_is_not_known_is_answered_with_the_nearest(bring: Callable[..., Host]) -> None:
    bring("pi4")

    with pytest.raises(UsageError, match="no virtual board 'pi6'; did you mean 'pi5'"):
        find("pi6")
    with pytest.raises(UnknownBoard, match="no virtual board 'pi44' is up; did you mean 'pi4'"):
        control.ask("pi44", "hang")
    done = CliRunner().invoke(cli, ["virtual", "fault", "pi4", "power-off"])
    assert "no fault 'power-off'; did you mean 'power-on'?" in str(done.output)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a b", "x" * 60])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a board"):
        control.check_name(name, None)


def test_every_board_has_a_serial_number_of_its_own_that_never_changes() -> None:
    numbers = [kind.serial_number(name) for kind in KINDS.values() for name in ("a", "b")]

    assert len(numbers) == len(set(numbers))
    assert KINDS["pi4"].serial_number("desk") == KINDS["pi4"].serial_number("desk")
    assert 16 == len(KINDS["pi4"].serial_number("desk"))


# Programs


def test_a_missing_program_is_one_line_with_what_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "SYSTEM", "")
    machine.qemu.cache_clear()

    assert 1 == execute(["virtual", "up", "pi4"])
    assert (
        "error: qemu-system-aarch64 is not here\nhint:  `sudo apt install qemu-system-arm`\n" == capsys.readouterr().err
    )
    machine.qemu.cache_clear()


def test_a_qemu_that_is_too_old_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-aarch64"
    program.write_text("#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    machine.qemu.cache_clear()

    with pytest.raises(ToolMissing, match=r"is 5\.2; virtual boards need 7\.0 or newer"):
        machine.qemu("arm64")
    machine.qemu.cache_clear()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_guest_reaches_nothing_and_only_this_machine_reaches_it(kind, tmp_path: Path) -> None:
    need_tool("qemu-system-aarch64", "qemu-system-arm")
    machine.qemu.cache_clear()
    words = machine.command(kind, Image(tmp_path, kind.arch, "6.1", "k"), 2, 256, 2222)

    networks = [word for word in words if "user,id=" in word]
    assert 1 == len(networks)
    assert ",restrict=on," in networks[0]
    assert ["hostfwd=tcp:127.0.0.1:2222-:22"] == re.findall(r"hostfwd=[^,]*", networks[0])
    assert not [word for word in words if re.search(r"vnc|telnet|tcp:(?!127\.0\.0\.1|10\.0\.2\.)", word)]


# Files


def test_login_and_host_keys_are_readable_by_their_owner_alone() -> None:
    keys = machine.keys()

    assert [0o600, 0o600] == [path.stat().st_mode & 0o777 for path in (keys.login, keys.host)]
    assert keys.login.read_bytes() == machine.keys().login.read_bytes()
    assert re.fullmatch(r"ssh-ed25519 \S+", machine.host_key())


def test_a_changed_tree_reads_back_and_another_program_agrees(tmp_path: Path) -> None:
    """The oracle is fdtget, of the format's own authors."""
    fdtget = need_tool("fdtget", "device-tree-compiler")
    root = fdt.Node()
    root.set_text("model", "a board")
    root.set_text("compatible", "deploy,one", "deploy,two")
    root.at("/soc/serial@9000000").set_cells("reg", 0, 0x9000000, 0x1000)
    blob = fdt.build(root, [(0x1000, 0x2000)])

    assert (root, [(0x1000, 0x2000)]) == fdt.parse(blob)
    tree = tmp_path / "tree.dtb"
    tree.write_bytes(blob)

    def get(*words: str) -> str:
        return subprocess.run([fdtget, *words], capture_output=True, text=True, check=True).stdout.strip()

    assert "a board" == get(str(tree), "/", "model")
    assert "deploy,one deploy,two" == get(str(tree), "/", "compatible")
    assert "0 9000000 1000" == get("-t", "x", str(tree), "/soc/serial@9000000", "reg")


@pytest.mark.parametrize("blob", [b"", b"nonsense" * 20, fdt.build(fdt.Node(), [])[:50]])
def test_what_is_no_tree_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError, match="device tree blob"):
        fdt.parse(blob)


def test_the_kernel_s_own_archiver_reads_an_initramfs(tmp_path: Path) -> None:
    """The oracle is cpio."""
    cpio = need_tool("cpio", "cpio")
    packed = initramfs.archive({"init": File(b"#!/bin/sh\n", 0o755), "etc/deep/er": File(b"x" * 5)})

    assert 0 == len(packed) % 4, "the next archive would not be found"
    listed = subprocess.run(
        [cpio, "-itv", "--quiet"], input=gzip.decompress(packed), capture_output=True, check=True
    ).stdout.decode()
    entries = {line.split()[-1]: (line.split()[0], line.split()[4]) for line in listed.splitlines()}
    assert {
        "etc": ("drwxr-xr-x", "0"), "etc/deep": ("drwxr-xr-x", "0"),
        "etc/deep/er": ("-rw-r--r--", "5"), "init": ("-rwxr-xr-x", "10"),
    } == entries  # fmt: skip


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    there = {}
    for name, depends in (("virtio-rng", "hw-core"), ("hw-core", ""), ("ext4", "jbd2,mbcache"), ("jbd2", "")):
        path = tmp_path / f"{name}.ko"
        path.write_bytes(b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0")
        there[initramfs.module_name(path)] = path

    found = [path.name for path in initramfs.closure(["virtio_rng", "ext4", "built_in"], there)]

    assert ["hw-core.ko", "virtio-rng.ko", "jbd2.ko", "ext4.ko"] == found
    assert "extra/ext4.ko: extra/jbd2.ko\n" in initramfs.modules_dep({f"extra/{p.name}": p for p in there.values()})


def test_a_damaged_image_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"linux")
    described = {"kernel_release": "6.1", "files": {"kernel": image.digest(tmp_path / "kernel")}}
    (tmp_path / "image.json").write_text(json.dumps(described))
    assert "6.1" == image.read(tmp_path, "arm64").kernel_release

    (tmp_path / "kernel").write_bytes(b"linuy")

    with pytest.raises(ValueError, match="kernel has another hash"):
        image.read(tmp_path, "arm64")


def test_extras_travel_with_the_board_and_name_its_snapshot(tmp_path: Path) -> None:
    module = tmp_path / "stub.ko"
    module.write_bytes(b"\0depends=\0")
    plain, rich = Extras(), Extras(tmp_path, {"/etc/x": File(b"y")}, ("modprobe stub",))
    base = Image(tmp_path / "none", "arm64", "6.1", "k")

    packed = gzip.decompress(machine.seed(KINDS["pi4"], base, "desk", rich))

    assert plain.digest() != rich.digest() != Extras(tmp_path, {"/etc/x": File(b"z")}, ("modprobe stub",)).digest()
    for name in (b"seed/tree/etc/x", b"seed/start/00", b"seed/tree/usr/lib/modules/6.1/extra/stub.ko", b"NAME=desk\n"):
        assert name in packed


def test_a_memory_becomes_again_what_it_was_for_those_who_map_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    size = 8 << 20
    with memory.FILE.open("wb") as file:
        file.truncate(size)
    with memory.FILE.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        written = [0, 5 * 4096 + 1, size // 2, size - 1]
        for at in written:
            mapped[at] = 7
        with memory.saved():
            pass
        mapped[written[1]] = mapped[size // 3] = 9
        memory.restore()

        assert written == np.flatnonzero(np.frombuffer(mapped[:], np.uint8) == 7).tolist()
        assert 0 == mapped[size // 3]
        assert memory.CLEAN.stat().st_size < size / 10, "zeros are not kept"


def test_a_snapshot_that_is_not_written_leaves_the_memory_of_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    memory.FILE.write_bytes(b"then")
    with memory.saved():
        pass
    memory.FILE.write_bytes(b"now!")

    with pytest.raises(VirtualError, match="no room"), memory.saved():
        raise VirtualError("no room")
    memory.restore()

    assert b"then" == memory.FILE.read_bytes()
    assert ["memory", "memory.clean"] == sorted(path.name for path in tmp_path.iterdir())


def test_a_memory_without_its_snapshot_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory.FILE.write_bytes(b"now!")

    with pytest.raises(VirtualError, match="memory: No such file"):
        memory.restore()

    assert b"now!" == memory.FILE.read_bytes()


# The line


def line(*options: str) -> tuple[subprocess.Popen[str], socket.socket, int]:
    """The line's process, the board's end, and the host's."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-S", str(ROOT / "deploy/virtual/line.py"), *options, "--board-fd", str(theirs.fileno())],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[theirs.fileno()],
    )  # fmt: skip
    theirs.close()
    assert process.stdout
    host = os.open(process.stdout.readline().strip(), os.O_RDWR | os.O_NOCTTY)
    ours.settimeout(10)
    return process, ours, host


def test_a_line_that_nobody_reads_does_not_stop_the_board() -> None:
    process, board, host = line()
    try:
        board.sendall(bytes(range(256)) * 2000)  # more than a pty holds: it is lost, as on a real one
        os.write(host, b"still there")
        assert b"still there" == board.recv(100)
    finally:
        process.communicate()
        board.close()
        os.close(host)


def test_a_line_carries_both_ways_and_loses_everything_when_it_is_cut() -> None:
    process, board, host = line("--baud", "1000000")
    assert process.stdin
    try:
        board.sendall(b"login: ")
        assert b"login: " == os.read(host, 100)
        process.stdin.write("cut\n")
        process.stdin.flush()
        time.sleep(0.2)
        os.write(host, b"lost")
        time.sleep(0.2)
        process.stdin.write("restore\n")
        process.stdin.flush()
        time.sleep(0.2)
        os.write(host, b"kept")
        assert b"kept" == board.recv(100)
    finally:
        process.communicate()
        board.close()
        os.close(host)


def test_a_line_ends_with_whoever_started_it() -> None:
    process, board, host = line()
    process.communicate(timeout=10)
    board.close()
    os.close(host)

    assert 0 == process.returncode


def test_the_line_s_settings_are_checked() -> None:
    for text, reason in (
        ("speed=9", "--line has no key 'speed'"),
        ("baud=fast", "--line: baud is 'fast', which is no number"),
        ("errors=2", "--line: errors cannot be 2"),
    ):
        done = CliRunner().invoke(cli, ["virtual", "up", "pi4", "--line", text])
        assert reason in done.output
        assert 2 == done.exit_code
