"""
What is fuzzed, and what must hold whatever comes.

Checksums would keep a fuzzer out of everything behind them.  So inputs are programs, of records that say what to
build: bytes as they are, or frames whose checksums are right and whose content is the fuzzer's.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.boards import LOCAL
from deploy.errors import DeployError
from deploy.session import Session, _bring_agent
from devices import delta as applying
from devices.agent import Agent
from devices.link import PipeLink
from devices.protocol import arq, manifest
from devices.protocol.delta import Header
from devices.protocol.framing import MAGIC, Decoder, Encoder, FrameError, Kind, Message
from tests.conftest import GOLDEN
from tests.fuzz.guided import Target

STARTS_PROCESSES = ("store.patch", "runtime.probe", "measure.run", "meters.start")


class Reader:
    """Takes an input apart; beyond its end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def bytes(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        self._at = min(self._at + size, len(self._data))
        return piece

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.bytes(size).ljust(size, b"\0"), "little")

    def text(self) -> bytes:
        return self.bytes(self.number())

    def of(self, choices: tuple[Any, ...]) -> Any:
        return choices[self.number() % len(choices)]


def frames(reader: Reader, session: bool = False) -> Iterator[bytes]:
    """
    Pieces of a stream of frames.

    Args:
        session: begin with a hello that a host accepts.
    """
    encoder = Encoder()
    if session:
        identity = {"machine": "aarch64", "python": "3.11.2"}
        yield encoder.encode(Message(Kind.HELLO, {"protocol": 1, "identity": identity, "root": "/r"}))
    while reader.left:
        way = reader.number() % 8
        if way == 0:
            yield reader.text()
        elif way == 1:  # a prefix whose checksum holds, whatever it says
            head = (MAGIC + reader.bytes(12)).ljust(14, b"\0")
            yield head + struct.pack(">I", zlib.crc32(head)) + reader.text()
        elif way in (2, 3):  # a whole frame, its header any text
            header, payload = reader.text(), reader.text()
            sequence = encoder._sequence if way == 2 else reader.number(4)
            encoder._sequence = sequence + 1 & 0xFFFFFFFF
            head = struct.pack(">2sBBIHI", MAGIC, 1, reader.number(), sequence, len(header), len(payload))
            crc = zlib.crc32(payload, zlib.crc32(header))
            yield head + struct.pack(">I", zlib.crc32(head)) + header + payload + struct.pack(">I", crc)
        else:  # what an agent or a host may say, with values that it may not
            yield encoder.encode(message(reader))


KEYS = (
    *("id", "op", "code", "message", "facts", "protocol", "identity", "have", "progress", "current", "bundle", "fit"),
    *("sha256", "bytes", "offset", "release", "digests", "token", "owner", "seconds", "keep", "signature", "name"),
    *("public_key", "replace", "base", "delta", "limit_s", "run", "model", "count", "from", "rails", "rate_hz"),
)
TEXTS = ("", "ping", "x/1", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "kws/1", "kws/999999999999", "\ud800", "1")
BLOBS = (b"", b"model", b'{"format": 1}', json.dumps({"format": 1, "name": "kws", "files": {}}).encode())


def value(reader: Reader, depth: int = 0) -> Any:
    way = reader.number() % (10 if depth < 4 else 7)
    if way == 0:
        return reader.of((None, True, False, 0, 1, -1, 2**31, 2**32, 2**63, 2**64, 10**40, 0.5, 1e300, float("nan")))
    if way == 1:
        return reader.number(2)
    if way == 2:
        return reader.of(TEXTS)
    if way == 3:
        return reader.text().decode("utf-8", "surrogateescape")
    if way == 4:
        return manifest.digest(reader.of(BLOBS))
    if way == 5:
        return len(reader.of(BLOBS))
    if way == 6:
        return -reader.number(4)
    if way == 7:
        return {reader.of(KEYS): value(reader, depth + 1) for _ in range(reader.number() % 4)}
    return [value(reader, depth + 1) for _ in range(reader.number() % 4)]


def message(reader: Reader) -> Message:
    header = {"id": reader.number() % 4}
    for _ in range(reader.number() % 6):
        header[reader.of(KEYS)] = value(reader)
    return Message(reader.of(tuple(Kind)), header, reader.of((*BLOBS, reader.text())))


# The decoder


def decoder(data: bytes) -> None:
    """Cut anywhere, the same messages; a lossy one never fails; what was understood can be said again."""
    reader = Reader(data)
    size = 1 + reader.number()
    stream = b"".join(frames(reader))
    for lossy in (True, False):
        results = []
        for step in (len(stream) or 1, size):
            reading, found, failed = Decoder(lossy), [], ""
            try:
                for at in range(0, len(stream), step):
                    found.extend(reading.feed(stream[at : at + step]))  # keeps what came before a failure
            except FrameError as error:
                failed = str(error)
                assert not lossy or "version" in failed, failed
            assert len(reading._buffer) <= len(stream)
            results.append((found, bool(failed)))
        assert repr(results[0]) == repr(results[1])
        for each in results[0][0]:
            assert isinstance(each.header, dict)
            again = list(Decoder().feed(Encoder().encode(each)))
            assert repr([each]) == repr(again)


# The host


class Channel:
    """Says what it was given, and ends."""

    lossy = False

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def read(self, timeout_s: float) -> bytes | None:
        while self._pieces:
            if piece := self._pieces.pop(0):
                return piece
        return b""

    def write(self, data: bytes) -> None: ...

    def ended(self) -> tuple[int | None, str]:
        return None, ""

    def close(self) -> None: ...


def host(data: bytes) -> None:
    """An agent may say what it likes: the host goes on, or raises one of its own errors."""
    reader = Reader(data)
    how = reader.number()
    channel = Channel([*([reader.text()] if how & 1 else []), *frames(reader, session=not how & 2)])
    session = Session(LOCAL, channel)
    seen: list[object] = []
    try:
        session.start(_bring_agent(LOCAL, channel) if how & 4 else b"")
        session._closed.set()  # no heartbeat
        while True:
            if how & 8:
                session.upload(manifest.digest(b"model"), b"model")
            else:
                session.request("ping", on_event=lambda header, payload: seen.append(header["id"] + payload[0]))
    except DeployError as error:
        text = f"{error}{error.hint}"
        assert all(c.isprintable() for c in text), text
    finally:
        session._closed.set()


# The agent


class Mouth(PipeLink):
    """A link that says what it was given, and hangs up; keeps what it is told."""

    def __init__(self, said: list[bytes]) -> None:
        self._said = said
        self._fd = os.open(os.devnull, os.O_RDONLY)
        self.told = bytearray()

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> bytes | None:
        return self._said.pop(0) if self._said else None

    def send(self, data: bytes) -> None:
        self.told += data

    def offer(self, data: bytes) -> bool:
        self.told += data
        return False

    def room(self) -> bool:
        return True

    def close(self) -> None:
        os.close(self._fd)


_SYSROOT = Path("/nonexistent")


def requests(reader: Reader, ops: tuple[str, ...]) -> Iterator[bytes]:
    encoder = Encoder()
    while reader.left:
        if reader.number() % 16 == 0:
            yield from frames(reader)
            return
        header = {"id": reader.number() % 4, "op": reader.of(ops)}
        for _ in range(reader.number() % 6):
            header[reader.of(KEYS)] = value(reader)
        kind = reader.of((Kind.REQUEST,) * 14 + (Kind.CANCEL, Kind.BYE))
        yield encoder.encode(Message(kind, header, reader.of((*BLOBS, reader.text()))))


def agent(data: bytes) -> None:
    """
    A host may ask what it likes: the agent answers in frames, does not fail, and writes below its root alone.

    Operations that start processes are left out, as they are slow and not alike twice.
    """
    reader = Reader(data)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        root = Path(folder) / "board"
        mouth = Mouth([])
        talking = Agent(root, mouth, 60.0, _SYSROOT)
        for op in STARTS_PROCESSES:
            talking._handlers.pop(op)
        for op in [op for op in talking._handlers if op.startswith("model.")]:
            talking._handlers.pop(op)
        mouth._said += requests(reader, tuple(sorted(talking._handlers)))
        try:
            talking.run()
        finally:
            mouth.close()
            os.close(talking._wake_read)
            os.close(talking._wake_write)
        for each in Decoder().feed(bytes(mouth.told)):
            assert each.header.get("code") != "internal", each.header
        there = set(os.listdir(folder))
        assert there <= {"board"}, there
        shutil.rmtree(root, ignore_errors=True)


# The serial stream


def peer(data: bytes) -> None:
    """The other end knows the connection, and says what it likes: memory stays bounded, and nothing fails."""
    reader = Reader(data)
    is_host = bool(reader.number() & 1)
    now = 1.0
    here, splitter = arq.Connection(7, is_host, now), arq.Splitter()
    salt = 7 ^ 0xFFFFFFFF if is_host else 7
    ended = False
    while reader.left:
        way = reader.number() % 8
        if way < 4:
            content = bytes((reader.of(tuple(arq.Kind)) if way else reader.number(),)) + reader.text()
            here.receive(content + zlib.crc32(content, salt).to_bytes(4, "big"), now)
        elif way == 4:
            for body in splitter.feed(reader.text()):
                here.receive(body, now)
                arq.parse_control(body)
        elif way == 5:
            if not ended:
                here.write(bytes(reader.number(2)))
            if reader.number() > 250:
                ended = True
                here.finish()
        elif way == 6:
            here.read(reader.number() or 1 << 20)
        else:
            now += reader.number() / 50
            assert len(here.transmit(now)) < 200_000
            here.ping()
        assert here.readable <= arq.WINDOW
        assert here.unfinished <= arq.BUFFER + 1
        assert len(here._fragments) <= 1024
        assert sum(len(piece) for _, piece in here._fragments) <= 1024 * arq.MAX_PAYLOAD
        assert here.deadline() >= 0


def line(data: bytes) -> None:
    """
    Two honest ends, and between them a line that the input plays: what arrives is a beginning of what was sent, and
    when the line behaves again, all of it arrives.
    """
    reader = Reader(data)
    now = 1.0
    ends = arq.Connection(7, True, now), arq.Connection(7, False, now)
    splitters = arq.Splitter(), arq.Splitter()
    sent, got = (bytearray(), bytearray()), (bytearray(), bytearray())
    rest = [bytearray(), bytearray()]

    def step(damage: bool) -> None:
        for end in (0, 1):
            out = bytearray(ends[end].transmit(now))
            if damage and out:
                way = reader.number() % 6
                at = reader.number(2) % len(out)
                if way == 0:
                    out.clear()
                elif way == 1:
                    out[at] ^= 1 << reader.number() % 8
                elif way == 2:
                    del out[at : at + reader.number()]
                elif way == 3:
                    out[at:at] = reader.text()
                elif way == 4:
                    out[at:at] = out[at : at + 64]
            for body in splitters[1 - end].feed(bytes(out)):
                ends[1 - end].receive(body, now)
            got[1 - end].extend(ends[1 - end].read())
            taken = ends[end].write(bytes(rest[end]))
            del rest[end][:taken]
        for end in (0, 1):
            assert sent[1 - end].startswith(got[end])

    while reader.left:
        end = reader.number() & 1
        more = bytes(at & 255 for at in range(len(sent[end]), len(sent[end]) + reader.number(2) % 3000))
        sent[end].extend(more)
        rest[end].extend(more)
        for _ in range(1 + reader.number() % 4):
            now += reader.number() / 100
            step(damage=True)
    for end in (0, 1):
        rest[end].extend(b"!")
        sent[end].extend(b"!")
    for _ in range(400):
        now = min(now + 0.05, max(now, min(each.deadline() for each in ends)) + 0.001)
        step(damage=False)
        if got[1] == sent[0] and got[0] == sent[1]:
            return
    raise AssertionError(f"after the damage {len(got[1])} of {len(sent[0])}, {len(got[0])} of {len(sent[1])}")


# Deltas

_BASE = (GOLDEN / "digits_int8.tflite").read_bytes()[:3000]


def delta(data: bytes) -> None:
    """A delta makes what its header announces, or nothing."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        base, patch, target = (Path(folder) / name for name in ("base", "patch", "target"))
        base.write_bytes(_BASE)
        patch.write_bytes(Header.of(_BASE, _BASE[:2000])._replace(target_bytes=2000).to_bytes() + data)
        try:
            applying.apply(base, patch, target)
        except ValueError:
            return
        assert target.read_bytes() == _BASE[:2000]


WORDS = (MAGIC, b"\x7e", b"\x7d", bytes(8), b"\xff" * 8, b"{}", b'{"id":1}', b"DEPLOY-NEED\n", b"DEPLOY-OLD 3.6\n")
FRAMING = ("devices/protocol/framing.py",)
ALL = (
    Target("decoder", decoder, FRAMING, WORDS),
    Target("host", host, (*FRAMING, "deploy/session.py", "deploy/errors.py"), WORDS),
    Target(
        "agent",
        agent,
        (
            *("devices/agent.py", "devices/store.py", "devices/guard.py", "devices/history.py", "devices/spool.py"),
            *("devices/protocol/manifest.py", "devices/protocol/signature.py"),
        ),
        WORDS,
    ),
    Target("peer", peer, ("devices/protocol/arq.py",), WORDS),
    Target("line", line, ("devices/protocol/arq.py",), WORDS),
    Target("delta", delta, ("devices/protocol/delta.py", "devices/protocol/rangecoder.py", "devices/delta.py")),
)
