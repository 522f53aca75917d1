"""
The process that a virtual board belongs to: it starts QEMU, watches it, and does what `control` asks for.

Who owns what: the keeper is the only parent of QEMU, of what plays a part of the board beside it, and of the board's
two lines, and all die with it, whatever kills it (the kernel sends SIGKILL; the lines see the end of their input).
While the board starts, the keeper itself ends as soon as whoever started it does, by the end of a pipe: only once `up`
has said "adopt" is it a daemon.  It holds a lock on the board's folder as long as it lives.

    python -m deploy.virtual.keeper FOLDER

Standard input: the pipe; standard output: JSON lines on how it goes.  Later commands come over a socket in the folder,
one JSON line each, answered by one.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.errors import VirtualError
from deploy.virtual import memory
from deploy.virtual.beside import Beside
from deploy.virtual.guest_port import Guest
from deploy.virtual.qmp import Qmp

READY = b"BOARD-READY"
KNOCKS, KNOCK_S = 2, 0.02
CLEAN = "clean"  # the snapshot that `reset` goes back to
BOOT_S = 180.0  # on a machine that has much else to do
FULL = "/home/.full"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class Abandoned(Exception):
    """Whoever started the board is gone."""


class Keeper:
    """
    Args:
        folder: the board's; the working directory from here on.
        starter: descriptor whose end says that whoever started the board is gone.
    """

    def __init__(self, folder: Path, starter: int) -> None:
        os.chdir(folder)
        self._folder = folder
        self._starter: int | None = starter
        self.board: dict[str, Any] = json.loads(Path("board.json").read_text())
        self.state = "starting"
        self._lines: dict[str, subprocess.Popen[str]] = {}
        self._pairs: dict[str, tuple[socket.socket, socket.socket]] = {}
        self._qemu: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._qmp: Qmp | None = None
        self._guest: Guest | None = None
        self._beside: Beside | None = None

    # Starting

    def start_lines(self) -> None:
        for name in ("console", "uart"):
            self._pairs[name] = socket.socketpair()
            host = self._pairs[name][0]
            words = [f"--{key.replace('_', '-')}={value}" for key, value in self.board["line"].items()]
            script = str(Path(__file__).with_name("line.py"))
            line = self._lines[name] = subprocess.Popen(
                [sys.executable, "-S", "-E", script, *words, "--board-fd", str(host.fileno())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[host.fileno()],
            )  # fmt: skip
            assert line.stdout
            path = line.stdout.readline().strip()
            link = Path(name)
            link.unlink(missing_ok=True)
            link.symlink_to(path)

    def start(self, snapshot: str | None) -> None:
        """
        Start QEMU and wait until the board is ready.

        Raises:
            VirtualError: it does not become so, or QEMU ends; with the reason.
            Abandoned: while it was starting.
        """
        log_at = os.path.getsize("console.log") if os.path.exists("console.log") else 0
        ours, theirs = {}, {}
        for name in ("qmp", "control"):
            ours[name], theirs[name] = socket.socketpair()
        numbers = {name: pair[1].fileno() for name, pair in self._pairs.items()}
        numbers |= {name: line.fileno() for name, line in theirs.items()}
        words = [_filled(word, numbers) for word in self.board["command"]]
        if snapshot:
            words += ["-S"]
        with open("qemu.log", "ab") as log:
            self._qemu = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=list(numbers.values()),
                preexec_fn=_die_with(os.getpid()),
            )  # fmt: skip
        for line in theirs.values():
            line.close()
        self._pidfd = os.pidfd_open(self._qemu.pid)
        try:
            self._qmp = Qmp(ours["qmp"])
        except VirtualError:
            self._qemu.wait(10)
            raise VirtualError(self._why_ended()) from None
        self._guest = Guest(ours["control"])
        if self.board.get("beside"):
            self._beside = Beside(self.board["beside"], _die_with(os.getpid()))
        if memory.FILE.exists():
            memory.leave_alone(self._qmp)
        if snapshot:
            self._load(snapshot)
        else:
            self._wait_ready(log_at)
        self._settle()
        self.state = "running"

    def _settle(self) -> None:
        """
        What a board that was just booted, or taken from a snapshot, does not know: the time, and who it is.  What is
        beside it begins anew, too: a snapshot has put older bytes into the memory that they share.
        """
        assert self._guest and self._qmp
        name, number = self.board["name"], self.board["serial_number"]
        node = "/sys/firmware/devicetree/base/serial-number"
        self._guest.run(
            f"/bin/date -s @{time.time():.3f} >/dev/null; busybox hostname {name}; echo {name} >/etc/hostname; "
            f"echo 127.0.0.1 localhost {name} >/etc/hosts; "
            f"grep -q {number} {node} || {{ printf '%s\\0' {number} >/run/serial-number && "
            f"mount --bind /run/serial-number {node}; }}",
            BOOT_S,
        )
        self._qmp.run("set-action", reboot="reset")
        if self._beside:
            self._beside.reset(self._qmp)

    def _wait_ready(self, log_at: int) -> None:
        deadline = time.monotonic() + BOOT_S
        while True:
            if _said("console.log", log_at, READY):
                return
            watched = [self._pidfd] + ([self._starter] if self._starter is not None else [])
            readable, _, _ = select.select(watched, [], [], 0.02)
            if self._starter in readable:
                raise Abandoned
            if self._pidfd in readable:
                raise VirtualError(self._why_ended())
            if time.monotonic() > deadline:
                raise VirtualError(f"the board is not ready after {BOOT_S:.0f} s")

    def _why_ended(self) -> str:
        assert self._qemu
        status = self._qemu.wait()
        said = Path("qemu.log").read_text(errors="replace").strip().splitlines()
        if said and "host forwarding rule" in said[-1]:
            return f"port {self.board['port']} of 127.0.0.1 is taken"
        if status < 0:
            return f"QEMU was killed by {signal.Signals(-status).name}"
        return f"QEMU ended: {said[-1]}" if said and status else "the board switched itself off, or its kernel panicked"

    # Serving

    def serve(self, listener: socket.socket) -> None:
        """Until the board is taken down."""
        while True:
            watched = [listener.fileno()] + ([self._pidfd] if self._qemu else [])
            readable, _, _ = select.select(watched, [], [])
            if self._qemu and self._pidfd in readable:
                reason = self._why_ended()
                self._forget()
                self.state = f"dead: {reason}"
            if listener.fileno() in readable:
                line, _ = listener.accept()
                with line:
                    if self._conversation(line):
                        return

    def _conversation(self, line: socket.socket) -> bool:
        """One request; True if it was the last."""
        line.settimeout(5.0)
        try:
            with line.makefile("rw") as stream:
                request = json.loads(stream.readline() or "{}")
                doing = str(request.get("do"))
                try:
                    said = self.do(doing, request.get("value"))
                    answer: dict[str, Any] = {"ok": True, "state": self.state, "said": said}
                except (VirtualError, OSError) as error:
                    answer = {"ok": False, "state": self.state, "error": str(error)}
                line.settimeout(5.0)
                stream.write(json.dumps(answer) + "\n")
        except (OSError, ValueError):
            return False  # whoever asked is gone
        return doing == "down"

    def do(self, what: str, value: str | None) -> str:
        """
        Do what a request asks for.

        Raises:
            VirtualError: it cannot be done, or is not known.
        """
        actions: dict[str, Callable[[str | None], str | None]] = {
            "status": lambda _: None,
            "down": lambda _: self._cut(),
            "reset": lambda _: self._reset(),
            "save": lambda _: self.save(),
            "power-cut": lambda _: self._cut(),
            "power-on": lambda _: self._power_on(),
            "hang": lambda _: self._run_state("stop", "hung"),
            "resume": lambda _: self._run_state("cont", "running"),
            "reboot": lambda _: self._reboot(),
            "disk-full": lambda _: self._run(
                f"fallocate -l $(($(stat -f -c '%a*%S' /home) - 1048576)) {FULL}; "
                f"dd if=/dev/zero of={FULL}2 bs=4k 2>/dev/null; sync; df -k /home | tail -n 1"
            ),
            "disk-free": lambda _: self._run(f"rm -f {FULL} {FULL}2; sync"),
            "clock": lambda value: self._run(f"/bin/date -s @{_seconds(value):.3f}"),
            "net-cut": lambda _: self._link(False),
            "net-restore": lambda _: self._link(True),
            "noise": lambda value: self._tell_lines(f"errors {float(value if value is not None else 1e-3)}"),
            "unplug": lambda _: self._tell_lines("cut"),
            "plug": lambda _: self._tell_lines("restore"),
            "run": lambda value: self._run(value or "true"),
        }
        if what not in actions:
            raise VirtualError(f"unknown request {what!r}")
        return actions[what](value) or ""

    def save(self) -> None:
        """Make this moment the one that `reset` goes back to."""
        self._run("sync")
        assert self._qmp
        self._qmp.run("stop")
        try:
            with memory.saved() if memory.FILE.exists() else contextlib.nullcontext():
                self._qmp.monitor(f"savevm {CLEAN}")
        finally:
            self._qmp.run("cont")

    def _load(self, snapshot: str) -> None:
        """Go back to that moment, from a machine that is stopped."""
        assert self._qmp
        self._qmp.monitor(f"loadvm {snapshot}")
        if memory.FILE.exists():  # only now: QEMU resets the machine first, which puts the kernel into it anew
            memory.restore()
        self._qmp.run("cont")
        if memory.FILE.exists():
            self._knock()

    def _knock(self) -> None:
        """
        Let QEMU's network ask again where the guest is: its first question, when the guest has just come back, is not
        heard, and the next one for the same packet would come two seconds later.
        """
        for _ in range(KNOCKS):
            time.sleep(KNOCK_S)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.board["port"]), 1):
                pass

    def _needs(self, *states: str) -> None:
        if self.state not in states:
            raise VirtualError(f"the board is {self.state}")

    def _run(self, command: str) -> str:
        self._needs("running")
        assert self._guest
        return self._guest.run(command)

    def _run_state(self, command: str, state: str) -> None:
        self._needs("running", "hung")
        assert self._qmp
        self._qmp.run(command)
        self.state = state

    def _link(self, up: bool) -> None:
        self._needs("running", "hung")
        assert self._qmp
        self._qmp.run("set_link", name="net", up=up)

    def _tell_lines(self, command: str) -> None:
        for line in self._lines.values():
            assert line.stdin
            line.stdin.write(command + "\n")
            line.stdin.flush()

    def _reset(self) -> None:
        if memory.FILE.exists():
            # The control port is a connection in QEMU's own network here, and of such ones it keeps the old beside that
            # of the snapshot: whoever has said anything since is heard no more.
            self._cut()
        if self.state in ("running", "hung"):
            assert self._qmp
            self._qmp.run("stop")
            self._load(CLEAN)
            self._qmp.run("set_link", name="net", up=True)
            self._settle()
            self.state = "running"
        else:
            self._begin(CLEAN)

    def _power_on(self) -> None:
        if self.state in ("running", "hung"):
            raise VirtualError("the board is on")
        self._begin(None)

    def _begin(self, snapshot: str | None) -> None:
        try:
            self.start(snapshot)
        except VirtualError as error:
            self._cut()
            self.state = f"dead: {error}"
            raise

    def _reboot(self) -> None:
        self._needs("running")
        assert self._guest
        log_at = os.path.getsize("console.log")
        self._guest.tell("sync; busybox reboot -f")
        self._wait_ready(log_at)
        self._settle()

    def _cut(self) -> None:
        """Power cut: QEMU dies in whatever it does.  What the guest has flushed is on the disk."""
        if self._qemu:
            self._qemu.kill()
            self._qemu.wait()
            self._forget()
        self.state = "off"

    def _forget(self) -> None:
        os.close(self._pidfd)
        if self._qmp:
            self._qmp.close()
        if self._beside:
            self._beside.close()
        self._qemu = self._qmp = self._guest = self._beside = None

    # Ending

    def adopted(self) -> None:
        """From here on the board outlives whoever started it."""
        self._starter = None
        self.board["up"] = True
        write(self.board)

    def remove(self) -> None:
        """The end: nothing of the board is left, neither processes nor files."""
        self._cut()
        for line in self._lines.values():
            line.kill()
            line.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def write(board: dict[str, Any]) -> None:
    """The description, in the working directory, whole or not at all."""
    staging = Path(f".board.{os.getpid()}")
    staging.write_text(json.dumps(board, indent=1) + "\n")
    staging.replace("board.json")


def _listening() -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    Path("keeper").unlink(missing_ok=True)
    listener.bind("keeper")
    os.chmod("keeper", 0o600)
    listener.listen(8)
    return listener


def _words(starter: int) -> Iterator[str]:
    """What whoever started the board says, a word at a time."""
    while said := os.read(starter, 64):
        yield from said.decode().split()
    raise Abandoned


def _filled(word: str, numbers: dict[str, int]) -> str:
    for name, number in numbers.items():
        word = word.replace(f"{{{name}}}", str(number))
    return word


def _seconds(value: str | None) -> float:
    """
    A time since 1970; ``+60`` and ``-60`` are relative to the true one; ``now``, or nothing, is that.

    Linux refuses a time that is less than what it has been up for, so the first day of 1970 is the second.
    """
    if value in (None, "", "now"):
        return time.time()
    assert value
    try:
        return time.time() + float(value) if value[0] in "+-" else max(float(value), 86_400.0)
    except ValueError:
        raise VirtualError(f"{value!r} is no time: seconds since 1970, or +60, -60 or now") from None


def _said(log: str, at: int, word: bytes) -> bool:
    try:
        with open(log, "rb") as file:
            file.seek(at)
            return word in file.read()
    except OSError:
        return False


def _die_with(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _lock() -> int:
    """Held until this process ends.  Somebody may be looking just now whether it is."""
    fd = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(100):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            time.sleep(0.02)
    raise VirtualError("another keeper has this board")


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    starter, told = os.dup(0), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def tell(**facts: Any) -> None:
        try:
            told.write(json.dumps(facts) + "\n")
            told.flush()
        except OSError:
            raise Abandoned from None

    keeper = Keeper(Path(sys.argv[1]), starter)
    _lock()
    try:
        keeper.board["pid"] = os.getpid()
        write(keeper.board)
        keeper.start_lines()
        keeper.start(keeper.board["snapshot"])
        if keeper.board["save"]:
            keeper.save()
        tell(ready=True)
        for word in _words(starter):
            if word == "adopt":
                break
            keeper.do(word, None)
            tell(done=word)
        keeper.adopted()
        listener = _listening()  # before anybody is told, who may ask at once
        tell(adopted=True)
        told.close()
        os.close(starter)
        keeper.serve(listener)
    except Abandoned:
        pass
    except VirtualError as error:
        try:
            tell(error=str(error))
            os.read(starter, 64)  # the folder stays until the last words were read
        except (Abandoned, OSError):
            pass
    finally:
        keeper.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
