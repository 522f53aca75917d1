from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.protocol.framing import (
    MAGIC,
    MAX_GREETING,
    MAX_HEADER,
    MAX_PAYLOAD,
    VERSION,
    Decoder,
    Encoder,
    FrameError,
    Kind,
    Message,
)

PING = Message(Kind.REQUEST, {"id": 1, "op": "ping"}, b"payload")
PREFIX_BYTES = 18

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_messages = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    header=st.dictionaries(st.text(max_size=8), _json, max_size=4),
    payload=st.binary(max_size=200),
)


def raw_frame(
    header: bytes = b"{}",
    payload: bytes = b"",
    kind: int = Kind.REPLY,
    sequence: int = 0,
    version: int = VERSION,
    announced: int | None = None,
) -> bytes:
    """A frame with valid checksums whatever it says."""
    size = len(payload) if announced is None else announced
    prefix = struct.pack(">2sBBIHI", MAGIC, version, kind, sequence, len(header), size)
    crc = zlib.crc32(header + payload)
    return prefix + struct.pack(">I", zlib.crc32(prefix)) + header + payload + struct.pack(">I", crc)


def encoded(count: int) -> list[bytes]:
    """`count` different frames of one direction, in order."""
    encoder = Encoder()
    return [encoder.encode(Message(Kind.EVENT, {"n": n}, bytes([n]) * 3)) for n in range(count)]


def refusal(data: bytes, lossy: bool = False) -> str:
    with pytest.raises(FrameError) as caught:
        list(Decoder(lossy).feed(data))
    return str(caught.value)


@settings(deadline=None, max_examples=60, database=None)
@given(st.lists(_messages, max_size=4), st.data(), st.booleans())
def test_messages_arrive_as_they_were_sent_however_the_stream_is_cut(messages, data, lossy):
    encoder, decoder = Encoder(), Decoder(lossy)
    stream = b"".join(encoder.encode(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))

    arrived = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        arrived += decoder.feed(stream[start:end])

    assert messages == arrived
    assert 0 == decoder.discarded


def test_messages_arrive_when_every_byte_comes_alone():
    decoder = Decoder()

    arrived = [message for byte in Encoder().encode(PING) for message in decoder.feed(bytes([byte]))]

    assert [PING] == arrived


def test_the_bytes_of_a_frame_are_those_of_the_layout():
    """Agents and hosts of different releases meet on these bytes: a change needs a new version of the layout."""
    frame = Encoder().encode(Message(Kind.REQUEST, {"id": 7, "op": "ping"}, b"\x00\xff"))

    assert "d750 01 02 00000000 0014 00000002 a12365c9" == " ".join(
        frame[a:b].hex() for a, b in [(0, 2), (2, 3), (3, 4), (4, 8), (8, 10), (10, 14), (14, 18)]
    )
    assert b'{"id":7,"op":"ping"}' == frame[18:38]
    assert b"\x00\xff" == frame[38:40]
    assert zlib.crc32(frame[18:40]) == int.from_bytes(frame[40:], "big")


def test_what_a_login_shell_says_first_is_passed_over():
    greeting = b"Last login: Mon Mar  2 on ttyS0\r\nWelcome to Raspberry Pi OS\r\n"
    decoder = Decoder()

    assert [PING] == list(decoder.feed(greeting + Encoder().encode(PING)))
    assert len(greeting) == decoder.discarded


def test_half_a_magic_at_the_end_of_the_greeting_is_kept():
    frame = Encoder().encode(PING)
    decoder = Decoder()

    assert [] == list(decoder.feed(b"hello\n" + frame[:1]))
    assert [PING] == list(decoder.feed(frame[1:]))


def test_a_greeting_without_end_is_refused_with_its_first_words():
    text = b"0123456789" * (MAX_GREETING // 10 + 1)

    assert f"no frame in {len(text)} bytes: '{'0123456789' * 6}'..." == refusal(text)


def test_bytes_between_two_frames_are_refused_and_shown():
    first, second = encoded(2)

    assert "3 bytes between two frames: 'abc'" == refusal(first + b"abc" + second)


def test_bytes_between_frames_that_are_no_text_are_shown_all_the_same():
    first, second = encoded(2)

    assert "2 bytes between two frames: '\\x00\ufffd'" == refusal(first + b"\x00\xfe" + second)


def test_a_missing_frame_is_named():
    first, _, third = encoded(3)

    assert "frame 2 came where frame 1 was due" == refusal(first + third)


def test_a_repeated_frame_is_refused():
    (frame,) = encoded(1)

    assert "frame 0 came where frame 1 was due" == refusal(frame + frame)


def test_the_first_frame_may_have_any_number():
    """Who joins late cannot know how many came before."""
    assert [Message(Kind.REPLY)] == list(Decoder().feed(raw_frame(sequence=41)))


def test_sequence_numbers_wrap_at_32_bits():
    stream = raw_frame(sequence=0xFFFFFFFF) + raw_frame(sequence=0)

    assert 2 == len(list(Decoder().feed(stream)))


@pytest.mark.parametrize("lossy", [False, True])
def test_another_version_of_the_layout_is_refused_on_any_line(lossy):
    """Also on a lossy one: the checksum holds, so it is no damage, and waiting would not help."""
    assert "the other side speaks frame version 2, this side 1" == refusal(raw_frame(version=2), lossy)


def test_a_damaged_prefix_is_refused():
    frame = bytearray(Encoder().encode(PING))
    frame[5] ^= 1

    assert "the checksum of a frame's prefix is wrong" == refusal(bytes(frame))


@pytest.mark.parametrize("at", [PREFIX_BYTES, -5, -1], ids=["header", "payload", "checksum"])
def test_a_damaged_body_is_refused(at):
    frame = bytearray(Encoder().encode(PING))
    frame[at] ^= 0x10

    assert "the checksum of a frame's body is wrong" == refusal(bytes(frame))


def test_a_damaged_length_does_not_make_the_reader_wait():
    """Without a checksum of the prefix the reader would wait for 16 MB that never come."""
    damaged = bytearray(encoded(1)[0])
    damaged[10] = 1
    whole = encoded(2)[1]

    assert "the checksum of a frame's prefix is wrong" == refusal(bytes(damaged))
    assert [1] == [m.header["n"] for m in Decoder(lossy=True).feed(bytes(damaged) + whole)]


def test_an_absurd_length_with_a_valid_checksum_is_refused_before_its_bytes_come():
    frame = raw_frame(announced=MAX_PAYLOAD + 1)

    assert "a frame announces 67108865 bytes; the limit is 67108864" == refusal(frame)


def test_a_lossy_reader_passes_over_an_absurd_length():
    decoder = Decoder(lossy=True)

    assert [PING] == list(decoder.feed(raw_frame(announced=MAX_PAYLOAD + 1) + Encoder().encode(PING)))
    assert len(raw_frame()) == decoder.discarded


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (raw_frame(kind=99), "frame of kind 99 makes no sense: 99 is not a valid Kind"),
        (raw_frame(b"[1]"), "frame of kind 3 makes no sense: the header is a list"),
        (
            raw_frame(b"{"),
            "frame of kind 3 makes no sense: "
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
        (
            raw_frame(b'{"a":"\xff"}'),
            "frame of kind 3 makes no sense: 'utf-8' codec can't decode byte 0xff in position 6: invalid start byte",
        ),
    ],
    ids=["kind", "list", "json", "utf8"],
)
def test_a_frame_that_was_sent_senseless_says_what_is_wrong_with_it(frame, reason):
    assert reason == refusal(frame)
    assert [PING] == list(Decoder(lossy=True).feed(frame + Encoder().encode(PING)))


def test_a_header_nested_beyond_reason_is_refused():
    """The JSON reader recurses; it must not take the process with it."""
    depth = 30_000

    reason = refusal(raw_frame(b'{"a":' + b"[" * depth + b"]" * depth + b"}"))

    assert reason.startswith("frame of kind 3 makes no sense: maximum recursion depth exceeded")


def test_an_empty_header_is_an_empty_object():
    assert [Message(Kind.REPLY, {}, b"xy")] == list(Decoder().feed(raw_frame(b"", b"xy")))


def test_a_header_that_is_too_long_is_refused_by_its_sender():
    with pytest.raises(FrameError) as caught:
        Encoder().encode(Message(Kind.REPLY, {"a": "x" * MAX_HEADER}))

    assert "header of 65543 bytes; a frame carries at most 65535" == str(caught.value)


def test_the_longest_header_arrives():
    header = {"a": "x" * (MAX_HEADER - len('{"a":""}'))}

    assert [Message(Kind.REPLY, header)] == list(Decoder().feed(Encoder().encode(Message(Kind.REPLY, header))))


def test_a_payload_that_is_too_long_is_refused_by_its_sender():
    with pytest.raises(FrameError) as caught:
        Encoder().encode(Message(Kind.REPLY, {}, bytes(MAX_PAYLOAD + 1)))

    assert "payload of 67108865 bytes; a frame carries at most 67108864" == str(caught.value)


def test_a_frame_refused_by_its_sender_leaves_no_gap():
    encoder = Encoder()
    with pytest.raises(FrameError):
        encoder.encode(Message(Kind.REPLY, {"a": "x" * MAX_HEADER}))

    stream = encoder.encode(PING) + encoder.encode(PING)

    assert [PING, PING] == list(Decoder().feed(stream))


def test_a_name_that_is_no_valid_unicode_arrives_as_it_was():
    """Linux file names may hold any byte; Python carries those that are no UTF-8 as lone surrogates."""
    message = Message(Kind.ERROR, {"message": "no such file: caf\udce9"})

    assert [message] == list(Decoder().feed(Encoder().encode(message)))


@settings(deadline=None, max_examples=60, database=None)
@given(st.data())
def test_after_damage_a_lossy_reader_gives_every_frame_that_was_not_hit(data):
    """
    Bytes are changed, dropped or put in, inside one frame.  All the others arrive once enough bytes came to see
    that nothing more belongs to the damaged one.
    """
    count = data.draw(st.integers(2, 5))
    hit = data.draw(st.integers(0, count - 1))
    frames = encoded(count)
    frame = bytearray(frames[hit])
    at = data.draw(st.integers(0, len(frame) - 1))
    damage = data.draw(st.sampled_from(["change", "drop", "insert"]))
    if damage == "change":
        frame[at] ^= data.draw(st.integers(1, 255))
    elif damage == "drop":
        del frame[at]
    else:
        frame.insert(at, data.draw(st.integers(0, 255).filter(lambda byte: byte != frame[at])))
    frames[hit] = bytes(frame)
    decoder = Decoder(lossy=True)
    size = data.draw(st.integers(1, 40))
    stream = b"".join(frames) + bytes(64)

    arrived = [m for i in range(0, len(stream), size) for m in decoder.feed(stream[i : i + size])]

    intact = [n for n in range(count) if n != hit]
    assert intact == [m.header["n"] for m in arrived if m.header["n"] != hit]
    assert decoder.discarded > 0


@settings(deadline=None, max_examples=60, database=None)
@given(st.binary(max_size=300))
def test_noise_never_becomes_a_message_and_never_stops_a_lossy_reader(noise):
    decoder = Decoder(lossy=True)

    assert [] == list(decoder.feed(noise + bytes(PREFIX_BYTES)))
    assert [PING] == list(decoder.feed(Encoder().encode(PING)))
