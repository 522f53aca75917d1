"""
The agent's side of the runner: start it, send it a request, notice how it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from devices.protocol import errors
from devices.protocol.errors import AgentError
from devices.protocol.framing import Decoder, Encoder, FrameError, Kind, Message

STDERR_TAIL = 4096
CLOSE_S = 5.0


class RunnerProcess:
    """
    One runner.  The agent waits on `stdout` and `stderr` (file descriptors) and calls `read`.

    Args:
        path: folders to put on the path first: numpy and LiteRT where the board has none of its own, say.
        memory_bytes: limit on the runner's private memory; None is no limit.
    """

    def __init__(self, path: Sequence[Path], memory_bytes: int | None) -> None:
        self.memory_bytes = memory_bytes
        package = str(Path(__file__).resolve().parent.parent)
        folders = [package, *map(str, path), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-m", "devices.runner"]
        if memory_bytes:
            command += ["--memory-bytes", str(memory_bytes)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin = self._process.stdin
        self.stdout = self._process.stdout.fileno()
        self.stderr = self._process.stderr.fileno()
        self._encoder = Encoder()
        self._decoder = Decoder()
        self._tail = b""
        self._silenced = False

    def request(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send a request; the answer comes through `read`."""
        data = memoryview(self._encoder.encode(Message(Kind.REQUEST, header, payload)))
        try:
            while data:
                data = data[self._stdin.write(data) or 0 :]
        except BrokenPipeError:
            pass  # it died; `read` will see the end of its output and say how

    def read(self) -> Iterator[Message]:
        """
        Take what the runner has sent.  Call when `stdout` is readable.

        Raises:
            AgentError: runner-killed; the runner is gone.
        """
        data = os.read(self.stdout, 1 << 20)
        if not data:
            raise self.died()
        try:
            yield from self._decoder.feed(data)
        except FrameError as error:
            self.kill()
            raise AgentError(errors.RUNNER_KILLED, f"the runner made no sense: {error}", signal=None) from error

    def read_stderr(self) -> bool:
        """Keep the end of what the runtime prints; call when `stderr` is readable.  False at its end."""
        data = os.read(self.stderr, 65536)
        self._tail = (self._tail + data)[-STDERR_TAIL:]
        self._silenced = not data
        return bool(data)

    def died(self) -> AgentError:
        """The error for a runner that has ended, or is about to, without being asked to."""
        try:
            code = self._process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        while not self._silenced and self.read_stderr():
            pass
        name = signal.Signals(-code).name if code < 0 else None
        how = f"killed by {name}" if name else f"ended with exit code {code}"
        if name == "SIGILL":
            how += ": an instruction that this processor does not have"
        if self.memory_bytes and (b"bad_alloc" in self._tail or b"MemoryError" in self._tail):
            how += f" (memory limit {self.memory_bytes // 2**20} MiB)"
        tail = self._tail.decode("utf-8", "replace").strip().splitlines()
        if code >= 0 and tail:
            how += f": {tail[-1]}"
        return AgentError(errors.RUNNER_KILLED, how, signal=name, exit_code=code, stderr=tail[-5:])

    def kill(self) -> None:
        """End it now."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        self._close_pipes()

    def close(self) -> AgentError | None:
        """End it by closing its input; the error when it dies of that (some models corrupt memory first)."""
        self._stdin.close()
        end = time.monotonic() + CLOSE_S
        try:
            self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        error = self.died() if self._process.returncode else None
        self._close_pipes()
        return error

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()
