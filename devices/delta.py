"""
Apply a delta: base and delta in, target out.  `devices.protocol.delta` describes the format.

Works from file to file in chunks and without buffers, so that memory does not grow with the model.  Believes nothing:
whatever the delta says is checked against the files, and the target against its SHA-256.

``python3 -m devices.delta BASE DELTA TARGET`` is what the agent starts, as a process of its own: it takes seconds on a
small board, and the agent has heartbeats to send.  It ends when its input is closed, and so does not outlive the agent.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from devices.protocol import delta, errors
from devices.protocol.delta import CHUNK, COPY, Header, Op, Stream
from devices.protocol.errors import AgentError
from devices.protocol.rangecoder import Contexts, decoder

BAD_DELTA = 3  # exit codes
DISK = 4


def read_header(path: Path) -> Header:
    """
    Raises:
        ValueError: no delta, or of another version.
    """
    with path.open("rb") as source:
        return delta.parse_header(source.read(delta.HEADER_BYTES))


def speed(seconds: float = 0.02) -> float:
    """Bits that this processor decodes in a second of its own, from a trial of so many seconds with any bytes."""
    contexts = Contexts()
    contexts.take(64)
    noise = hashlib.sha256(b"any bytes").digest()
    bit = decoder(contexts, itertools.cycle(noise))
    done = 0
    started = time.process_time()  # whatever else runs here now need not run then
    while time.process_time() < started + seconds:
        for context in range(64):
            bit(context, 0)
        done += 64
    return done / (time.process_time() - started)


def apply(base: Path, patch: Path, target: Path) -> None:
    """
    Write `target`.  It must be removed when this fails.

    Raises:
        ValueError: the delta makes no sense, is not for this base, or what came out is not what it announces.
        OSError
    """
    with (
        open(base, "rb", buffering=0) as old,
        open(patch, "rb", buffering=0) as source,
        open(target, "wb", buffering=0, opener=_private) as out,
    ):
        header = delta.parse_header(source.read(delta.HEADER_BYTES))
        if not _digest(old).startswith(header.base):
            raise ValueError("it is for another base")
        made = hashlib.sha256()
        for chunk in _replay(header, old, _bytes_of(source)):
            made.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[out.write(rest) :]
        if made.digest()[: len(header.target)] != header.target:
            raise ValueError("what it makes is not what it announces")
        os.fsync(out.fileno())


class Process:
    """`apply` in a process of its own."""

    def __init__(self, base: Path, patch: Path, target: Path) -> None:
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "devices.delta", str(base), str(patch), str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def check(self, full: AgentError) -> None:
        """
        Once it has ended.

        Args:
            full: what to raise when the disk had no room.

        Raises:
            AgentError: bad-digest, the delta does not make the target; disk-full; io-error.
        """
        assert self._process.stdout
        said = self._process.stdout.read(4096).decode("utf-8", "replace")
        code = self._process.returncode
        if code == BAD_DELTA:
            raise AgentError(errors.BAD_DIGEST, f"the delta cannot be applied: {said}")
        if code == DISK and said in (str(errno.ENOSPC), str(errno.EDQUOT)):
            raise full
        if code == DISK:
            raise AgentError(errors.IO_ERROR, f"applying the delta: {os.strerror(int(said))}")
        if code:
            raise AgentError(errors.INTERNAL, f"applying the delta ended with exit code {code}")

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()


def _replay(header: Header, base: FileIO, source: Iterator[int]) -> Iterator[bytes | bytearray]:
    contexts = Contexts()
    size = os.fstat(base.fileno()).st_size
    stream = Stream(decoder(contexts, source), contexts, size, header.target_bytes)
    left = header.target_bytes
    unknown = Op(COPY, 1, 0)
    while left:
        op = stream.op(unknown)
        if op.base is not None:
            base.seek(op.base)
        code = None if op.kind == COPY else stream.content(op)
        for start in range(0, op.length, CHUNK):
            size = min(CHUNK, op.length - start)
            old = bytes(size) if op.base is None else base.read(size)
            if code:
                made = bytearray(size)
                code(old, made)
                yield made
            else:
                yield old
        left -= op.length
    for _ in source:
        raise ValueError("bytes after its end")


def _bytes_of(source: FileIO) -> Iterator[int]:
    for chunk in iter(lambda: source.read(CHUNK), b""):
        yield from chunk


def _digest(source: FileIO) -> bytes:
    sha = hashlib.sha256()
    source.seek(0)
    for chunk in iter(lambda: source.read(CHUNK), b""):
        sha.update(chunk)
    return sha.digest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _end_with_the_agent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


def main(arguments: list[str]) -> int:
    threading.Thread(target=_end_with_the_agent, daemon=True).start()
    base, patch, target = map(Path, arguments)
    try:
        apply(base, patch, target)
    except ValueError as error:
        os.write(1, str(error).encode())
        return BAD_DELTA
    except OSError as error:
        os.write(1, str(error.errno or 0).encode())
        return DISK
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
