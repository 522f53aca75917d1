"""The reliable stream over a bad line, in simulated time."""

from __future__ import annotations

import random
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.protocol import arq
from devices.protocol.arq import Connection, Kind, Splitter
from devices.protocol.framing import Decoder, FrameError
from tests.devices.simulation import Line, byte_errors

MEGABYTE = 1 << 20


def carry(line: Line, there: bytes, back: bytes = b"", limit_s: float = 300.0) -> float:
    """Send both ways until both have everything, checking all the while that what arrived is a beginning of it."""
    rest = [there, back]

    def done() -> bool:
        for end in (0, 1):
            if rest[end]:
                rest[end] = rest[end][line.ends[end].write(rest[end]) :]
                line._pump(end)
        assert there.startswith(line.got[1])
        assert back.startswith(line.got[0])
        return (len(line.got[1]), len(line.got[0])) == (len(there), len(back))

    return line.run(done, limit_s)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([0.0, 1e-4, 1e-3, 5e-3]),
    latency_s=st.sampled_from([0.0001, 0.001, 0.016, 0.2]),
    baud=st.sampled_from([9600, 115_200, 3_000_000]),
    sizes=st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)),
    cuts=st.lists(st.tuples(st.floats(100, 103), st.floats(0.01, 3)), max_size=3),
)
def test_whatever_the_line_does_what_arrives_is_a_beginning_of_what_was_sent_and_in_the_end_all_of_it(
    seed: int, rate: float, latency_s: float, baud: int, sizes: tuple[int, int], cuts: list[tuple[float, float]]
) -> None:
    rng = random.Random(seed)
    spans = tuple((start, start + length) for start, length in cuts)
    line = Line(baud=baud, latency_s=latency_s, fault=byte_errors(rate), cuts=spans, seed=seed)

    carry(line, rng.randbytes(sizes[0]), rng.randbytes(sizes[1]), limit_s=2000)


@pytest.mark.parametrize(
    ("rate", "latency_s", "least"),
    [(0.0, 0.001, 0.95), (0.0, 0.016, 0.95), (1e-4, 0.001, 0.90), (1e-4, 0.016, 0.90), (1e-3, 0.001, 0.75)],
)
def test_the_line_is_used_well(rate: float, latency_s: float, least: float) -> None:
    """Simulated time, so this depends on no machine."""
    data = random.Random(1).randbytes(100_000)
    line = Line(latency_s=latency_s, fault=byte_errors(rate), seed=3)

    assert least <= len(data) * 10 / 115_200 / carry(line, data)


def test_a_line_that_is_cut_goes_on_where_it_was_and_resends_little() -> None:
    data = random.Random(1).randbytes(50_000)
    line = Line(cuts=tuple((100.5 + at, 100.9 + at) for at in range(20)))

    carry(line, data)

    assert line.ends[0].resent < len(data) // 2


def test_what_is_urgent_does_not_wait_behind_a_flood() -> None:
    """No more is put on the line than it holds and a little: the round trip stays below half a second."""
    line = Line()
    rest = [random.Random(1).randbytes(60_000)]

    def third() -> bool:
        rest[0] = rest[0][line.ends[0].write(rest[0]) :]
        line._pump(0)
        return len(line.got[1]) > 30_000

    line.run(third, 60)

    assert line._free[0] - line.now < 0.5


def test_the_end_arrives_after_the_last_byte_and_both_ends_know() -> None:
    line = Line(fault=byte_errors(2e-3), seed=5)
    for end in line.ends:
        end.write(b"farewell")
        end.finish()

    line.run(lambda: all(end.finished for end in line.ends), 60)

    assert [b"farewell", b"farewell"] == [bytes(got) for got in line.got]
    assert all(end.ended for end in line.ends)


def test_a_reader_that_does_not_read_stops_the_writer_and_memory_is_bounded() -> None:
    line = Line(baud=3_000_000, read=False)
    rest = [bytes(200_000)]

    def minute() -> bool:
        rest[0] = rest[0][line.ends[0].write(rest[0]) :]
        line._pump(0)
        return line.now > 130

    line.run(minute, 60)
    assert line.ends[1].readable <= arq.WINDOW
    line.read = True

    carried = line.run(lambda: len(line.got[1]) >= arq.WINDOW + arq.BUFFER, 60)
    assert carried < 5


def test_frames_of_another_connection_and_ones_own_echo_are_refused() -> None:
    now = 1.0
    host, board = Connection(7, True, now), Connection(7, False, now)
    host.write(b"x")
    (body,) = Splitter().feed(host.transmit(now))[-1:]

    assert not host.receive(body, now)
    assert not Connection(8, False, now).receive(body, now)
    assert board.receive(body, now)
    assert b"x" == board.read()


def test_no_frame_has_a_byte_that_software_flow_control_eats_and_control_frames_have_no_control_character() -> None:
    host = Connection(7, True, 0.0)
    host.write(bytes(range(256)) * 4)
    assert not {0x11, 0x13} & set(host.transmit(0.0))

    for value in range(300):
        assert min(arq.control(Kind.CONNECT, value * 0x01010101 & 0xFFFFFFFF)) >= 0x20


@settings(deadline=None)
@given(content=st.binary(min_size=1, max_size=80))
def test_content_that_makes_no_sense_is_refused_though_its_checksum_holds(content: bytes) -> None:
    board = Connection(7, False, 0.0)
    board.receive(content + zlib.crc32(content, 7).to_bytes(4, "big"), 0.0)

    board.transmit(0.0)
    assert board.readable <= 80


def test_a_frame_beyond_the_window_is_refused() -> None:
    board = Connection(7, False, 0.0)
    content = bytes((Kind.DATA, 0)) + (arq.WINDOW - 1).to_bytes(2, "big") + b"xx"

    assert board.receive(content + zlib.crc32(content, 7).to_bytes(4, "big"), 0.0)
    assert 1 == board.rejected


def garbage(seed: int) -> bytes:
    """A megabyte of what a line may say: noise, delimiters, and beginnings of frames."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < MEGABYTE:
        out += rng.choice(
            [rng.randbytes(2000), b"\x7e" * 50, b"\x7d" * 50, b"\xd7\x50" * 40, b"\xd7\x50\x01\x02" + rng.randbytes(60)]
        )
        if rng.random() < 0.2:
            content = bytes((rng.choice(list(Kind)),)) + rng.randbytes(rng.randrange(12))
            out += b"\x7e" + content + zlib.crc32(content, 7).to_bytes(4, "big") + b"\x7e"
    return bytes(out)


def test_ten_megabytes_of_garbage_cost_nothing_but_time() -> None:
    board, splitter, lossy, strict = Connection(7, False, 0.0), Splitter(), Decoder(lossy=True), Decoder()
    refused = 0
    tracemalloc.start()
    try:
        for seed in range(10):
            data = garbage(seed)
            for at in range(0, len(data), 4096):
                piece = data[at : at + 4096]
                for body in splitter.feed(piece):
                    board.receive(body, seed)
                    arq.parse_control(body)
                list(lossy.feed(piece))
                try:
                    list(strict.feed(piece))
                except FrameError:
                    strict, refused = Decoder(), refused + 1
            board.transmit(seed)
            board.read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert refused > 0
    assert peak < 16 * MEGABYTE
