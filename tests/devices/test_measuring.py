"""The board's own part of measuring: when it has measured enough, and what it does with a host or a disk in the way."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as oracle

from devices import spool
from devices.agent import _precise
from devices.link import OFFERED_BYTES, PipeLink
from devices.protocol.framing import Decoder, Kind, Message
from devices.protocol.student import half_width, t_975
from devices.spool import Spools


@pytest.mark.parametrize("freedom", [1, 2, 9, 29, 30])
def test_the_table_is_students_t(freedom: int) -> None:
    assert pytest.approx(oracle.t.ppf(0.975, freedom), abs=0.001) == t_975(freedom)


def test_the_half_width_is_that_of_the_t_interval() -> None:
    values = [100.0, 104.0, 98.0, 103.0]

    interval = oracle.t.interval(0.95, 3, np.mean(values), oracle.sem(values))
    assert pytest.approx((interval[1] - interval[0]) / 2, rel=1e-3) == half_width(values)


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ([100.0] * 5, False),  # five may agree by chance: the sixth must, too
        ([100.0] * 6, True),
        ([90.0, 100, 100, 100, 100, 100], False),
        ([100.0, 100, 100, 100, 100, 90], False),  # it was precise, and is no more
        ([], False),
    ],
)
def test_a_median_is_precise_when_two_looks_in_a_row_say_so(medians: list[float], expected: bool) -> None:
    assert expected == _precise(medians, 5, 0.01)
    assert not _precise(medians, 5, None)


def test_precise_means_within_the_share_of_the_median_that_was_asked_for() -> None:
    medians = [100.0, 101.0, 99.0, 100.5, 99.5, 100.0]
    needed = max(half_width(medians), half_width(medians[:-1])) / 100

    assert _precise(medians, 5, needed * 1.01)
    assert not _precise(medians, 5, needed * 0.99)


def test_what_is_offered_to_a_host_that_takes_nothing_waits_and_then_comes_whole() -> None:
    reading, writing = os.pipe()
    link = PipeLink(reading, writing)
    sent = b""
    while link.room():
        piece = os.urandom(100_000)
        link.offer(piece)
        sent += piece
    assert len(sent) > OFFERED_BYTES

    received = b""
    while link.offer(b"") or len(received) < len(sent):
        received += os.read(reading, 1 << 20)

    assert sent == received
    assert link.room()


def test_a_reply_comes_after_what_was_offered_before_it() -> None:
    reading, writing = os.pipe()
    link = PipeLink(reading, writing)
    link.offer(b"event ")
    link.send(b"reply")

    assert b"event reply" == os.read(reading, 100)


def test_a_spool_never_takes_more_than_its_room_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the disk is somebody else's."""
    monkeypatch.setattr(spool, "MOST_BYTES", 10_000)
    spools = Spools(tmp_path)
    writer = spools.writer({"plan": {}})
    for number in range(30):
        writer.append(Message(Kind.EVENT, {"n": number}, bytes(1000)))
    writer.close()

    data, _ = spools.read(writer.id, 0)
    kept = list(Decoder().feed(data))
    assert "no more room for the spool" == writer.failed
    assert list(range(len(kept))) == [message.header["n"] for message in kept]
    assert 8 <= len(kept) < 10
