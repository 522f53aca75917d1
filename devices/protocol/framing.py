"""
Frames: how a stream of bytes becomes messages.

The code does no I/O: `Encoder` turns a message into bytes, `Decoder` takes bytes as they come and gives the
messages that are complete.  Agent and host use the same two classes over pipes, SSH channels and serial lines.

Layout of a frame, big-endian::

    offset  bytes
         0      2  magic  D7 50
         2      1  version of this layout
         3      1  kind, see `Kind`
         4      4  sequence, 0 for the first frame of each direction, wraps at 2**32
         8      2  h, bytes of header
        10      4  p, bytes of payload
        14      4  CRC-32 of bytes 0..13
        18      h  header, a JSON object in UTF-8
      18+h      p  payload, raw
    18+h+p      4  CRC-32 of header and payload

The prefix has a checksum of its own: on a noisy line a damaged length would otherwise make the reader wait for
bytes that never come.

History of the layout:
    1  first
"""

from __future__ import annotations

import enum
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

VERSION = 1
MAGIC = b"\xd7\x50"
MAX_HEADER = 0xFFFF
MAX_PAYLOAD = 64 * 2**20  # the largest tensor that may travel in one piece
MAX_GREETING = 64 * 2**10  # what a login shell may say before the first frame

_PREFIX = struct.Struct(">2sBBIHI")
_CRC = struct.Struct(">I")
_PREFIX_BYTES = _PREFIX.size + _CRC.size


class Kind(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1  # agent to host, once, first: who speaks
    REQUEST = 2  # host to agent: header has id and op
    REPLY = 3  # agent to host: the end of the request `id`, which worked
    ERROR = 4  # agent to host: the end of the request `id`, which failed; header has code and message
    EVENT = 5  # agent to host: part of an answer that is still going on
    HEARTBEAT = 6  # either way: nothing to say, still here
    CANCEL = 7  # host to agent: stop the request `id`
    BYE = 8  # host to agent: no more requests


class FrameError(Exception):
    """The bytes are not the frames that were agreed on."""


@dataclass(frozen=True)
class Message:
    """One message: what it is, a JSON object, and raw bytes."""

    kind: Kind
    header: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""


class Encoder:
    """Numbers messages and turns them into bytes.  One per direction of a conversation."""

    def __init__(self) -> None:
        self._sequence = 0

    def encode(self, message: Message) -> bytes:
        """
        Return the frame for `message`.

        Raises:
            FrameError: header or payload is longer than a frame may carry.
        """
        text = json.dumps(message.header, separators=(",", ":"), ensure_ascii=False)
        # File names may hold lone surrogates, which UTF-8 cannot; backslashreplace makes JSON's own escape of them.
        header = text.encode(errors="backslashreplace")
        if len(header) > MAX_HEADER:
            raise FrameError(f"header of {len(header)} bytes; a frame carries at most {MAX_HEADER}")
        if len(message.payload) > MAX_PAYLOAD:
            raise FrameError(f"payload of {len(message.payload)} bytes; a frame carries at most {MAX_PAYLOAD}")
        prefix = _PREFIX.pack(MAGIC, VERSION, message.kind, self._sequence, len(header), len(message.payload))
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        crc = zlib.crc32(message.payload, zlib.crc32(header))
        return b"".join((prefix, _CRC.pack(zlib.crc32(prefix)), header, bytes(message.payload), _CRC.pack(crc)))


class Decoder:
    """
    Turns bytes into messages.

    Before the first frame, up to `MAX_GREETING` bytes of something else are passed over: login shells print.
    After it, a reliable stream must hold frames and nothing else, in order and without a gap.

    With ``lossy=True`` the stream may lose, repeat and damage bytes: what is damaged is passed over, the next
    whole frame is found, and gaps in the sequence are left to the caller, who sees `discarded` grow.

    Raises (from `feed`):
        FrameError: not lossy, and the bytes break the layout, a checksum, a limit or the order; or, in either
            case, the other side speaks another version of the layout.
    """

    def __init__(self, lossy: bool = False) -> None:
        self.discarded = 0  # bytes passed over so far
        self._lossy = lossy
        self._buffer = bytearray()
        self._greeting = bytearray()
        self._next_sequence: int | None = None

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take `data`, yield every message that it completes."""
        self._buffer += data
        while True:
            if not self._find_magic() or len(self._buffer) < _PREFIX_BYTES:
                return
            prefix = bytes(self._buffer[: _PREFIX.size])
            (prefix_crc,) = _CRC.unpack_from(self._buffer, _PREFIX.size)
            if zlib.crc32(prefix) != prefix_crc:
                self._reject("the checksum of a frame's prefix is wrong")
                continue
            _, version, kind, sequence, header_bytes, payload_bytes = _PREFIX.unpack(prefix)
            if version != VERSION:
                raise FrameError(f"the other side speaks frame version {version}, this side {VERSION}")
            if payload_bytes > MAX_PAYLOAD:
                self._reject(f"a frame announces {payload_bytes} bytes; the limit is {MAX_PAYLOAD}")
                continue
            end = _PREFIX_BYTES + header_bytes + payload_bytes
            if len(self._buffer) < end + _CRC.size:
                return
            body = bytes(self._buffer[_PREFIX_BYTES:end])
            (body_crc,) = _CRC.unpack_from(self._buffer, end)
            if zlib.crc32(body) != body_crc:
                self._reject("the checksum of a frame's body is wrong")
                continue
            message = self._parse(kind, body, header_bytes)
            if message is None:
                continue
            self._check_sequence(sequence)
            del self._buffer[: end + _CRC.size]
            yield message

    def _find_magic(self) -> bool:
        """Bring the next magic to the front of the buffer; False while there is none."""
        start = self._buffer.find(MAGIC)
        if start == 0:
            return True
        # The last byte may be the first half of a magic that is still on its way.
        keep = len(self._buffer) - start if start > 0 else int(self._buffer.endswith(MAGIC[:1]))
        junk = bytes(self._buffer[: len(self._buffer) - keep])
        if junk:
            self.discarded += len(junk)
            del self._buffer[: len(junk)]
            if not self._lossy:
                if self._next_sequence is not None:
                    raise FrameError(f"{len(junk)} bytes between two frames: {_excerpt(junk)}")
                self._greeting += junk
                if len(self._greeting) > MAX_GREETING:
                    raise FrameError(f"no frame in {len(self._greeting)} bytes: {_excerpt(bytes(self._greeting))}")
        return start > 0

    def _reject(self, reason: str) -> None:
        if not self._lossy:
            raise FrameError(reason)
        self.discarded += 1
        del self._buffer[:1]

    def _parse(self, kind: int, body: bytes, header_bytes: int) -> Message | None:
        try:
            header = json.loads(body[:header_bytes].decode()) if header_bytes else {}
            if not isinstance(header, dict):
                raise ValueError(f"the header is a {type(header).__name__}")
            return Message(Kind(kind), header, body[header_bytes:])
        except (ValueError, RecursionError) as error:
            # The checksums hold, so this is what was sent: not the line's fault, and no use to resend.
            self._reject(f"frame of kind {kind} makes no sense: {error}")
            return None

    def _check_sequence(self, sequence: int) -> None:
        if not self._lossy and self._next_sequence is not None and sequence != self._next_sequence:
            raise FrameError(f"frame {sequence} came where frame {self._next_sequence} was due")
        self._next_sequence = (sequence + 1) & 0xFFFFFFFF


def _excerpt(data: bytes) -> str:
    text = data[:60].decode("utf-8", "replace")
    return repr(text) + ("..." if len(data) > 60 else "")
