"""
Virtual boards from the host's side: bring one up, ask its keeper for something, take it down.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy import boards
from deploy.errors import ConfigError, UnknownBoard, UsageError, VirtualError, nearest
from deploy.ports import free_port
from deploy.virtual import image as images
from deploy.virtual import machine, warm
from deploy.virtual.extras import Extras, collect
from deploy.virtual.image import Image
from deploy.virtual.kinds import Kind, find
from deploy.virtual.registry import Place, places, state_dir

START_S = 300.0
STOP_S = 15.0
PATIENCE_S = 5.0
PACED_BAUD = 115_200
LINE_KEYS = ("baud", "latency_s", "errors", "seed")

Note = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """
    How a board is to be.

    Attributes:
        name: in the registry; None: as the kind.
        cores, memory_mib: None: as the kind.
        port: of 127.0.0.1 for SSH; None: any that is free.
        cold: boot it, with nothing of ours on its disk, also where there is a warm snapshot.
        line: of both serial lines: baud (0: as fast as it goes), latency_s, errors (probability for a byte), seed.
    """

    name: str | None = None
    cores: int | None = None
    memory_mib: int | None = None
    port: int | None = None
    cold: bool = False
    line: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Up:
    """A board that is up: its entries in the registry, and how it came up."""

    name: str
    kind: str
    entries: dict[str, dict[str, Any]]
    warm: bool
    seconds: float
    missing: tuple[str, ...]


def up(kind_name: str, options: Options, note: Note, boards_file: str | None = None) -> Up:
    """
    Bring a board up.

    Args:
        note: told in a few words what takes long.
        boards_file: the registry whose names it must not take.

    Raises:
        UsageError: no such kind.
        ConfigError: the name is taken.
        ToolMissing: QEMU, or what makes images, is not here, or too old.
        VirtualError: it does not come up; with the last lines of its console.
    """
    kind = find(kind_name)
    name = options.name or kind.name
    check_name(name, boards_file)
    if kind.machine == "xilinx-zynq-a9" and (options.memory_mib or 0) > kind.memory_mib:
        raise UsageError(f"{kind.name} has {kind.memory_mib} MiB for Linux; above is its accelerator's memory")
    machine.qemu(kind.arch)
    image = images.ensure(kind.arch, note)
    extras = collect(kind, image, note)
    snapshot = None
    if not options.cold:
        snapshot = warm.ensure(kind, image, extras, options.cores, options.memory_mib, note)
    started = time.monotonic()
    note("starting" if snapshot else "booting")
    with starting(kind, image, extras, name, options, snapshot) as board:
        board.adopt()
    return Up(name, kind.name, board.entries, snapshot is not None, time.monotonic() - started, extras.missing)


def check_name(name: str, boards_file: str | None) -> None:
    """
    Raises:
        UsageError: it is no name.
        ConfigError: a board has it, or would have to share one of its entries.
    """
    if not all(map(boards.is_name, entry_names(name))):
        raise UsageError(f"{name!r} is no name of a board: letters, digits, `.`, `_` and `-`, 56 at most")
    if Place(name).is_kept():
        raise ConfigError(
            f"board {name!r} is up already", f"`--name` gives another; `deploy virtual down {name}` ends it", board=name
        )
    registry = boards.load(boards_file)
    taken = [board.name for board in registry if board.name in entry_names(name)]
    if taken:
        where = registry.path or "the embedded registry"
        raise ConfigError(f"{where}: board {taken[0]!r} is there already", "`--name` gives another", board=name)


def entry_names(name: str) -> tuple[str, str, str]:
    """Of one board: by SSH, by its console, and by its second UART."""
    return name, f"{name}.console", f"{name}.uart"


class Starting:
    """A board that is ready, and will be gone with this process unless it is adopted."""

    def __init__(self, place: Place, entries: dict[str, dict[str, Any]], keeper: subprocess.Popen[str]) -> None:
        self.place = place
        self.entries = entries
        self._keeper = keeper

    def adopt(self) -> None:
        """From here on it is a daemon that `down` ends."""
        self.ask("adopt")

    def ask(self, word: str) -> None:
        """
        Have the keeper do something, as `ask` does with a board that is up.

        Raises:
            VirtualError
        """
        assert self._keeper.stdin
        try:
            self._keeper.stdin.write(word + "\n")
            self._keeper.stdin.flush()
        except OSError:
            pass  # why it is gone is told next
        _told(self._keeper, self.place, START_S)

    def close(self) -> None:
        """Let go of it: it is gone unless it was adopted."""
        keeper = self._keeper
        assert keeper.stdin and keeper.stdout
        try:
            keeper.stdin.close()
        except OSError:
            pass  # a word to a keeper that is gone
        keeper.stdout.close()
        if (self.place.read() or {}).get("up"):
            return
        try:
            keeper.wait(STOP_S)
        except subprocess.TimeoutExpired:
            keeper.kill()  # QEMU dies with it
            keeper.wait()
        _remove(self.place)

    def __enter__(self) -> Starting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def starting(
    kind: Kind, image: Image, extras: Extras, name: str, options: Options, snapshot: Path | None
) -> Iterator[Starting]:
    """
    Start a board and wait until it is ready; when the body ends and has not adopted it, it is gone.

    Args:
        snapshot: disk with the snapshot to resume; None: boot.

    Raises:
        ConfigError: another command is bringing up a board of this name.
        VirtualError: it does not come up.
    """
    place = Place(name)
    with claim(place):
        try:
            _furnish(place, kind, image, extras, options, snapshot)
        except BaseException:
            _remove(place)
            raise
        board = start_keeper(place)
    with board:
        yield board


def start_keeper(place: Place) -> Starting:
    """
    Start the keeper of a board whose folder is ready, and wait until the board is.

    Raises:
        VirtualError: it does not come up; nothing of it is left.
    """
    with (place.folder / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "deploy.virtual.keeper", str(place.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": _search_path()},
        )  # fmt: skip
    board = Starting(place, (place.read() or {}).get("entries", {}), keeper)
    try:
        _told(keeper, place, START_S)
    except BaseException:
        board.close()
        raise
    return board


@contextmanager
def claim(place: Place) -> Iterator[None]:
    """
    An empty folder for a board, held until its keeper has it.

    Raises:
        ConfigError: there is a board of this name, or somebody is bringing it up.
    """
    state_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    with (state_dir() / f".{place.name}.claim").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = not place.is_kept()
        except BlockingIOError:
            free = False
        if not free:
            raise ConfigError(
                f"board {place.name!r} is up already, or coming up",
                f"`--name` gives another; `deploy virtual down {place.name}` ends it",
                board=place.name,
            )
        _remove(place)
        place.folder.mkdir(mode=0o700)
        yield


def _furnish(place: Place, kind: Kind, image: Image, extras: Extras, options: Options, snapshot: Path | None) -> None:
    """Everything that QEMU and the keeper read."""
    described = _describe(kind, image, extras, place.name, options, snapshot)
    (place.folder / "initrd").write_bytes(image.initrd.read_bytes() + machine.seed(kind, image, place.name, extras))
    cores, memory_mib = described["cores"], described["memory_mib"]
    tree = machine.device_tree(kind, image, cores, memory_mib, described["serial_number"], extras)
    (place.folder / "tree.dtb").write_bytes(tree)
    if snapshot is None:
        machine.make_disk(kind, image, place.folder / warm.DISK)
    else:
        warm.copy(snapshot, place.folder)
    place.known_hosts.write_text(f"[127.0.0.1]:{described['port']} {machine.host_key()}\n")
    place.described.write_text(json.dumps(described))


def _describe(
    kind: Kind, image: Image, extras: Extras, name: str, options: Options, snapshot: Path | None
) -> dict[str, Any]:
    cores, memory_mib = options.cores or kind.cores, options.memory_mib or kind.memory_mib
    port = options.port or free_port()
    line = {"baud": 0, "latency_s": 0, "errors": 0, "seed": 0, **options.line}
    place = Place(name)
    common = {
        "kind": kind.board_kind,
        "virtual": machine.emulator(kind),
        "power": {"kind": "virtual", "board": name},
        "cpu": {"arch": {"arm64": "aarch64", "armhf": "armv7l"}[kind.arch], "cores": cores},
        **({"overlay": extras.overlay} if extras.overlay else {}),
    }
    ssh = {
        "kind": "ssh", "host": "127.0.0.1", "port": port, "user": kind.user,
        "identity": str(machine.keys().login), "known_hosts": str(place.known_hosts), "timeout_s": 60,
    }  # fmt: skip
    baud = int(line["baud"]) or PACED_BAUD
    by_ssh, by_console, by_uart = entry_names(name)
    serial = {"kind": "serial", "baud": max(9600, baud)}
    entries = {
        by_ssh: {
            **common,
            "description": f"virtual {kind.description}",
            "transport": ssh,
            "tags": ["virtual"],  # of this entry alone: what is done to all boards is done to each once
            **({"rails": [dict(rail) for rail in extras.rails]} if extras.rails else {}),
        },
        by_console: {
            **common,
            "description": f"the same by its console, a getty on {machine.consoles(kind)[0]}",
            "transport": {**serial, "port": str(place.folder / "console"), "user": kind.user},
        },
        by_uart: {
            **common,
            "description": f"the same by its second UART, a shell on {machine.consoles(kind)[1]}",
            "transport": {**serial, "port": str(place.folder / "uart"), "user": kind.user},
        },
    }
    return {
        "name": name,
        "kind": kind.name,
        "virtual": common["virtual"],
        "cores": cores,
        "memory_mib": memory_mib,
        "port": port,
        "serial_number": kind.serial_number(name),
        "command": machine.command(kind, image, cores, memory_mib, port),
        "beside": list(extras.beside),
        "snapshot": "clean" if snapshot else None,
        "save": snapshot is None,
        "line": line,
        "entries": entries,
        "up": False,
    }


def _told(keeper: subprocess.Popen[str], place: Place, patience_s: float) -> None:
    """Wait for the keeper's next word."""
    assert keeper.stdout
    readable, _, _ = select.select([keeper.stdout], [], [], patience_s)
    told = json.loads(keeper.stdout.readline() or "{}") if readable else {"error": f"nothing for {patience_s:.0f} s"}
    if "error" not in told and told:
        return
    reason = told.get("error") or _log_end(place) or "its keeper ended"
    words = "".join(f"\n  console: {line}" for line in place.last_words())
    raise VirtualError(f"board {place.name!r} does not come up: {reason}{words}", board=place.name)


def _log_end(place: Place) -> str:
    try:
        lines = (place.folder / "keeper.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def _search_path() -> str:
    """The keeper must find this very package, wherever it was imported from."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))


def _remove(place: Place) -> None:
    import shutil

    shutil.rmtree(place.folder, ignore_errors=True)


# Boards that are up


@dataclass(frozen=True)
class Status:
    """
    Attributes:
        state: starting, running, hung, off, ``dead: <reason>``; ``busy`` while its keeper does something that takes
            long; ``left`` where only files are left of it.
    """

    name: str
    kind: str
    virtual: str
    state: str
    port: int
    cores: int
    memory_mib: int


def status() -> list[Status]:
    """Of every board there is."""
    found = []
    for place in places():
        described = place.read()
        if described is None:
            continue
        try:
            state = str(ask(place.name, "status", timeout_s=PATIENCE_S)["state"]) if place.is_kept() else "left"
        except VirtualError:
            state = "busy" if described["up"] else "starting"
        values = {key: described[key] for key in ("name", "kind", "virtual", "port", "cores", "memory_mib")}
        found.append(Status(state=state, **values))
    return found


def there(name: str) -> Place:
    """
    The place of a board that is there; the name may also be that of its console or UART.

    Raises:
        UnknownBoard: with the nearest.
    """
    known = {place.name: place for place in places()}
    place = known.get(name) or known.get(name.removesuffix(".console").removesuffix(".uart"))
    if place is None:
        raise UnknownBoard(
            f"no virtual board {name!r} is up{nearest(name, known)}", "`deploy virtual list` shows them", board=name
        )
    return place


def ask(name: str, what: str, value: str | None = None, timeout_s: float = START_S) -> dict[str, Any]:
    """
    Ask a board's keeper for something: ``status``, ``reset`` or a fault (`keeper.Keeper.do` has them all).

    Returns:
        ``state`` and ``said``.

    Raises:
        UnknownBoard: none of that name is up.
        VirtualError: it refuses, or does not answer; with the console's last lines when the board is dead.
    """
    place = there(name)
    try:
        with _connected(place) as line:
            line.settimeout(timeout_s)
            with line.makefile("rw") as stream:
                stream.write(json.dumps({"do": what, "value": value}) + "\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline())
    except (OSError, ValueError):
        reason = "its keeper does not answer" if place.is_kept() else "its keeper is gone, and QEMU with it"
        raise VirtualError(
            f"board {place.name!r}: {reason}", f"`deploy virtual down {place.name}` removes what is left", board=name
        ) from None
    if not answer["ok"]:
        dead = str(answer["state"]).startswith("dead")
        words = "".join(f"\n  console: {line}" for line in place.last_words()) if dead else ""
        back = f"`deploy virtual reset {place.name}` brings it back as it first was"
        hint = None if answer["state"] == "running" else back
        raise VirtualError(f"board {place.name!r}: {answer['error']}{words}", hint, board=name)
    return answer


def _connected(place: Place) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    folder = os.open(place.folder, os.O_PATH)
    try:
        line.connect(f"/proc/self/fd/{folder}/keeper")  # the path itself may be longer than a socket's name can be
    except BaseException:
        line.close()
        raise
    finally:
        os.close(folder)
    return line


def down(name: str) -> None:
    """
    End a board; nothing of it is left.

    Raises:
        UnknownBoard: none of that name is there.
    """
    place = there(name)
    described = place.read() or {}
    if place.is_kept():
        try:
            ask(place.name, "down", timeout_s=STOP_S)
        except VirtualError:
            pass
        deadline = time.monotonic() + STOP_S
        while place.is_kept() and time.monotonic() < deadline:
            time.sleep(0.02)
        if place.is_kept() and described.get("pid"):
            os.kill(described["pid"], signal.SIGKILL)  # QEMU dies with it
            while place.is_kept() and time.monotonic() < deadline + STOP_S:
                time.sleep(0.02)
    _remove(place)


def terminal(port: Path, keyboard: int, screen: int) -> None:
    """
    Carry a terminal to a board's serial line and back until Ctrl-] is typed, or the line is gone.

    Raises:
        VirtualError: the line cannot be opened.
    """
    import termios
    import tty

    try:
        line = os.open(port, os.O_RDWR | os.O_NOCTTY)
    except OSError as error:
        raise VirtualError(f"{port}: {error.strerror}") from None
    before = termios.tcgetattr(keyboard)
    tty.setraw(keyboard)
    try:
        while True:
            readable, _, _ = select.select([keyboard, line], [], [])
            if line in readable:
                data = os.read(line, 65536)
                if not data:
                    return
                os.write(screen, data)
            if keyboard in readable:
                typed = os.read(keyboard, 1024)
                before_leave, leave, _ = typed.partition(b"\x1d")
                os.write(line, before_leave)
                if leave or not typed:
                    return
    except OSError:
        return  # the board is gone
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        os.close(line)


__all__ = ["Options", "Status", "Up", "ask", "down", "state_dir", "status", "there", "up"]
