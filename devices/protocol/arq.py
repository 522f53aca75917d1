"""
A reliable stream of bytes, both ways, over a serial line that loses, changes and inserts bytes.

The code does no I/O and reads no clock: `receive` takes what came, `transmit` gives what to put on the line, and
whoever calls says what time it is (seconds of any monotonic clock).  A line keeps order, and that is used: every
transmission has a number, an acknowledgement names the newest number that arrived and which of those before it did,
and so everything older that is missing is known to be lost, a resent frame as well.

Bytes on the line: frames with a delimiter (7E) after each.  Within a frame 7D escapes what follows (xor 20): the two
themselves, and XON and XOFF, which a tty or a terminal server with software flow control would eat; that costs 1.6 %
of random bytes.  Frames without payload escape every control character: a shell that gets one by mistake sees no
newline and no Ctrl-C.  A frame, before escaping, big-endian::

    kind        1
    content     n  by kind, see `Kind`
    CRC-32      4  of kind and content

The checksum starts with the connection's number, and its complement in the other direction.  So frames of another
connection, and one's own frames as an echo, are damaged frames; they cost no byte and need no code.

The stream is addressed by byte, in 16 bits: what is lost is resent in frames of whatever size is best by then.

History of the format:
    1  first
"""

from __future__ import annotations

import bisect
import enum
import math
import re
import struct
import zlib
from typing import Optional

VERSION = 1
MIN_PAYLOAD = 64
MAX_PAYLOAD = 2048
WINDOW = 1 << 15  # bytes that the receiver keeps for its reader; half of what 16 bits can tell apart
BUFFER = 1 << 16  # bytes that the sender keeps for its writer
PING_S = 2.0

_DELIMITER, _ESCAPE = b"\x7e", b"\x7d"
_CONTROLS = re.compile(rb"[\x00-\x1f\x7d-\x7f]")
_MAX_BODY = MAX_PAYLOAD + 64
_CRC = struct.Struct(">I")
_DATA = struct.Struct(">BBH")  # kind, transmission, offset
_ACK = struct.Struct(">HBB")  # next byte expected, 256 bytes of window, newest transmission
_CONTROL = struct.Struct(">BBII")  # kind, version, connection, value
_HISTORY = 128  # transmissions that an acknowledgement tells about, and that may be on their way
_MASK = (1 << _HISTORY) - 1
_OVERHEAD = 10  # bytes of a data frame beside its payload, with an escape or two
_FRAGMENTS = 1024
_MAX_RTO_S = 1.0
_FRAME_S = 0.09  # no frame is longer than that: what is urgent waits behind it


class Kind(enum.IntEnum):
    """What a frame is."""

    DATA = 0x40  # transmission, offset, payload
    DATA_ACK = 0x41  # transmission, offset, acknowledgement without history, payload
    FIN = 0x42  # as DATA; the last byte of the payload is no byte of the stream but its end
    ACK = 0x44  # next byte expected, window, newest transmission, history (bit n: the one n + 1 before it came)
    PING = 0x45  # answer with an ACK
    # Control: version, connection, value.  They belong to no connection.
    READY = 0x50  # board: nobody talks to me
    CONNECT = 0x51  # host: let us talk, as this connection
    ACCEPT = 0x52  # board: so be it
    RATE = 0x53  # host: go to this baud rate; board: I go now


class Splitter:
    """Finds frames in what comes over the line; keeps at most one frame's bytes."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return what lies between delimiters, unescaped; checksums are looked at by who knows the connection."""
        *whole, rest = (self._rest + data).split(_DELIMITER)
        bodies = []
        for raw in whole:
            if raw and not self._skipping and len(raw) <= 2 * _MAX_BODY:
                bodies.append(_unescape(raw))
            self._skipping = False
        if len(rest) > 2 * _MAX_BODY:
            rest, self._skipping = b"", True
        self._rest = rest
        return bodies


def control(kind: Kind, connection: int, value: int = 0) -> bytes:
    """A frame that belongs to no connection, ready for the line."""
    return _DELIMITER + _seal(_CONTROL.pack(kind, VERSION, connection, value), 0)


def parse_control(body: bytes) -> Optional[tuple[Kind, int, int]]:
    """Kind, connection and value of a control frame; None if it is none, or damaged, or of another version."""
    content = _unseal(body, 0)
    if content is None or len(content) != _CONTROL.size:
        return None
    kind, version, connection, value = _CONTROL.unpack(content)
    return (Kind(kind), connection, value) if version == VERSION and kind in _CONTROL_KINDS else None


_CONTROL_KINDS = (Kind.READY, Kind.CONNECT, Kind.ACCEPT, Kind.RATE)


class _Sent:
    """One transmission on its way."""

    __slots__ = ("base", "base_time", "end", "start", "time", "wire")

    def __init__(self, start: int, end: int, wire: int, time: float, base: int, base_time: float) -> None:
        self.start, self.end = start, end  # of the stream
        self.wire = wire  # bytes on the line
        self.time = time
        self.base, self.base_time = base, base_time  # bytes delivered when it was sent, and since when


class Connection:
    """
    One end of a connection.

    Args:
        number: of the connection, 32 bits, chosen at random by the host.
        host: whether this is the host's end.

    Attributes:
        heard: when the last good frame came.
        resent: bytes of the stream that were sent again.
        rejected: frames whose checksum held and whose content could not be.
    """

    def __init__(self, number: int, host: bool, now: float) -> None:
        other = number ^ 0xFFFFFFFF
        self._out_salt, self._in_salt = (number, other) if host else (other, number)
        self.heard = now
        self.resent = 0
        self.rejected = 0
        # Sending.  Offsets count from the beginning of the stream; only on the line they have 16 bits.
        self._buffer = bytearray()  # from _unacked on
        self._unacked = 0
        self._unsent = 0
        self._limit = 4096  # as far as the other side has room
        self._end: Optional[int] = None  # offset of the byte that stands for the end
        self._number = 0  # of the next transmission
        self._flight: dict[int, _Sent] = {}  # by number, oldest first
        self._flying = 0  # bytes on the line
        self._lost: list[tuple[int, int]] = []
        self._held: list[tuple[int, int]] = []  # arrived there, beyond a gap
        # What the line is like.
        self._errors, self._tried = 0.0, 0.0
        self._delivered, self._delivered_time = 0, now
        self._rate = _Extreme(max, 10.0)  # bytes per second
        self._quickest = _Extreme(min, 10.0)  # round trip, s
        self._srtt, self._rttvar = 0.0, 0.0
        self._backoff = 0
        self._timer: Optional[float] = None
        self._spoke = -1.0
        self._ping = False
        # Receiving.
        self._expected = 0
        self._ready = bytearray()
        self._fragments: list[tuple[int, bytes]] = []  # beyond a gap, by offset
        self._last: Optional[int] = None  # newest transmission
        self._history = 0
        self._ack = False
        self._promised = 0
        self._their_end: Optional[int] = None

    # The stream

    def write(self, data: bytes) -> int:
        """Take from the front of `data` what there is room for; returns how much that is."""
        if self._end is not None:
            raise ValueError("the stream has been ended")
        taken = data[: max(0, BUFFER - len(self._buffer))]
        self._buffer += taken
        return len(taken)

    def finish(self) -> None:
        """No more will be written."""
        if self._end is None:
            self._end = self._unacked + len(self._buffer)
            self._buffer += b"\0"

    def read(self, limit: int = 1 << 20) -> bytes:
        """What has come, in order; ``b""`` when there is nothing (now, or ever: see `ended`)."""
        data = bytes(self._ready[:limit])
        del self._ready[:limit]
        if self._expected + self._room() - self._promised >= WINDOW // 4:
            self._ack = True  # tell that there is room again
        return data

    @property
    def readable(self) -> int:
        return len(self._ready)

    @property
    def unfinished(self) -> int:
        """Bytes written here that the other side has not confirmed."""
        return len(self._buffer)

    @property
    def finished(self) -> bool:
        """Everything written, and the end, has arrived there."""
        return self._end is not None and not self._buffer

    @property
    def ended(self) -> bool:
        """The other side has ended its stream, and all of it was read."""
        return self._their_end is not None and self._expected > self._their_end and not self._ready

    # The line

    def receive(self, body: bytes, now: float) -> bool:
        """Take what `Splitter` found; False if it is not for this connection, or damaged."""
        content = _unseal(body, self._in_salt)
        if not content:
            return False
        kind = content[0]
        if kind in (Kind.DATA, Kind.DATA_ACK, Kind.FIN) and len(content) > _DATA.size:
            _, number, offset = _DATA.unpack_from(content)
            at = _DATA.size
            if kind == Kind.DATA_ACK:
                if len(content) <= at + _ACK.size:
                    self.rejected += 1
                    return False
                self._acknowledged(_ACK.unpack_from(content, at), 0, now)
                at += _ACK.size
            self._take(number, offset, content[at:], kind == Kind.FIN)
        elif kind == Kind.ACK and _ACK.size < len(content) <= 1 + _ACK.size + _HISTORY // 8:
            history = int.from_bytes(content[1 + _ACK.size :], "big")
            self._acknowledged(_ACK.unpack_from(content, 1), history, now)
        elif kind == Kind.PING and len(content) == 1:
            self._ack = True
        else:
            self.rejected += 1
            return False
        self.heard = now
        return True

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._ping = True

    def acknowledge(self) -> None:
        """Say once more what arrived: for the end, when nobody will be here to answer again."""
        self._ack = True

    def transmit(self, now: float) -> bytes:
        """What to put on the line now; call after `receive`, `write`, `read` and when `deadline` has passed."""
        frames: list[bytes] = []
        expired = self._timer is not None and now >= self._timer
        if expired:
            self._backoff += 1
            self._timer = now + self._timeout_s()
            if not self._flight:
                self._ping = True  # the other side had no room; perhaps it told so and that was lost
        if self._ack and (self._fragments or not self._next()):
            frames.append(self._ack_frame())
        if expired and self._flight:
            # One frame suffices: its acknowledgement tells what became of all before it.
            end = min(self._unacked + MIN_PAYLOAD, self._unsent)
            frames.append(self._send(self._unacked, end, now))
        while self._flying < self._allowed() and len(self._flight) < _HISTORY:
            span = self._next()
            if span is None:
                break
            frames.append(self._send(*span, now))
        if self._ack:
            frames.append(self._ack_frame())
        if self._ping or (not frames and now - self._spoke >= PING_S):
            self._ping = False
            frames.append(_seal(bytes((Kind.PING,)), self._out_salt))
        if not self._flight and len(self._buffer) <= self._unsent - self._unacked:
            self._timer = None
        elif self._timer is None:
            self._timer = now + self._timeout_s()
        if not frames:
            return b""
        fresh = now - self._spoke > 0.05  # whatever stood on the line since then must not become part of a frame
        self._spoke = now
        return (_DELIMITER if fresh else b"") + b"".join(frames)

    def deadline(self) -> float:
        """When to call `transmit` though nothing happened."""
        ping = self._spoke + PING_S
        return ping if self._timer is None else min(self._timer, ping)

    @property
    def payload_bytes(self) -> int:
        """
        Bytes to put into a frame now.

        Of a frame with n bytes of payload and h beside it, n / (n + h) is payload, and it arrives with about
        (1 - p) ** n; the product is largest where n is close to sqrt(h / p).  p begins with a cautious guess.
        """
        p = (self._errors + 0.25) / (self._tried + 3000)
        longest = MAX_PAYLOAD
        if self._rate.value:
            longest = min(MAX_PAYLOAD, int(self._rate.value * _FRAME_S))
        return max(MIN_PAYLOAD, min(longest, int(math.sqrt(_OVERHEAD / p))))

    # Sending

    def _allowed(self) -> float:
        """
        Bytes that may be on the line at once.

        Twice what the line holds: half of that waits in front of it, so that a faster line shows; and enough for
        the next frames to be there, 30 ms late, when one is confirmed.  More would only make everything wait.
        """
        frame = self.payload_bytes + _OVERHEAD
        rate, quickest = self._rate.value, self._quickest.value
        if not rate or quickest is None:
            return 2 * frame
        return 2 * rate * quickest + 3 * frame + 0.03 * rate

    def _timeout_s(self) -> float:
        rto = self._srtt + max(4 * self._rttvar, 0.05) if self._srtt else 0.3
        return float(min(_MAX_RTO_S, rto * 1.5 ** min(self._backoff, 16)))

    def _next(self) -> Optional[tuple[int, int]]:
        """What to send next: lost bytes first, then new ones as far as there is room."""
        if self._lost:
            start, end = self._lost[0]
            return start, min(end, start + self.payload_bytes)
        end = min(self._unacked + len(self._buffer), self._limit, self._unsent + self.payload_bytes)
        return (self._unsent, end) if end > self._unsent else None

    def _send(self, start: int, end: int, now: float) -> bytes:
        self.resent += max(0, min(end, self._unsent) - start)
        self._lost = _without(self._lost, start, end)
        self._unsent = max(self._unsent, end)
        payload = bytes(self._buffer[start - self._unacked : end - self._unacked])
        kind, between = Kind.DATA, b""
        if self._end is not None and end == self._end + 1:
            kind = Kind.FIN
        elif self._ack and not self._fragments:
            kind, between = Kind.DATA_ACK, self._ack_fields()
        frame = _seal(_DATA.pack(kind, self._number, start & 0xFFFF) + between + payload, self._out_salt, data=True)
        if not self._flight:
            self._delivered_time = now
        if len(self._flight) >= _HISTORY or self._number in self._flight:
            self._retire(next(iter(self._flight)), arrived=False)
        self._flight[self._number] = _Sent(start, end, len(frame), now, self._delivered, self._delivered_time)
        self._flying += len(frame)
        self._number = (self._number + 1) & 0xFF
        self._tried += len(frame)
        if self._tried > 1 << 16:
            self._tried /= 2
            self._errors /= 2
        return frame

    def _retire(self, number: int, arrived: bool) -> _Sent:
        """A transmission whose fate is known."""
        sent = self._flight.pop(number)
        self._flying -= sent.wire
        start = max(sent.start, self._unacked)
        if arrived:
            self._delivered += sent.wire
            if start < sent.end:
                self._held = _with(self._held, start, sent.end)
                self._lost = _without(self._lost, start, sent.end)
        elif start < sent.end:
            self._errors += 1
            self._lost = _with(self._lost, start, sent.end)
            for held in self._held:
                self._lost = _without(self._lost, *held)
        else:
            self._delivered += sent.wire
        return sent

    def _acknowledged(self, fields: tuple[int, ...], history: int, now: float) -> None:
        expected, window, newest = fields
        reached = _near(expected, self._unacked)
        if not self._unacked <= reached <= self._unsent:
            self.rejected += reached > self._unsent
            return  # an old one, or nonsense
        limit = reached + 256 * min(window, WINDOW // 256)
        if limit > self._limit:
            self._limit, self._backoff, self._timer = limit, 0, None
        if reached > self._unacked:
            del self._buffer[: reached - self._unacked]
            self._unacked = reached
            self._lost = _without(self._lost, 0, reached)
            self._held = _without(self._held, 0, reached)
            self._backoff, self._timer = 0, None
        if newest not in self._flight:
            return
        for number in list(self._flight):
            before = (newest - number) & 0xFF
            sent = self._retire(number, before == 0 or bool(history >> (before - 1) & 1))
            if before == 0:
                self._learn(sent, now)
                break
        self._backoff, self._timer = 0, None

    def _learn(self, sent: _Sent, now: float) -> None:
        """What the line is like, from a transmission that has just been confirmed."""
        trip = max(1e-6, now - sent.time)
        if self._srtt:
            self._rttvar += (abs(trip - self._srtt) - self._rttvar) / 4
            self._srtt += (trip - self._srtt) / 8
        else:
            self._srtt, self._rttvar = trip, trip / 2
        self._quickest.add(trip, now)
        self._rate.add((self._delivered - sent.base) / max(1e-6, now - sent.base_time), now)
        self._delivered_time = now

    # Receiving

    def _room(self) -> int:
        return max(0, WINDOW - len(self._ready))

    def _take(self, number: int, offset: int, payload: bytes, final: bool) -> None:
        start = _near(offset, self._expected)
        end = start + len(payload)
        last = end - 1 if final else None
        if (
            start < 0
            or len(payload) > MAX_PAYLOAD
            or end > max(self._expected + self._room(), self._promised)
            or (last is not None and self._their_end not in (None, last))
            or (self._their_end is not None and end > self._their_end + 1)
            or (start > self._expected and len(self._fragments) >= _FRAGMENTS)
        ):
            self.rejected += 1
            return
        if final:
            self._their_end = last
        ahead = 0 if self._last is None else (number - self._last) & 0xFF
        if ahead:
            self._history = ((self._history << ahead) | (1 << (ahead - 1))) & _MASK
        self._last = number
        self._ack = True
        if start <= self._expected:
            self._advance(payload, start)
            while self._fragments and self._fragments[0][0] <= self._expected:
                at, piece = self._fragments.pop(0)
                self._advance(piece, at)
        else:
            bisect.insort(self._fragments, (start, payload))

    def _advance(self, payload: bytes, start: int) -> None:
        new = payload[self._expected - start :]
        self._expected += len(new)
        if self._their_end is not None and self._expected > self._their_end:
            new = new[:-1]
        self._ready += new

    def _ack_fields(self) -> bytes:
        self._ack = False
        window = min(255, self._room() // 256)
        self._promised = max(self._promised, self._expected + 256 * window)
        newest = 0xFF if self._last is None else self._last  # before the first: no transmission has it for long
        return _ACK.pack(self._expected & 0xFFFF, window, newest)

    def _ack_frame(self) -> bytes:
        told = self._history if self._fragments else 0
        history = told.to_bytes((told.bit_length() + 7) // 8, "big")
        return _seal(bytes((Kind.ACK,)) + self._ack_fields() + history, self._out_salt)


class _Extreme:
    """The largest or smallest value of the last `span` to two times `span` seconds."""

    def __init__(self, better: object, span: float) -> None:
        self._best = better
        self._span = span
        self._turned = 0.0
        self._older: Optional[float] = None
        self._newer: Optional[float] = None

    @property
    def value(self) -> Optional[float]:
        known = [value for value in (self._older, self._newer) if value is not None]
        return self._best(known) if known else None  # type: ignore[operator]

    def add(self, value: float, now: float) -> None:
        if self._newer is None or now - self._turned > self._span:
            self._older, self._newer, self._turned = self._newer, value, now
        else:
            self._newer = self._best((self._newer, value))  # type: ignore[operator]


def _near(low: int, base: int) -> int:
    """The offset whose lowest 16 bits are `low` and that is closest to `base`."""
    return base + ((low - base + 0x8000) & 0xFFFF) - 0x8000


def _with(spans: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    out = []
    for s, e in spans:
        if e < start or s > end:
            out.append((s, e))
        else:
            start, end = min(s, start), max(e, end)
    bisect.insort(out, (start, end))
    return out


def _without(spans: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    out = []
    for s, e in spans:
        if s < start:
            out.append((s, min(e, start)))
        if e > end:
            out.append((max(s, end), e))
    return [(s, e) for s, e in out if s < e]


def _seal(content: bytes, salt: int, data: bool = False) -> bytes:
    body = content + _CRC.pack(zlib.crc32(content, salt))
    if not data:
        return _CONTROLS.sub(lambda match: bytes((0x7D, match[0][0] ^ 0x20)), body) + _DELIMITER
    body = body.replace(b"\x7d", b"\x7d\x5d").replace(b"\x7e", b"\x7d\x5e")
    return body.replace(b"\x11", b"\x7d\x31").replace(b"\x13", b"\x7d\x33") + _DELIMITER


def _unseal(body: bytes, salt: int) -> Optional[bytes]:
    if len(body) < 1 + _CRC.size:
        return None
    content = body[: -_CRC.size]
    return content if _CRC.unpack_from(body, len(content))[0] == zlib.crc32(content, salt) else None


def _unescape(raw: bytes) -> bytes:
    if _ESCAPE not in raw:
        return raw
    first, *rest = raw.split(_ESCAPE)
    # An escape at the end, or two in a row, are damage; the checksum will say so.
    return first + b"".join(bytes((part[0] ^ 0x20,)) + part[1:] for part in rest if part)
