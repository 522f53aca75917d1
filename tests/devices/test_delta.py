"""Deltas on the board: what they make is the target or an error, whatever bytes arrive."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.delta import encode, ranges
from devices import delta
from devices.protocol import errors
from devices.protocol.delta import HEADER_BYTES, Header, parse_header
from devices.protocol.errors import AgentError
from devices.protocol.rangecoder import Contexts, decoder, encoder
from tests.conftest import GOLDEN
from tests.models import perturbed

MODEL = (GOLDEN / "digits_int8.tflite").read_bytes()


def moved(data: bytes, every: int = 3) -> bytes:
    """The same bytes, but every third one is one more."""
    return bytes((byte + (at % every == 0)) & 255 for at, byte in enumerate(data))


def rescaled(data: bytes) -> bytes:
    """A model whose weights and scales say nearly the same with other scales per channel."""
    out = bytearray(data)
    for each in ranges(data):
        if each.scales:
            weights = np.frombuffer(data, np.int8, each.length, each.start).reshape(len(each.scales), -1)
            factors = np.linspace(0.8, 1.0, len(each.scales))[:, None]
            out[each.start : each.end] = np.rint(weights * factors).astype(np.int8).tobytes()
            scales = (np.array(each.scales) / factors[:, 0]).astype("<f4").tobytes()
            at = data.find(np.array(each.scales, "<f4").tobytes())
            out[at : at + len(scales)] = scales
    return bytes(out)


def applied(folder: Path, base: bytes, patch: bytes) -> bytes:
    (folder / "base").write_bytes(base)
    (folder / "patch").write_bytes(patch)
    delta.apply(folder / "base", folder / "patch", folder / "target")
    return (folder / "target").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("delta")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=2000))
def test_bits_come_back_in_order_whatever_their_contexts(coded: list[tuple[int, bool]]) -> None:
    there = Contexts()
    first = there.take(5)
    bit, finish = encoder(there)
    for context, value in coded:
        bit(first + context, value)
    here = Contexts()
    here.take(5)
    source = iter(finish())
    read = decoder(here, source)

    assert [value for _, value in coded] == [bool(read(context, 0)) for context, _ in coded]
    assert b"" == bytes(source)


def test_a_carry_runs_through_all_the_bytes_that_are_out() -> None:
    """Nearly certain bits push `low` up to a long run of 0xff, and one unlikely bit overflows it."""
    bits = [False] * 3 + ([True] * 40 + [False]) * 200
    there = Contexts()
    there.take(1)
    bit, finish = encoder(there)
    for value in bits:
        bit(0, value)
    here = Contexts()
    here.take(1)
    read = decoder(here, iter(finish()))

    assert bits == [bool(read(0, 0)) for _ in bits]


# Every kind of operation: differences of tensors and of scales, whole tensors, bytes that are found elsewhere.
DAMAGED = [
    (MODEL[:3000], moved(MODEL[:3100])),
    (MODEL, perturbed(MODEL, 0.1, 1, seed=0, jitter=True)),
    (MODEL, rescaled(MODEL)),
    (MODEL[16000:], MODEL[15000:]),
]
PATCHES = [encode(base, target) for base, target in DAMAGED]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_damaged_delta_is_refused_and_makes_nothing_else(folder: Path, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(DAMAGED) - 1))
    (base, target), patch = DAMAGED[number], bytearray(PATCHES[number])
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
        at = data.draw(st.integers(0, max(0, len(patch) - 1)))
        if kind == "flip" and patch:
            patch[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del patch[at:]
        elif kind == "insert":
            patch[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        else:
            patch[at : at + 8] = bytes(len(patch[at : at + 8]))

    try:
        made = applied(folder, base, bytes(patch))
    except ValueError:
        return
    assert target == made  # the damage undid itself


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400), st.integers(0, 5000))
def test_any_bytes_after_a_right_header_are_refused(folder: Path, body: bytes, size: int) -> None:
    """The header is right, so that what is tried is the operations and not the header's checks."""
    base = MODEL[:2000]
    header = Header(hashlib.sha256(base).digest()[:4], bytes(16), size)

    with pytest.raises(ValueError):
        applied(folder, base, header.to_bytes() + body)


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        (b"", "not a delta"),
        (b"PK\x03\x04" + bytes(60), "not a delta"),
        (b"\xdeT\x63" + bytes(60), "delta format 99; this is 1"),
        (encode(b"another", MODEL), "it is for another base"),
        (encode(MODEL, moved(MODEL))[:-5], "it ends too early"),
        (encode(MODEL, moved(MODEL)) + b"!", "bytes after its end"),
        (b"\xdeT\x01" + hashlib.sha256(MODEL).digest()[:4] + bytes(16) + b"\x01\0\0\0", "it ends too early"),
    ],
)  # fmt: skip
def test_what_is_no_delta_of_this_base_is_told_apart(folder: Path, patch: bytes, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        applied(folder, MODEL, patch)

    assert said == str(caught.value)


def test_another_target_than_announced_is_refused(folder: Path) -> None:
    patch = bytearray(encode(MODEL, moved(MODEL)))
    patch[8] ^= 1  # in the digest of the target

    with pytest.raises(ValueError, match="what it makes is not what it announces"):
        applied(folder, MODEL, bytes(patch))


def test_a_header_survives_its_bytes() -> None:
    header = Header(b"base", bytes(range(16)), 2**32 - 1)

    assert header == parse_header(header.to_bytes())
    assert HEADER_BYTES == len(header.to_bytes())


def memory(folder: Path, base: bytes, target: bytes) -> int:
    """Bytes that applying the delta has allocated at its peak."""
    (folder / "base").write_bytes(base)
    (folder / "patch").write_bytes(encode(base, target))
    delta.apply(folder / "base", folder / "patch", folder / "target")  # whatever is made once
    tracemalloc.start()
    try:
        delta.apply(folder / "base", folder / "patch", folder / "target")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert target == (folder / "target").read_bytes()
    return peak


def test_applying_takes_less_memory_than_twice_the_largest_tensor_even_of_a_small_model(folder: Path) -> None:
    target = perturbed(MODEL, 0.5, 3, seed=4, jitter=True)

    assert memory(folder, MODEL, target) < 2 * max(each.length for each in ranges(MODEL))


def test_memory_does_not_grow_with_the_model(folder: Path) -> None:
    """Half a megabyte of which nothing is a tensor: the many bytes that are met take more contexts than weights do."""
    target = MODEL * 20

    assert memory(folder, moved(target, 50_000), target) < 40_000


def test_as_a_process_it_ends_when_the_agent_does(tmp_path: Path) -> None:
    """Its input is a pipe from the agent; the kernel closes that however the agent ends."""
    big = MODEL * 200
    (tmp_path / "base").write_bytes(moved(big))
    (tmp_path / "patch").write_bytes(
        Header(hashlib.sha256(moved(big)).digest()[:4], bytes(16), 1 << 31).to_bytes() + bytes(1 << 20)
    )
    command = [sys.executable, "-m", "devices.delta", *(str(tmp_path / name) for name in ("base", "patch", "target"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout

    process.stdin.close()

    assert process.wait(20) in (1, delta.BAD_DELTA)
    process.stdout.close()


def test_a_target_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "target").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(OSError):
        applied(tmp_path, MODEL, encode(MODEL, moved(MODEL)))

    assert b"precious" == (tmp_path / "elsewhere").read_bytes()


def test_a_disk_that_fills_up_while_a_delta_is_applied_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(MODEL)
    (tmp_path / "patch").write_bytes(encode(MODEL, moved(MODEL)))
    process = delta.Process(tmp_path / "base", tmp_path / "patch", Path("/dev/full"))
    try:
        process._process.wait(20)
        with pytest.raises(AgentError) as caught:
            process.check(AgentError(errors.DISK_FULL, "the disk is full"))
    finally:
        process.kill()

    assert errors.DISK_FULL == caught.value.code
