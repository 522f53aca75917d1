"""A host in a few lines: the agent as a child process, and frames over its pipes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from devices.protocol.framing import Decoder, Encoder, Kind, Message
from tests.conftest import ROOT

PATIENCE_S = 30.0  # of the tests, with a machine that is busy; nothing is expected to take that long


class Agent:
    """
    A real agent.  Use it as a context manager: leaving hangs up, and fails if the agent left a traceback.

    Args:
        root: the board's folder.
        options: for ``python -m devices``.
        command: what starts Python; more than one word where something has to be set up first.
        folder: the one that holds `devices/`.
    """

    def __init__(
        self, root: Path, *options: str, command: Sequence[str] = (sys.executable,), folder: Path = ROOT
    ) -> None:
        self._decoder = Decoder()
        self.encoder = Encoder()
        self._ids = itertools.count(1)
        self._arrived: list[Message] = []
        self.process = subprocess.Popen(
            [*command, "-m", "devices", "--root", str(root), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            bufsize=0,
        )
        self.stderr = ""
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        try:
            self.hello = self.receive(Kind.HELLO).header
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self.hello["pid"]

    def send(self, kind: Kind, header: dict[str, Any], payload: bytes = b"") -> None:
        self.send_raw(self.encoder.encode(Message(kind, header, payload)))

    def send_raw(self, data: bytes) -> None:
        self._stdin.write(data)

    def ask(self, op: str, payload: bytes = b"", **header: Any) -> int:
        """Send a request; returns its id."""
        request = next(self._ids)
        self.send(Kind.REQUEST, {"id": request, "op": op, **header}, payload)
        return request

    def request(self, op: str, payload: bytes = b"", **header: Any) -> Message:
        """Send a request and wait for the reply or the error that ends it."""
        return self.answer(self.ask(op, payload, **header))

    def answer(self, request: int) -> Message:
        return self.receive(Kind.REPLY, Kind.ERROR, request=request)

    def error(self, op: str, payload: bytes = b"", **header: Any) -> tuple[str, str]:
        """Code and text of the error that a request must end with."""
        return fault(self.request(op, payload, **header))

    def receive(self, *kinds: Kind, request: int | None = None) -> Message:
        """The next message of one of `kinds` (and of that request); what comes before it is passed over."""
        while True:
            while self._arrived:
                message = self._arrived.pop(0)
                if message.kind in kinds and (request is None or message.header.get("id") == request):
                    return message
            data = os.read(self._stdout.fileno(), 1 << 20)
            assert data, f"the agent ended: {self.end()}"
            self._arrived += self._decoder.feed(data)

    def rest(self) -> list[Message]:
        """Everything until the agent ends by itself, and that it ended with status 0."""
        rest = self._arrived
        self._arrived = []
        while data := os.read(self._stdout.fileno(), 1 << 20):
            rest += self._decoder.feed(data)
        assert 0 == self.process.wait(PATIENCE_S)
        return rest

    def runner(self) -> psutil.Process:
        """The process that holds the model."""
        (child,) = psutil.Process(self.pid).children()
        return child

    def put(self, data: bytes, sha256: str) -> None:
        """Bring a blob into the store."""
        assert Kind.REPLY is self.request("store.put", data, sha256=sha256, bytes=len(data), offset=0).kind

    def end(self) -> str:
        """Hang up and wait; returns what it wrote to standard error."""
        if not self._stdin.closed:
            self._stdin.close()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
            self.stderr = self.process.stderr.read().decode()
            self.process.stderr.close()
            self._stdout.close()
        return self.stderr

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        said = self.end()
        if error is None:
            assert "Traceback" not in said, said


def fault(message: Message) -> tuple[str, str]:
    """Code and text of an ERROR."""
    assert Kind.ERROR is message.kind, message.header
    json.dumps(message.header["facts"])
    return message.header["code"], message.header["message"]


def gone(process: psutil.Process) -> bool:
    """Wait until a process has ended; one that nobody has reaped yet has."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False
