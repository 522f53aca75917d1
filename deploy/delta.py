"""
The smallest delta between two files, tensor by tensor.

A .tflite is cut into its constant tensors, its vectors of scales, and the rest.  Each range of the target is matched
with one of the base and coded in the way that comes out smallest: copied, as differences, or whole; the kinds are those
of `devices.protocol.delta`, which also says why the board needs to know nothing of TFLite.  Other files are cut
wherever parts of them are found in the base.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from devices.protocol import delta
from devices.protocol.delta import BLOCK, CHUNK, COPY, INT8, ONE, RAW, WIDE, Header, Op, Stream
from devices.protocol.rangecoder import Contexts, encoder

MIN_RANGE = 16  # bytes; an operation costs some, so smaller ranges stay with what is around them
MIN_GAIN_RUN = 16
_SAMPLE = 8 * 1024  # bytes that are coded on trial, to choose between kinds: from a few places
_PLACE = 4 * 1024
_SEED = 8  # bytes in a row that must be found in the base before a match is tried
_MIN_MATCH = 16
_WINDOW = 1 << 16

Bytes = NDArray[np.uint8]


def encode(base: bytes, target: bytes) -> bytes:
    """
    The delta that makes `target` of `base`.

    Raises:
        ValueError: a file of 4 GiB or more.
    """
    if max(len(base), len(target)) > delta.MAX_SIZE:
        raise ValueError("deltas are for files below 4 GiB")
    header = Header.of(base, target)
    contexts = Contexts()
    bit, finish = encoder(contexts)
    stream = Stream(bit, contexts, len(base), len(target))
    at = 0
    for op in _merged(_plan(base, target)):
        stream.op(op)
        if op.kind != COPY:
            _content(stream, op, _base_of(op, base), target[at : at + op.length])
        at += op.length
    return header.to_bytes() + finish()


def _content(stream: Stream, op: Op, base: bytes, target: bytes) -> None:
    code = stream.content(op)
    for start in range(0, op.length, CHUNK):
        code(base[start : start + CHUNK], bytearray(target[start : start + CHUNK]))


def _base_of(op: Op, base: bytes) -> bytes:
    return bytes(op.length) if op.base is None else base[op.base : op.base + op.length]


def _merged(ops: Iterator[Op]) -> Iterator[Op]:
    """Copies that continue each other become one."""
    last: Op | None = None
    for op in ops:
        if last and last.kind == op.kind == COPY and last.base is not None and last.base + last.length == op.base:
            last = last._replace(length=last.length + op.length)
            continue
        if last:
            yield last
        last = op
    if last:
        yield last


# Ranges


@dataclass(frozen=True)
class Range:
    """
    Bytes of a file that belong together.

    Attributes:
        keys: names to find it by in another file, the surest first.
        type: TFLite's tensor type, or -1 for bytes that are no tensor.
        scales: of a tensor whose first dimension has one each, else empty.
        zero: zero point of an unsigned tensor.
    """

    start: int
    length: int
    keys: tuple[tuple[object, ...], ...] = ()
    type: int = -1
    scales: tuple[float, ...] = ()
    zero: int = 0

    @property
    def end(self) -> int:
        return self.start + self.length


def _plan(base: bytes, target: bytes) -> Iterator[Op]:
    old, new = ranges(base), ranges(target)
    by_key: dict[tuple[object, ...], Range] = {}
    by_content: dict[bytes, Range] = {}
    for known in reversed(old):
        by_key.update(dict.fromkeys(known.keys, known))
        by_content[hashlib.sha256(base[known.start : known.end]).digest()] = known
    rest = _Rest(base, old)
    at = expected = 0
    for current in [*new, Range(len(target), 0)]:
        if current.start > at:
            yield from rest.ops(target, at, current.start, expected)
        if current.length:
            content = target[current.start : current.end]
            found = [by_key[key] for key in current.keys if key in by_key]
            match = next((f for f in found if (f.length, f.type) == (current.length, current.type)), None)
            # Many vectors are equal; the one in place needs no telling where it is.
            for same in (Range(expected, current.length), match, by_content.get(hashlib.sha256(content).digest())):
                if same and base[same.start : same.end] == content:
                    match = same
                    break
            yield _best(base, content, current, match)
            expected = match.end if match else expected + current.length
        at = current.end


def ranges(data: bytes) -> list[Range]:
    """Constant tensors and vectors of numbers of a .tflite, in file order, none overlapping; of other files nothing."""
    try:
        found = sorted(_tensors(data), key=lambda r: r.start) if data[4:8] == b"TFL3" else []
    except (struct.error, IndexError, OverflowError):
        return []
    result: list[Range] = []
    for each in found:
        if each.length >= MIN_RANGE and each.start >= (result[-1].end if result else 0) and each.end <= len(data):
            result.append(each)
    return result


_FLOAT32, _FLOAT16, _INT32, _UINT8, _INT64, _INT16, _INT8, _FLOAT64 = 0, 1, 2, 3, 4, 7, 9, 10
_WIDE_TYPES = {_FLOAT32: (4, 23), _FLOAT16: (2, 10), _INT32: (4, 0), _INT64: (8, 0), _INT16: (2, 0), _FLOAT64: (8, 52),
               12: (8, 0), 15: (4, 0), 16: (2, 0)}  # fmt: skip


def _tensors(data: bytes) -> Iterator[Range]:
    """Walks the flatbuffer by the schema's field numbers; reads beyond the file raise struct.error."""
    model = _offset(data, 0)
    buffers = list(_vector_of_tables(data, model, 4))
    for graph_index, graph in enumerate(_vector_of_tables(data, model, 2)):
        for index, tensor in enumerate(_vector_of_tables(data, graph, 0)):
            type_ = _scalar(data, tensor, 1, "<b")
            name_at, name_bytes = _vector(data, tensor, 3, 1)
            name = data[name_at : name_at + name_bytes]
            quantization = _table(data, tensor, 4)
            scales: tuple[float, ...] = ()
            zero = 0
            if quantization:
                for field, width, kind in ((0, 4, _FLOAT32), (1, 4, _FLOAT32), (2, 4, _FLOAT32), (3, 8, _INT64)):
                    at, count = _vector(data, quantization, field, width)
                    if count:
                        yield Range(at, count * width, _keys(field, graph_index, index, name), kind)
                at, count = _vector(data, quantization, 2, 4)
                if count > 1 and _scalar(data, quantization, 6, "<i") == 0:
                    scales = struct.unpack_from(f"<{count}f", data, at)
                at, count = _vector(data, quantization, 3, 8)
                if count == 1 and type_ == _UINT8:
                    zero = struct.unpack_from("<q", data, at)[0] & 255
            buffer = _scalar(data, tensor, 2, "<I")
            if 0 < buffer < len(buffers):
                at, count = _vector(data, buffers[buffer], 0, 1)
                if count:
                    yield Range(at, count, _keys("data", graph_index, index, name), type_, scales, zero)


def _keys(field: object, graph: int, index: int, name: bytes) -> tuple[tuple[object, ...], ...]:
    """A tensor is found by its name, which survives retraining, else by its place."""
    return (field, graph, name), (field, graph, index, "place")


def _offset(data: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a table lies; 0 when it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0 or 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    within = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + within if within else 0


def _scalar(data: bytes, table: int, number: int, format_: str) -> int:
    at = _field(data, table, number)
    return int(struct.unpack_from(format_, data, at)[0]) if at else 0


def _table(data: bytes, table: int, number: int) -> int:
    at = _field(data, table, number)
    return _offset(data, at) if at else 0


def _vector(data: bytes, table: int, number: int, width: int) -> tuple[int, int]:
    """Where its elements begin, and how many there are."""
    at = _field(data, table, number)
    if not at:
        return 0, 0
    start = _offset(data, at)
    count = struct.unpack_from("<I", data, start)[0]
    if start + 4 + count * width > len(data):
        raise IndexError
    return start + 4, count


def _vector_of_tables(data: bytes, table: int, number: int) -> Iterator[int]:
    start, count = _vector(data, table, number, 4)
    return (_offset(data, start + 4 * index) for index in range(count))


# Which way is smallest


def _best(base: bytes, content: bytes, new: Range, old: Range | None) -> Op:
    """The operation that codes a range in the fewest bytes, found by trying them on a sample."""
    size = len(content)
    source = base[old.start : old.end] if old else b""
    if old and source == content:
        return Op(COPY, size, old.start)
    tries: list[tuple[Op, bytes]] = []  # and the base as the model will see it

    def attempt(op: Op, seen: bytes | None = None) -> None:
        tries.append((op, source if seen is None else seen))

    nothing = bytes(size)
    skip = bool(old) and _blocks_changed(source, content) < 0.5
    at = old.start if old else None
    if new.type in (_INT8, _UINT8):
        gains = _gains(size, old.scales, new.scales) if old else ()
        for by in (delta.BY_NOTHING, delta.BY_HISTORY, delta.BY_VALUE):
            if by != delta.BY_VALUE:
                attempt(Op(INT8, size, None, by=by, zero=new.zero), nothing)
            if old:
                op = Op(INT8, size, at, by=by, skip=skip, zero=new.zero)
                attempt(op)
                if gains:
                    op = op._replace(run=size // len(gains), gains=gains)
                    attempt(op, delta.scaled(source, op))
    elif new.type in _WIDE_TYPES:
        width, float_bits = _WIDE_TYPES[new.type]
        attempt(Op(RAW, size, None, width), nothing)
        if old:
            attempt(Op(RAW, size, at, width, skip=skip))
        for bits in {float_bits, 0} if size % width == 0 else ():
            attempt(Op(WIDE, size, None, width, float_bits=bits), nothing)
            if old:
                attempt(Op(WIDE, size, at, width, skip=skip, float_bits=bits))
    else:
        attempt(Op(RAW, size, None), nothing)
        if old:
            attempt(Op(RAW, size, at, skip=skip))
    return min(tries, key=lambda each: _trial(each[0], each[1], content))[0]


def _trial(op: Op, base: bytes, content: bytes) -> float:
    """Bytes that `op` takes, from a sample of what it codes and with models that know nothing yet."""
    contexts = Contexts()
    bit, finish = encoder(contexts)
    stream = Stream(bit, contexts, delta.MAX_SIZE, delta.MAX_SIZE)
    stream.op(op)
    told = len(finish())
    bit, finish = encoder(contexts)
    stream = Stream(bit, contexts, delta.MAX_SIZE, delta.MAX_SIZE)
    code = stream.content(op._replace(gains=(), run=0))
    done = 0
    parts = -(-min(len(content), _SAMPLE) // _PLACE)
    for part in range(parts):
        start = len(content) * part // parts & -BLOCK
        chunk = bytearray(content[start : start + _PLACE])
        code(base[start : start + _PLACE], chunk)
        done += len(chunk)
    return told + len(finish()) * len(content) / done


def _blocks_changed(old: bytes, new: bytes) -> float:
    """Share of the blocks of BLOCK bytes that differ."""
    changed = np.frombuffer(old, np.uint8) != np.frombuffer(new, np.uint8)
    return float(np.logical_or.reduceat(changed, range(0, len(changed), BLOCK)).mean())


def _gains(size: int, old: Sequence[float], new: Sequence[float]) -> tuple[int, ...]:
    """How much every channel's values grow when its scale changes; empty where it does not, or cannot be told."""
    channels = len(new)
    if not channels or len(old) != channels or size % channels or size // channels < MIN_GAIN_RUN:
        return ()
    with np.errstate(all="ignore"):
        ratios = np.asarray(old, np.float64) / np.asarray(new, np.float64)
    if channels > delta.MAX_RUNS or not np.isfinite(ratios).all() or np.abs(ratios).max() > 64:
        return ()
    gains = tuple(int(g) for g in np.rint(ratios * ONE))
    return gains if any(g != ONE for g in gains) else ()


# Everything that is no tensor


class _Rest:
    """Finds parts of the base that resemble parts of the target."""

    def __init__(self, base: bytes, tensors: list[Range]) -> None:
        self._base = base
        self._bytes = np.frombuffer(base, np.uint8)
        places = np.ones(max(0, len(base) - _SEED + 1), bool)
        for each in tensors:
            places[each.start : each.end] = False
        self._places = np.flatnonzero(places)
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    def ops(self, target: bytes, start: int, end: int, expected: int) -> Iterator[Op]:
        """Operations for ``target[start:end]``; most likely the base goes on at `expected`."""
        content = np.frombuffer(target, np.uint8)[start:end]
        there = self._bytes[expected : expected + len(content)]
        if len(there) == len(content) and (there == content).mean() > 0.5:
            yield self._op(content, expected)
            return
        emit = partial(self._split, content)
        seeds = self._seeds(content)
        done = at = 0
        while at < len(content):
            following = np.flatnonzero(seeds[at:] >= 0)
            if not len(following):
                break
            at += int(following[0])
            place = int(seeds[at])
            before, after = self._grow(content, at, place, done)
            if before + after < _MIN_MATCH:
                at += 1
                continue
            yield from emit(done, at - before, None)
            yield from emit(at - before, at + after, place - before)
            done = at = at + after
        yield from emit(done, len(content), None)

    def _split(self, content: Bytes, start: int, end: int, place: int | None) -> Iterator[Op]:
        if end > start:
            yield self._op(content[start:end], place)

    def _op(self, content: Bytes, place: int | None) -> Op:
        size = len(content)
        if place is None:
            return Op(RAW, size, None, 4 if size >= 1024 else 1)
        there = self._bytes[place : place + size]
        if bool((there == content).all()):
            return Op(COPY, size, place)
        return Op(RAW, size, place, skip=size > BLOCK and _blocks_changed(there.tobytes(), content.tobytes()) < 0.9)

    def _seeds(self, content: Bytes) -> NDArray[np.int64]:
        """For every byte, where in the base the same _SEED bytes begin; -1: nowhere."""
        seeds = np.full(len(content), -1, np.int64)
        if len(content) < _SEED or not len(self._places):
            return seeds
        if self._sorted is None:
            values = _windows(self._bytes)[self._places]
            order = np.argsort(values, kind="stable")
            self._sorted = values[order], self._places[order]
        values, places = self._sorted
        wanted = _windows(content)
        found = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
        seeds[: len(wanted)] = np.where(values[found] == wanted, places[found], -1)
        return seeds

    def _grow(self, content: Bytes, at: int, place: int, floor: int) -> tuple[int, int]:
        """How many bytes before and after resemble each other: as long as more are equal than not."""
        after = _resembling(content[at:], self._bytes[place:])
        size = min(at - floor, place)
        before = _resembling(content[at - size : at][::-1], self._bytes[place - size : place][::-1])
        return before, after


def _resembling(one: Bytes, other: Bytes) -> int:
    best = 0
    while True:
        size = min(len(one) - best, len(other) - best, _WINDOW)
        if size <= 0:
            return best
        score = np.cumsum(np.where(one[best : best + size] == other[best : best + size], 1, -2))
        top = int(score.argmax())
        if score[top] <= 0:
            return best
        best += top + 1
        if top + 1 < size:
            return best


def _windows(data: Bytes) -> NDArray[np.uint64]:
    """The _SEED bytes from every place on, as one number."""
    view = np.lib.stride_tricks.sliding_window_view(data, _SEED)
    return np.ascontiguousarray(view).view("<u8")[:, 0]
