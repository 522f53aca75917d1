"""
The transport over a serial line: a board that offers nothing but a console.

`Serial.run` wakes the console and finds out who answers.  At a login prompt it logs in, with a password from the
keyring or from whoever sits here; it is written nowhere.  From the shell it starts the board's end of the line
(`devices/line.py`), out of an agent that is there already or typed in, checked piece by piece.  From then on all
bytes travel through `devices.protocol.arq`, and the board's end runs commands as an SSH server would.  A board's end
that an earlier host left behind is simply connected to again.

Everything that is typed is one shell line, which ends by putting the tty back, whatever becomes of this host, and by
logging out if this host logged in.
"""

from __future__ import annotations

import ast
import base64
import importlib
import re
import secrets
import shlex
import struct
import threading
import time
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import serial

from deploy import bootstrap
from deploy.boards import Board, SerialTransport
from deploy.errors import BoardUnreachable, NoPython, TransportError
from deploy.transport.base import WRITE_TIMEOUT_S
from devices.protocol import arq

POLL_S = 0.01  # of the port: reading from it cannot be interrupted everywhere
SILENCE_S = 15.0
CLOSE_S = 5.0
RATE_S = 3.0  # at a higher rate and nothing heard: back to the console's
RATES = (4_000_000, 3_000_000, 2_000_000, 1_500_000, 1_000_000, 921_600, 460_800, 230_400)
STASH = 1 << 20  # bytes kept for whoever reads
TAIL_BYTES = 4096
ATTEMPTS = 8

Ask = Callable[[str], str]  # shows a prompt, returns a password

_PIECE = struct.Struct(">BI")
_STDOUT, _STDERR, _STATUS = 1, 2, 3  # as in devices/line.py
_LOGIN = re.compile(rb"(?<!Last )(?<!last )login: ?", re.IGNORECASE)
_PASSWORD = re.compile(rb"password[^\r\n]{0,40}: ?", re.IGNORECASE)
_REFUSED = re.compile(
    rb"login incorrect|authentication failure|permission denied|maximum number of tries", re.IGNORECASE
)
_BOOT = re.compile(
    rb"U-Boot|Hit any key to stop|^(?:=>|Zynq>|ZynqMP>|[a-z0-9-]*=>) ?$|grub>", re.IGNORECASE | re.MULTILINE
)
_ANSI = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_])")
_KERNEL = re.compile(rb"\[ *\d+\.\d{6}\] [^\r\n]*[\r\n]*")
_END = re.compile(rb"DEPLOY-END-(\d+)")
_OLD = re.compile(rb"DEPLOY-OLD (\d[\d.]+)")

# Typed into the shell.  Takes lines of base64: checksum, offset, bytes; says after each how far it is.
_RECEIVER = """
import sys,os,binascii as b,signal,zlib
sys.version_info<(3,9)and sys.exit("DEPLOY-OLD %d.%d"%sys.version_info[:2])
signal.alarm(60)
d=b""
while len(d)<{size}:
 os.write(1,b"DEPLOY-AT %d.\\n"%len(d))
 try:
  l=sys.stdin.buffer.readline();b"\\3"in l and sys.exit(3)
  c=b.a2b_base64(l)
  if b.crc32(c[4:])==int.from_bytes(c[:4],"big")and int.from_bytes(c[4:8],"big")==len(d):d+=c[8:]
 except ValueError:0
exec(zlib.decompress(d))
"""

_LOADER = """
import sys, types
for name, text in {sources!r}:
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    exec(compile(text, name, "exec"), module.__dict__)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
sys.modules["devices.line"].main()
"""


class SerialChannel:
    """
    One command on the board, through the board's end of the line.

    Attributes:
        chunk_bytes: what to send in one request, so that progress shows and little is lost with a host that dies.
    """

    lossy = False  # the line is, the channel is not
    chunk_bytes = 32 * 1024

    def __init__(self, port: _Port, splitter: arq.Splitter, link: arq.Connection, command: str) -> None:
        self._port = port
        self._splitter = splitter
        self._link = link
        self._changed = threading.Condition()
        self._pieces = bytearray()
        self._stdout = bytearray()
        self._tail = b""
        self._status: int | None = None
        self._failed: str | None = None
        self._stopped = False
        text = command.encode()
        self._write(struct.pack(">I", len(text)) + text)
        self._pump = threading.Thread(target=self._run, name="serial", daemon=True)
        self._pump.start()

    def read(self, timeout_s: float) -> bytes | None:
        end = time.monotonic() + timeout_s
        with self._changed:
            while not self._stdout:
                if self._link.ended or self._failed:
                    return b""
                left = end - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(left)
            data = bytes(self._stdout)
            self._stdout.clear()
            return data

    def write(self, data: bytes) -> None:
        with self._changed:
            self._write(data)

    def ended(self) -> tuple[int | None, str]:
        with self._changed:
            return self._status, self._failed or self._tail.decode("utf-8", "replace")

    def close(self) -> None:
        end = time.monotonic() + CLOSE_S
        with self._changed:
            self._link.finish()
            self._send()
            while not (self._failed or (self._link.ended and self._link.finished)):
                now = time.monotonic()
                if now > end or now - self._link.heard > CLOSE_S:
                    break
                self._changed.wait(0.1)
            self._stopped = True
        self._pump.join()
        if not self._failed:
            for _ in range(3):  # one of them arrives; the board waits for it
                self._link.acknowledge()
                self._port.write(self._link.transmit(time.monotonic()))

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while True:
            taken = self._link.write(bytes(view[: arq.BUFFER]))
            view = view[taken:]
            self._send()
            if not view:
                return
            if self._failed:
                raise OSError(self._failed)
            if time.monotonic() - self._link.heard > WRITE_TIMEOUT_S:
                raise TimeoutError(f"took nothing for {WRITE_TIMEOUT_S:g} s")
            self._changed.wait(0.2)

    def _send(self) -> None:
        self._port.write(self._link.transmit(time.monotonic()))

    def _run(self) -> None:
        """The thread that reads the port and keeps the clock."""
        while not self._stopped:
            try:
                data = self._port.read()
                with self._changed:
                    self._receive(data)
            except OSError as error:  # an adapter that was pulled out may come back
                with self._changed:
                    if time.monotonic() - self._link.heard > SILENCE_S:
                        self._failed = f"{self._port.name}: {_reason(error)}"
                        self._changed.notify_all()
                        return
                time.sleep(0.3)
                self._port.reopen()

    def _receive(self, data: bytes) -> None:
        now = time.monotonic()
        for body in self._splitter.feed(data):
            self._link.receive(body, now)
        self._port.watch(now - self._link.heard)
        if len(self._stdout) < STASH:
            self._take(self._link.read())
        self._port.write(self._link.transmit(now))
        if data:
            self._changed.notify_all()

    def _take(self, data: bytes) -> None:
        self._pieces += data
        while len(self._pieces) >= _PIECE.size:
            tag, size = _PIECE.unpack_from(self._pieces)
            if size > STASH:
                self._failed = f"a piece of {size} bytes"
                return
            if len(self._pieces) < _PIECE.size + size:
                return
            piece = bytes(self._pieces[_PIECE.size : _PIECE.size + size])
            del self._pieces[: _PIECE.size + size]
            if tag == _STDOUT:
                self._stdout += piece
            elif tag == _STDERR:
                self._tail = (self._tail + piece)[-TAIL_BYTES:]
            elif tag == _STATUS and re.fullmatch(rb"-?\d{1,3}", piece):
                self._status = int(piece)


class _Port:
    """The port: reads what is there, writes what fits and keeps the rest."""

    def __init__(self, name: str, baud: int) -> None:
        self.name = name
        self.baud = baud
        self._rest = b""
        self._raised = False
        self._port: Any = serial.serial_for_url(name, do_not_open=True)
        self._port.baudrate = baud
        self._port.timeout = POLL_S
        if isinstance(self._port, serial.Serial):  # a port behind TCP has none of these
            self._port.write_timeout = 0
            self._port.exclusive = True
        self._port.open()

    def read(self) -> bytes:
        """What has come within `POLL_S`."""
        data: bytes = self._port.read(1)
        while data and len(data) < 65536 and (waiting := self._port.in_waiting):
            data += self._port.read(min(waiting, 65536))
        return data

    def write(self, data: bytes) -> None:
        """Failures show when reading, which goes on all the time."""
        self._rest += data
        try:
            if self._rest:
                self._rest = self._rest[self._port.write(self._rest) or 0 :]
        except OSError:
            self._rest = b""

    def reopen(self) -> None:
        try:
            self._port.close()
            self._port.open()
        except OSError:
            pass

    def rate(self, baud: int) -> None:
        self._raised = baud != self.baud
        self._port.baudrate = baud

    def watch(self, silent_s: float) -> None:
        """The board leaves a higher rate when it hears nothing; so does this side."""
        if self._raised and silent_s > RATE_S:
            self.rate(self.baud)

    def close(self) -> None:
        self._port.close()


class Serial:
    """
    A board on a serial line.

    Args:
        ask: asks a person for a password; None where nobody can be asked.

    Raises (from the constructor):
        BoardUnreachable: there is no such port, it is in use, or may not be opened.
    """

    def __init__(self, board: Board, settings: SerialTransport, ask: Ask | None = None) -> None:
        self._board = board
        self._settings = settings
        self._ask = ask
        self.description = f"serial {settings.port} at {settings.baud} baud"
        self._splitter = arq.Splitter()
        self._typed = False
        self._logged_in = False
        self._said = b""
        self._secret: str | None = None  # the password, while the login may have to be repeated
        self._reached: tuple[int, arq.Connection] | None = None
        try:
            self._port = _Port(settings.port, settings.baud)
        except (OSError, ValueError) as error:
            raise self._not_opened(error) from None

    def run(self, command: str) -> SerialChannel:
        """
        Raises:
            BoardUnreachable: nobody answers, or the login is refused.
            NoPython: no usable Python there.
            TransportError: the board's end of the line cannot be started.
        """
        try:
            self._leave()
            self._start_line()
            number, link = self._connect()
            self._raise_rate(number, link)
        except OSError as error:
            raise BoardUnreachable(
                f"board {self._board.name!r} cannot be reached ({self.description}): {_reason(error)}",
                board=self._board.name,
            ) from None
        return SerialChannel(self._port, self._splitter, link, command)

    def close(self) -> None:
        """Wait until the shell has put the console back, and let go of the port."""
        try:
            self._leave()
        except OSError:
            pass
        self._port.close()

    def _leave(self) -> None:
        self._port.rate(self._port.baud)
        if self._typed:
            self._listen(4.0, lambda text, frames: _END.search(text) is not None)
        self._typed = self._logged_in = False

    # The console

    def _listen(
        self,
        timeout_s: float,
        enough: Callable[[bytes, list[bytes]], bool] = lambda text, frames: False,
        quiet_s: float = 60.0,
    ) -> tuple[bytes, list[bytes]]:
        """
        Text and frames that come, until they are enough, or time is up, or something visible came and then nothing for
        `quiet_s`: a newline alone may be all that is echoed while a password is looked at.

        Messages of the kernel are no sign that whoever was asked still talks.
        """
        raw, said, frames = b"", b"", []
        end, last = time.monotonic() + timeout_s, time.monotonic()
        while time.monotonic() < end:
            data = self._port.read()
            self._port.write(b"")
            if data:
                raw += data
                frames += self._splitter.feed(data)
                heard = _KERNEL.sub(b"", raw)
                if heard != said:
                    said, last = heard, time.monotonic()
            if enough(_ANSI.sub(b"", raw), frames) or (said.strip() and time.monotonic() - last > quiet_s):
                break
        return _ANSI.sub(b"", raw), frames

    def _type(self, text: str) -> None:
        self._port.write(text.encode())

    def _meet(self) -> bool:
        """Find out who is there: True for a shell (logged in to, if need be), False for a board's end of the line."""
        said, silent, odd, refused = b"", 0, 0, b""
        for attempt in range(ATTEMPTS):
            self._type("\r" if attempt == 0 else "\x15\r")  # ^U: what noise has typed is no user name
            text, frames = self._listen(2.0, _prompted, quiet_s=0.4)
            said = text or said
            owned = any(_is_frame(body) for body in frames) or (not text and silent)
            if owned and self._reach(1.5 if text else 3.5) is not None:
                return False
            if _LOGIN.search(text):
                if self._log_in():
                    return True
            elif _PASSWORD.search(text):
                self._type("\r")  # half a login that somebody left; it will be refused
                self._listen(5.0, lambda text, frames: _LOGIN.search(text) is not None)
            elif not text:
                silent += 1
                if silent > 2:
                    raise self._unreachable(
                        "nothing comes, not even an echo",
                        "is it switched on, and are TX and RX the right way round? "
                        f"`python -m serial.tools.miniterm {self._settings.port} {self._settings.baud}` shows it",
                    )
            elif self._answers():
                return True
            elif _is_odd(text):
                odd += 1
                if odd > 3:
                    break
            elif _BOOT.search(text):
                refused = _BOOT.search(text)[0]  # type: ignore[index]
                if attempt >= 2:
                    raise self._unreachable(
                        f"its boot loader answers ({_shown(refused)}), not Linux", "`boot` there starts Linux, mostly"
                    )
        if _is_odd(said):
            raise self._unreachable(
                f"what comes is no text ({_shown(said)})",
                f"is {self._settings.baud} baud right? `baud:` of {self._board.name!r} in boards.yaml",
            )
        raise self._unreachable(f"no login prompt and no shell; it last said: {_shown(said)}")

    def _answers(self) -> bool:
        """Whether a shell reads what is typed: only one does sums."""
        a, b = secrets.randbelow(90000) + 10000, secrets.randbelow(90000) + 10000
        self._type(f" echo DEPLOY-$(({a}+{b}))\r")
        wanted = f"DEPLOY-{a + b}".encode()
        text, _ = self._listen(2.0, lambda text, frames: wanted in text)
        return wanted in text

    def _log_in(self) -> bool:
        user = self._settings.user
        if not user:
            raise self._unreachable(
                "it wants a login, and boards.yaml names no user",
                f"`user:` of {self._board.name!r} in boards.yaml names one",
            )
        self._type(user + "\r")
        text, _ = self._listen(15.0, _after_user, quiet_s=1.0)
        if _PASSWORD.search(text):
            self._listen(0.1)  # login flushes what was typed before it asked
            self._type(self._password(user) + "\r")
            text, _ = self._listen(15.0, _after_password, quiet_s=1.5)
            if _REFUSED.search(text) or _LOGIN.search(text):
                raise self._unreachable(
                    f"the login as {user!r} is refused",
                    f"`keyring set deploy {self._board.name}` stores another password; boards.yaml names the user",
                )
        elif _REFUSED.search(text):
            raise self._unreachable(f"the login as {user!r} is refused")
        if not self._answers() and not self._answers():
            return False
        self._logged_in = True
        return True

    def _password(self, user: str) -> str:
        """From the keyring, if there is one, or from a person; forgotten when the agent's end of the line runs."""
        if self._secret is None:
            self._secret = stored_password(self._board.name)
        if self._secret is not None:
            return self._secret
        if self._ask is None:
            raise self._unreachable(
                f"it wants the password of {user!r}, and nobody is here to ask",
                f"`keyring set deploy {self._board.name}` (pip install keyring) stores it",
            )
        self._secret = self._ask(password_prompt(self._board.name, self._settings))
        return self._secret

    # The board's end of the line

    def _start_line(self) -> None:
        """Find it, or start it from the shell; what the line has damaged is typed again."""
        said = b""
        for _ in range(ATTEMPTS):
            if not self._meet() or self._try_line():
                self._secret = None
                return
            said = self._said or said
            if match := _OLD.search(said):
                raise NoPython(
                    f"board {self._board.name!r} has Python {match[1].decode()}; the agent needs 3.9 or newer",
                    "install a newer one there; "
                    f"`python: /path/to/python3` of {self._board.name!r} in boards.yaml names it",
                    board=self._board.name,
                )
            if b"DEPLOY-END-127" in said and not self._has_python():
                raise NoPython(
                    f"board {self._board.name!r} has no {self._python!r}",
                    f"`sudo apt install python3` there, or name the one it has: `python:` of {self._board.name!r} "
                    "in boards.yaml",
                    board=self._board.name,
                )
            self._recover()
        raise TransportError(
            f"board {self._board.name!r} does not start its end of the line ({self.description}); "
            f"it last said: {_shown(said)}",
            board=self._board.name,
        )

    @property
    def _python(self) -> str:
        return self._board.python or "python3"

    def _has_python(self) -> bool:
        return self._ask_shell(f"command -v {shlex.quote(self._python)} >/dev/null") == 0

    def _ask_shell(self, test: str) -> int | None:
        """Exit status of a command, 0 or 1; None if the answer does not come."""
        a, b = secrets.randbelow(90000) + 10000, secrets.randbelow(90000) + 10000
        self._type(f" {test}; echo DEPLOY-$(({a}+{b}))-$?\r")
        pattern = re.compile(b"DEPLOY-%d-(\\d+)" % (a + b))
        text, _ = self._listen(3.0, lambda text, frames: pattern.search(text) is not None)
        found = pattern.search(text)
        return int(found[1]) if found else None

    def _try_line(self) -> bool:
        agent = f"{_home(self._board.root)}/agent/{bootstrap.agent_package().sha256}"
        there = self._ask_shell(f"test -f {agent}/devices/line.py") == 0
        program = line_program()
        if there:
            start = f"(cd {agent}&&{shlex.quote(self._python)} -m devices --line)"
        else:
            start = f"{shlex.quote(self._python)} -c '{_RECEIVER.format(size=len(program)).strip()}'"
        # Where a damaged line of typing was the reason, the next attempt needs the shell again.
        leave = ";case $e in [123]|12?);;*)exit;;esac" if self._logged_in else ""
        self._type(
            f' s=$(stty -g);stty raw -echo;{start};e=$?;stty "$s";echo;echo DEPLOY-END-$e{leave}'.replace("\n", "\r")
            + "\r"
        )
        self._typed = True
        if not there and not self._send_program(program):
            return False
        self._said, frames = self._listen(15.0, lambda text, frames: _ready(frames) or _END.search(text) is not None)
        return _ready(frames)

    def _send_program(self, program: bytes) -> bool:
        """Piece by piece, each confirmed by how far the receiver says it is."""
        reached = re.compile(rb"DEPLOY-AT (\d+)\.")
        at, size, failures, quickest = -1, 720, 0, 0.5
        text, _ = self._listen(8.0, lambda text, frames: bool(reached.search(text) or _END.search(text)))
        while failures < 40:
            self._said = text
            if _END.search(text) or _OLD.search(text):
                return False
            found = reached.findall(text)
            if found and at < int(found[-1]) <= len(program):
                at, failures = int(found[-1]), max(0, failures - 1)
            else:
                failures += 1
                size = max(90, size // 2)
            if at < 0:
                return False
            piece = struct.pack(">I", at) + program[at : at + size]
            line = base64.b64encode(struct.pack(">I", zlib.crc32(piece)) + piece) + b"\n"
            self._port.write(line)
            if at + size >= len(program):
                return True  # if it is damaged, no READY comes, and all is tried again
            patience_s = len(line) * 10 / self._settings.baud + quickest
            text, _ = self._listen(patience_s, lambda text, frames: bool(reached.search(text)))
        return False

    def _recover(self) -> None:
        """Back to a prompt, from half a line, an open quote, a receiver that still waits, or a raw tty."""
        self._type("\x03\x15\n")
        self._listen(0.5)
        self._type("'\x03\x15\r\n stty sane\n")
        self._listen(0.5)
        self._type("\x15\r")
        self._listen(0.5)
        if not self._answers():
            self._listen(2.0)

    # The connection

    def _reach(self, patience_s: float) -> tuple[int, arq.Connection] | None:
        """Connect to a board's end of the line; None if nobody accepts."""
        number = secrets.randbits(32)
        end = time.monotonic() + patience_s

        def accepted(text: bytes, frames: list[bytes]) -> bool:
            return (arq.Kind.ACCEPT, number, 0) in map(arq.parse_control, frames)

        while time.monotonic() < end:
            self._port.write(arq.control(arq.Kind.CONNECT, number))
            text, frames = self._listen(0.4, accepted)
            if accepted(text, frames):
                self._reached = (number, arq.Connection(number, True, time.monotonic()))
                return self._reached
        return None

    def _connect(self) -> tuple[int, arq.Connection]:
        reached, self._reached = self._reached or self._reach(10.0), None
        if reached is None:
            raise self._unreachable("its end of the line is there, and does not answer")
        return reached

    def _raise_rate(self, number: int, link: arq.Connection) -> None:
        """Try the rates above the console's, the highest first, until frames come through both ways."""
        for rate in RATES:
            if not self._settings.baud < rate <= (self._settings.max_baud or 0):
                continue
            agreed = (arq.Kind.RATE, number, rate)
            self._port.write(arq.control(arq.Kind.RATE, number, rate))
            _, frames = self._listen(0.6, lambda text, frames: bool(frames))
            if agreed in map(arq.parse_control, frames):
                self._port.rate(rate)
                if self._pings(link, 1.5):
                    return
                self._port.rate(self._settings.baud)
            if self._pings(link, 0.3):
                continue  # it does not know this rate, and has stayed
            self._pings(link, 6.0)  # until it has come back

    def _pings(self, link: arq.Connection, patience_s: float) -> bool:
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            link.ping()
            self._port.write(link.transmit(time.monotonic()))
            _, frames = self._listen(0.15, lambda text, frames: bool(frames))
            answered = [link.receive(body, time.monotonic()) for body in frames]
            if any(answered):
                return True
        return False

    # Errors

    def _unreachable(self, reason: str, hint: str | None = None) -> BoardUnreachable:
        return BoardUnreachable(
            f"board {self._board.name!r} cannot be reached ({self.description}): {reason}", hint, board=self._board.name
        )

    def _not_opened(self, error: Exception) -> BoardUnreachable:
        port, code = self._settings.port, getattr(error, "errno", None)
        if code == 2:
            return self._unreachable("there is no such port", "`deploy boards discover` lists those that are there")
        if code == 13:
            return self._unreachable("this user may not open it", "`sudo usermod -aG dialout $USER`, and log in again")
        if code in (11, 16) or "exclusively lock" in str(error):
            return self._unreachable("another program uses the port", f"`fuser -v {shlex.quote(port)}` names it")
        return self._unreachable(_reason(error))


def stored_password(board: str) -> str | None:
    """What the keyring has for `board`; None without the package `keyring`, or when it has nothing."""
    if not find_spec("keyring"):
        return None
    try:
        found = importlib.import_module("keyring").get_password("deploy", board)
    except Exception:  # keyring has many backends, and each its own errors
        return None
    return str(found) if found else None


def password_prompt(board: str, settings: SerialTransport) -> str:
    """What to ask a person."""
    return f"password of {settings.user} on {board} ({settings.port}): "


def line_program() -> bytes:
    """The board's end of the line as one program, compressed: the sources, without what only people read."""
    sources = [("devices", ""), ("devices.protocol", "")]
    for name in ("devices.protocol.arq", "devices.line"):
        spec = find_spec(name)
        assert spec and spec.origin
        sources.append((name, _bare(Path(spec.origin).read_text(encoding="utf-8"))))
    return zlib.compress(_LOADER.format(sources=sources).encode(), 9)


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _home(path: str) -> str:
    """A path for the shell, quoted but for its tilde."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _is_odd(text: bytes) -> bool:
    """More of it is no text than noise explains."""
    return sum(byte >= 0x7F or byte < 7 for byte in text) > len(text) // 4


def _prompted(text: bytes, frames: list[bytes]) -> bool:
    return bool(_LOGIN.search(text) or _PASSWORD.search(text) or any(map(_is_frame, frames)))


def _after_user(text: bytes, frames: list[bytes]) -> bool:
    return bool(_PASSWORD.search(text) or _REFUSED.search(text))


def _after_password(text: bytes, frames: list[bytes]) -> bool:
    return bool(_REFUSED.search(text) or _LOGIN.search(text))


def _ready(frames: list[bytes]) -> bool:
    return any(told is not None and told[0] is arq.Kind.READY for told in map(arq.parse_control, frames))


def _is_frame(body: bytes) -> bool:
    """A frame of whatever connection; its checksum cannot be looked at."""
    return len(body) >= 5 and body[0] in set(arq.Kind) and any(byte >= 0x7F or byte < 7 for byte in body)


def _shown(text: bytes) -> str:
    lines = [line.strip() for line in text.decode("ascii", "replace").splitlines() if line.strip()]
    return repr(lines[-1][-60:]) if lines else "nothing"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, serial.SerialException):
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
