"""The transport to this machine: a child process and its pipes."""

from __future__ import annotations

import os
import select
import subprocess
import threading

from deploy.transport.base import WRITE_TIMEOUT_S

TAIL_BYTES = 4096
CLOSE_S = 5.0


class LocalChannel:
    """A child process."""

    lossy = False

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the host's to handle
        )
        assert self._process.stdin and self._process.stdout
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        self._poll = select.poll()  # select() fails beyond 1024 descriptors
        self._poll.register(self._stdout.fileno(), select.POLLIN)
        # A child that does not read must not hold us: write what fits, and wait for room with a deadline.
        os.set_blocking(self._stdin.fileno(), False)
        self._writable = select.poll()
        self._writable.register(self._stdin.fileno(), select.POLLOUT)
        self._tail = b""
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self, timeout_s: float) -> bytes | None:
        if not self._poll.poll(timeout_s * 1000):
            return None
        return os.read(self._stdout.fileno(), 1 << 20)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not self._writable.poll(WRITE_TIMEOUT_S * 1000):
                raise TimeoutError(f"took nothing for {WRITE_TIMEOUT_S:g} s")
            view = view[self._stdin.write(view) or 0 :]

    def ended(self) -> tuple[int | None, str]:
        try:
            status: int | None = self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            status = None
        self._drain.join(CLOSE_S)
        return status, self._tail.decode("utf-8", "replace")

    def close(self) -> None:
        try:
            self._stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._drain.join(CLOSE_S)
        self._stdout.close()
        if self._process.stderr:
            self._process.stderr.close()

    def _read_stderr(self) -> None:
        assert self._process.stderr
        for chunk in iter(lambda: os.read(self._process.stderr.fileno(), 65536), b""):  # type: ignore[union-attr]
            self._tail = (self._tail + chunk)[-TAIL_BYTES:]


class Local:
    """This machine."""

    description = "local"

    def run(self, command: str) -> LocalChannel:
        return LocalChannel(command)

    def close(self) -> None:
        pass
