"""
The board's end of a serial line: gives a host there what SSH would give it, one command and its three pipes.

It runs on the board's console, started from the shell that the host logged in to, or by a service manager on a UART
of its own (``python3 -m devices --line < /dev/ttyS1``).  It says READY until a host connects, runs the shell command
that the host asks for, and carries its input and output over `devices.protocol.arq`.  It ends when the command has
ended, or when no host was heard for `silence_s`; the tty is then what it was before.

A host that connects while another conversation goes on has taken the line over: the old command sees the end of its
input, as it would behind a broken SSH connection, and the new one starts.

What a conversation carries: from the host the length of the command (4 bytes, big-endian), the command, and then its
standard input; to the host pieces, each a tag (see `Tag`), a length (4 bytes) and that many bytes.

Standard library only, and nothing of `devices` but the protocol: on a board that has no agent yet, this file and
`arq.py` come first, typed into the shell.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import tty
from typing import Any, Optional

from devices.protocol import arq

READY_S = 0.5
LINGER_S = 3.0  # for the host's last acknowledgement
RATE_S = 2.5  # at a higher rate and nothing heard: back to the first one
_LENGTH = struct.Struct(">I")
_PIECE = struct.Struct(">BI")
_MAX_COMMAND = 1 << 16
_CHUNK = 8192


class Tag:
    """What a piece is."""

    STDOUT = 1
    STDERR = 2
    STATUS = 3  # text of the exit status; the last piece


class Hangup(Exception):
    """The tty is gone."""


class Line:
    """
    Serves the line on a file descriptor.

    Args:
        fd: of a tty.
        silence_s: leave when no host was heard for so long.
    """

    def __init__(self, fd: int, silence_s: float) -> None:
        self._fd = fd
        self._silence_s = silence_s
        self._splitter = arq.Splitter()
        self._connection: Optional[arq.Connection] = None
        self._number = 0
        self._heard = time.monotonic()
        self._ready_at = 0.0
        self._out = bytearray()
        self._request = bytearray()
        self._command: Optional[subprocess.Popen[bytes]] = None
        self._sources: dict[int, int] = {}  # descriptor -> tag
        self._input: Optional[int] = None
        self._pending = bytearray()  # for the command's input
        self._over: Optional[float] = None  # when everything was said
        self._saved: Any = None
        self._probing: Optional[float] = None

    def serve(self) -> None:
        """Until the conversation is over or the host is silent."""
        self._saved = termios.tcgetattr(self._fd)
        blocking = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            tty.setraw(self._fd, termios.TCSANOW)
            fcntl.fcntl(self._fd, fcntl.F_SETFL, blocking | os.O_NONBLOCK)
            while self._step():
                pass
        except Hangup:
            pass
        finally:
            self._hang_up()
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETFL, blocking)
                time.sleep(0.05)  # what the host still sends is not for the shell
                termios.tcflush(self._fd, termios.TCIFLUSH)
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
            except (OSError, termios.error):
                pass

    def _step(self) -> bool:
        now = time.monotonic()
        link = self._connection
        if link:
            self._out += link.transmit(now) if len(self._out) < 4096 else b""
            due = link.deadline()
            if self._over is not None and ((link.finished and link.ended) or now - self._over > LINGER_S):
                self._flush()
                return False
        else:
            if now >= self._ready_at:
                self._out += arq.control(arq.Kind.READY, 0)
                self._ready_at = now + READY_S
            due = self._ready_at
        if self._out:
            due = now + 0.02  # the tty takes no more just now
        if now - self._heard > self._silence_s:
            return False
        if self._probing is not None and now - max(self._probing, self._heard) > RATE_S:
            self._set_rate(self._saved[5])
            self._probing = None
        self._flush()
        for fd, _ in self._wait(max(0.0, min(due - now, 0.5))):
            if fd == self._fd:
                self._from_line()
            elif fd == self._input:
                self._feed()
            elif fd in self._sources:
                self._from_command(fd)
        self._to_command()
        self._look_after_command()
        return True

    def _wait(self, seconds: float) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN | (select.POLLOUT if self._out else 0))
        if self._connection and self._connection.unfinished < arq.BUFFER // 2:
            for fd in self._sources:
                poll.register(fd, select.POLLIN)
        if self._input is not None and self._pending:
            poll.register(self._input, select.POLLOUT)
        return poll.poll(seconds * 1000 + 0.5)

    # The line

    def _from_line(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            raise Hangup from None
        if not data:
            raise Hangup
        now = time.monotonic()
        for body in self._splitter.feed(data):
            if self._connection and self._connection.receive(body, now):
                self._heard = now
                continue
            told = arq.parse_control(body)
            if told is None:
                continue
            kind, number, value = told
            if kind is arq.Kind.CONNECT:
                self._heard = now
                if self._connection is None or number != self._number:
                    self._hang_up()
                    self._number = number
                    self._connection = arq.Connection(number, False, now)
                self._out += arq.control(arq.Kind.ACCEPT, number)
            elif kind is arq.Kind.RATE and self._connection and number == self._number:
                self._heard = now
                self._change_rate(value)

    def _flush(self) -> None:
        while self._out:
            try:
                del self._out[: os.write(self._fd, self._out)]
            except BlockingIOError:
                return
            except OSError:
                raise Hangup from None

    def _change_rate(self, rate: int) -> None:
        """Tell the host, wait until that is out, go there; silence at the new rate brings the old one back."""
        code = getattr(termios, f"B{rate}", None)
        if code is None:
            return  # the host hears nothing and stays
        self._out += arq.control(arq.Kind.RATE, self._number, rate)
        self._flush()
        termios.tcdrain(self._fd)
        self._set_rate(code)
        self._probing = time.monotonic()

    def _set_rate(self, code: int) -> None:
        attributes = termios.tcgetattr(self._fd)
        attributes[4] = attributes[5] = code
        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, attributes)
        except termios.error:
            pass  # this UART cannot; the host hears nothing at the other rate, and comes back

    # The command

    def _to_command(self) -> None:
        link = self._connection
        if link is None:
            return
        if self._command is None and self._over is None:
            if link.readable:
                self._request += link.read()
            if len(self._request) >= _LENGTH.size:
                (size,) = _LENGTH.unpack_from(self._request)
                if size > _MAX_COMMAND:
                    self._hang_up()
                elif len(self._request) >= _LENGTH.size + size:
                    text = bytes(self._request[_LENGTH.size : _LENGTH.size + size])
                    self._pending = self._request[_LENGTH.size + size :]
                    self._start(text)
            return
        if link.readable and (self._input is None or len(self._pending) < arq.WINDOW):
            data = link.read()
            if self._input is not None:
                self._pending += data
        self._feed()
        if link.ended and self._input is not None and not self._pending:
            os.close(self._input)
            self._input = None

    def _start(self, text: bytes) -> None:
        self._command = subprocess.Popen(
            ["/bin/sh", "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # the console's signals are not for it
        )
        assert self._command.stdin and self._command.stdout and self._command.stderr
        self._input = os.dup(self._command.stdin.fileno())
        self._command.stdin.close()
        os.set_blocking(self._input, False)
        self._sources = {}
        for stream, tag in ((self._command.stdout, Tag.STDOUT), (self._command.stderr, Tag.STDERR)):
            self._sources[os.dup(stream.fileno())] = tag
            stream.close()

    def _feed(self) -> None:
        while self._pending and self._input is not None:
            try:
                del self._pending[: os.write(self._input, self._pending)]
            except BlockingIOError:
                return
            except OSError:  # it reads no more
                os.close(self._input)
                self._input = None
                self._pending.clear()

    def _from_command(self, fd: int) -> None:
        assert self._connection
        data = os.read(fd, _CHUNK)
        if data:
            self._connection.write(_PIECE.pack(self._sources[fd], len(data)) + data)
        else:
            del self._sources[fd]
            os.close(fd)

    def _look_after_command(self) -> None:
        if self._command is None or self._sources or self._command.poll() is None or self._over is not None:
            return
        assert self._connection
        status = b"%d" % self._command.returncode
        self._connection.write(_PIECE.pack(Tag.STATUS, len(status)) + status)
        self._connection.finish()
        self._over = time.monotonic()

    def _hang_up(self) -> None:
        """Leave the command to itself: it sees the end of its input, and nobody reads what it says."""
        for fd in [*self._sources, *([] if self._input is None else [self._input])]:
            os.close(fd)
        self._sources, self._input, self._command, self._over, self._connection = {}, None, None, None, None
        self._request, self._pending = bytearray(), bytearray()


def main(silence_s: float = 60.0) -> None:
    """Serve the line that is standard input."""
    signal.alarm(0)  # of whatever started us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))  # by way of `finally`
    Line(0, silence_s).serve()
