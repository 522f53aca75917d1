"""
A board's console on a tty: what a serial line ends in on a board that nobody has prepared.

Real: the tty and its line discipline, /bin/sh (interactive) as the login shell, the Python that the board offers, and,
where the tests run as root, agetty, which opens the tty, prints the issue and reads the user's name.  Not real:
login, as the machine's own users and passwords are none of the tests' business.  The stand-in asks for the password
with echo off, waits after a wrong one, and becomes the shell in an empty environment.  Without root, the stand-in
reads the name as well.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

HOSTNAME = "bench-board"


class Console:
    """
    The console, running; getty comes back whenever it ends, as under an init.

    Args:
        tty: path of the tty.
        folder: for the board's home and its PATH.
        user, password: what logs in; password None asks for none; user None gives a shell to whoever comes.
        python: what PATH offers as python3; None offers none.
        baud: what getty sets the tty to.
    """

    def __init__(
        self,
        tty: str,
        folder: Path,
        user: str | None = "pi",
        password: str | None = None,
        python: str | None = sys.executable,
        baud: int = 115_200,
    ) -> None:
        self.home = folder / "board-home"
        self.home.mkdir(parents=True)
        programs = folder / "board-bin"
        programs.mkdir()
        for name in ("sh", "stty", "cat", "ls", "sleep", "rm", "cksum"):
            path = shutil.which(name)
            assert path
            (programs / name).symlink_to(path)
        if python:
            (programs / "python3").symlink_to(python)
        login = folder / "login"
        words = [sys.executable, "-S", __file__, "login", user or "", "-" if password is None else "=" + password]
        quoted = " ".join(f"'{word}'" for word in [*words, str(self.home), str(programs)])
        login.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
        login.chmod(0o755)
        words = [sys.executable, "-S", __file__, "init", tty, str(login), user or "", str(baud)]
        quiet = subprocess.DEVNULL  # no pipe of whoever runs the tests may be held open
        self._process = subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _init(tty: str, login: str, user: str, baud: str) -> None:
    """Start a getty on the tty, and again when it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # nothing may be left on a tty whose name the next test gets
    running: list[int] = []

    def stop(*_: object) -> None:
        for pid in running:
            for victim in _session(pid):
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    agetty = shutil.which("agetty", path="/sbin:/usr/sbin")
    while True:
        if user and agetty and os.getuid() == 0:
            words = [agetty, "-L", "--noclear", "--noissue", "--login-program", login, baud, tty.removeprefix("/dev/")]
        else:
            words = [login]
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            if words == [login]:
                fd = os.open(tty, os.O_RDWR)
                fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
                for number in range(3):
                    os.dup2(fd, number)
                _sane(0)
            os.environ["TERM"] = "vt100"
            os.execv(words[0], words)
        running[:] = [pid]
        os.waitpid(pid, 0)
        time.sleep(0.2)


def _session(sid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.getsid(int(name)) == sid:
                    found.append(int(name))
            except ProcessLookupError:
                pass
    return found


def _login(user: str, password: str, home: str, programs: str, *given: str) -> None:
    """What login does: the name (unless getty has it), the password, then the shell."""
    name = next((word for word in given if not word.startswith("-")), "")
    _sane(0)
    while user:
        if not name:
            _say(f"{HOSTNAME} login: ")
            name = _line()
            continue
        typed = ""
        if password != "-":
            _say("Password: ")
            typed = _line(echo=False)
            _say("\n")
        if name == user and (password == "-" or "=" + typed == password):
            _say("Linux bench-board 6.6.0 #1 SMP\nLast login: Sat Nov 21 09:00:00 on ttyS0\n")
            break
        time.sleep(1.0)
        _say("\nLogin incorrect\n")
        name = ""
    environment = {"HOME": home, "PATH": programs, "TERM": "vt100", "PS1": f"{user or 'root'}@{HOSTNAME}:~$ "}
    os.chdir(home)
    os.execve("/bin/sh", ["sh", "-i"], environment)  # no login shell: /etc/profile would set PATH


def _sane(fd: int) -> None:
    subprocess.run(["stty", "sane"], stdin=fd, check=False)


def _say(text: str) -> None:
    os.write(1, text.encode())


def _line(echo: bool = True) -> str:
    before = termios.tcgetattr(0)
    if not echo:
        quiet = termios.tcgetattr(0)
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(0, termios.TCSAFLUSH, quiet)
    data = os.read(0, 4096)
    termios.tcsetattr(0, termios.TCSANOW, before)
    if not data:
        sys.exit(1)
    return data.decode("utf-8", "replace").strip("\r\n")


if __name__ == "__main__":
    {"init": _init, "login": _login}[sys.argv[1]](*sys.argv[2:])
