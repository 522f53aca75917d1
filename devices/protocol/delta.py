"""
The delta of two files: a header, then operations in one range-coded stream.

Header: magic, the first 4 bytes of the base's SHA-256 (tells a wrong base apart early), the first 16 of the target's
(what counts; the store compares all 32, which the request names), the target's size.  Then operations until the
target is whole.  Each makes the next `length` bytes of it:

    COPY      the same bytes, of the base
    INT8      byte tensors: the difference to the base byte by byte, and whether an element became zero
    WIDE      elements of 2, 4 or 8 bytes, little endian: the difference of the numbers
    RAW       any bytes: hits and misses against the base, or literal

An operation may have no base (it is then predicted from nothing), and INT8 may scale its base by a gain per run of
bytes: a retrained layer has new scales per channel, and all its weights move in proportion.  Nothing here knows what a
model is; the host's encoder does, and chooses ranges and kinds.

The models below are written once, for both directions: see `rangecoder`.  History of `VERSION`:

    1   first
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from typing import Callable, NamedTuple

from devices.protocol.rangecoder import Bit, Contexts

VERSION = 1
MAX_SIZE = (1 << 32) - 1
MAX_RUNS = 1 << 16
CHUNK = 256  # bytes that are coded at once, a multiple of every width and of BLOCK; the decoder holds some five
BLOCK = 64
_GROWTH = 16

COPY, INT8, WIDE, RAW = range(4)
BY_NOTHING, BY_HISTORY, BY_VALUE = range(3)
WIDTHS = (1, 2, 4, 8)
GAIN_BITS = 12
ONE = 1 << GAIN_BITS

_HEADER = struct.Struct("<2sB4s16sI")
_MAGIC = b"\xdeT"
HEADER_BYTES = _HEADER.size


class Header(NamedTuple):
    base: bytes  # first 4 bytes of its SHA-256
    target: bytes  # first 16 bytes of its SHA-256
    target_bytes: int

    @classmethod
    def of(cls, base: bytes, target: bytes) -> Header:
        return cls(hashlib.sha256(base).digest()[:4], hashlib.sha256(target).digest()[:16], len(target))

    def to_bytes(self) -> bytes:
        return _HEADER.pack(_MAGIC, VERSION, *self)


def parse_header(data: bytes) -> Header:
    """
    Raises:
        ValueError: no delta, or of another version.
    """
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise ValueError("not a delta")
    _, version, base, target, target_bytes = _HEADER.unpack_from(data)
    if version != VERSION:
        raise ValueError(f"delta format {version}; this is {VERSION}")
    return Header(base, target, target_bytes)


class Op(NamedTuple):
    """
    Attributes:
        kind: COPY, INT8, WIDE or RAW.
        length: bytes of the target it makes, >= 1.
        base: where its base begins; None without one.
        width: bytes of an element.
        by: INT8: what predicts a change, see `_int8`.
        skip: first tell of every BLOCK bytes whether any differs.
        zero: INT8: the byte that stands for zero.
        float_bits: WIDE: bits below the exponent; 0 for integers.
        run, gains: INT8: `gains[i]` / ONE scales the i-th run of `run` bytes of the base.
    """

    kind: int
    length: int
    base: int | None
    width: int = 1
    by: int = 0
    skip: bool = False
    zero: int = 0
    float_bits: int = 0
    run: int = 0
    gains: tuple[int, ...] = ()


Content = Callable[[bytes, bytearray], None]
Model = tuple[Content, Callable[[], None]]  # and what it does about a block that was left out
Trees = tuple[Callable[[int], int], Callable[[int, int, int], int]]  # see `_trees`


class Stream:
    """
    One stream of operations; all models adapt through the whole of it.

    Args:
        bit: of the encoder or the decoder.
        base_bytes, target_bytes: bound what operations may say.
    """

    def __init__(self, bit: Bit, contexts: Contexts, base_bytes: int, target_bytes: int) -> None:
        self._bit = bit
        self._contexts = contexts
        self._base_bytes = base_bytes
        self._left = target_bytes
        self._expected = 0  # where the base of the next operation most likely begins
        self._numbers: dict[str, int] = {}
        self._kind = 0
        self._kinds = contexts.take(4 * 4)
        self._trees = _trees(bit, contexts)
        self._models: dict[tuple[int, ...], Content] = {}

    def op(self, op: Op) -> Op:
        """
        Code an operation, without its content.

        Raises:
            ValueError: (decoding) it does not fit.
        """
        kinds = self._kinds + 4 * self._kind
        kind = self._bit(kinds + 1, op.kind >> 1)
        kind = kind << 1 | self._bit(kinds + 2 + kind, op.kind & 1)
        self._kind = kind
        length = 1 + self._number("length", op.length - 1)
        if length > self._left:
            raise ValueError(f"{length} bytes where {self._left} are left")
        base: int | None = None
        if kind == COPY or self._flag("based", op.base is not None):
            base = self._expected + self._signed("moved", (op.base or 0) - self._expected)
            if not 0 <= base <= self._base_bytes - length:
                raise ValueError(f"{length} bytes at {base} of a base of {self._base_bytes}")
        width, by, skip, zero, float_bits, run, gains = 1, 0, False, 0, 0, 0, op.gains
        if kind == INT8:
            by = self._flag("by something", op.by != BY_NOTHING) and 1 + self._flag("by value", op.by == BY_VALUE)
            zero = self._byte(op.zero) if self._flag("zero", op.zero != 0) else 0
            if base is not None and self._flag("gains", bool(gains)):
                run = 1 + self._number("run", op.run - 1)
                gains = self._gains(-(-length // run), gains)
        elif kind != COPY:
            power = self._flag("width 4 or 8", op.width >= 4) << 1
            power |= self._flag("width 2 or 8" if power == 0 else "width 8", op.width in (2, 8))
            width = WIDTHS[power]
            if kind == WIDE:
                if width == 1 or length % width:
                    raise ValueError(f"{length} bytes in elements of {width}")
                if self._flag("float", op.float_bits != 0):
                    float_bits = {2: 10, 4: 23, 8: 52}[width]
        if kind != COPY and base is not None:
            skip = self._flag("skip", op.skip)
        self._left -= length
        self._expected = (self._expected if base is None else base) + length
        return Op(kind, length, base, width, by, skip, zero, float_bits, run, gains if run else ())

    def content(self, op: Op) -> Content:
        """
        ``code(base, out)``: codes `out` against as many bytes of the base, in place (the decoder fills it).

        Called with chunk after chunk, each of CHUNK bytes but the last.
        """
        if op.kind == INT8:
            code = self._model(_int8, op.skip, INT8, op.by, op.base is not None)
            return _translated(code, op)
        if op.kind == WIDE:
            return self._model(_wide, op.skip, WIDE, op.width, op.float_bits)
        return self._model(_raw, op.skip, RAW, op.width, op.base is not None)

    def _model(self, make: Callable[..., Model], skip: bool, *key: int) -> Content:
        key += (skip,)
        if key not in self._models:
            code, passed = make(self._bit, self._contexts, self._trees, *key[1:-1])
            self._models[key] = _skipping(self._bit, self._contexts, code, passed) if skip else code
        return self._models[key]

    # Numbers

    def _flag(self, name: str, value: bool) -> bool:
        return bool(self._bit(self._named(name, 1), value))

    def _byte(self, value: int) -> int:
        first = self._named("byte", 256)
        node = 1
        for at in range(7, -1, -1):
            node = node << 1 | self._bit(first + node, value >> at & 1)
        return node & 255

    def _number(self, name: str, value: int) -> int:
        """A number in [0, 2**33)."""
        first = self._named(name, 2 * 34)
        value += 1
        bits = 0
        while self._bit(first + bits, value >> (bits + 1) != 0):
            bits += 1
            if bits == 34:
                raise ValueError("a number of more than 34 bits")
        number = 1
        for at in range(bits - 1, -1, -1):
            number = number << 1 | self._bit(first + 34 + at, value >> at & 1)
        return number - 1

    def _signed(self, name: str, value: int) -> int:
        number = self._number(name, abs(value))
        return -number if number and self._flag(name + " sign", value < 0) else number

    def _gains(self, count: int, gains: tuple[int, ...]) -> tuple[int, ...]:
        if count > MAX_RUNS:
            raise ValueError(f"{count} gains")
        result, before = [], ONE
        for at in range(count):
            before += self._signed("gain", gains[at] - before if gains else 0)
            result.append(before)
        return tuple(result)

    def _named(self, name: str, count: int) -> int:
        if name not in self._numbers:
            self._numbers[name] = self._contexts.take(count)
        return self._numbers[name]


def _skipping(bit: Bit, contexts: Contexts, code: Content, passed: Callable[[], None]) -> Content:
    """Tells first of every BLOCK bytes whether any differs, and leaves out those where none does."""
    blocks = contexts.take(2)
    block = 0

    def skipping(base: bytes, out: bytearray) -> None:
        nonlocal block
        for at in range(0, len(out), BLOCK):
            old, part = base[at : at + BLOCK], out[at : at + BLOCK]
            block = bit(blocks + block, old != part)
            if block:
                code(old, part)
                out[at : at + BLOCK] = part
            else:
                out[at : at + BLOCK] = old
                passed()

    return skipping


def _translated(code: Content, op: Op) -> Content:
    """INT8 sees a base that is scaled, and values whose zero is 0."""
    if not op.zero and not op.gains:
        return code
    forth = bytes((byte - op.zero) & 255 for byte in range(256))
    back = bytes((byte + op.zero) & 255 for byte in range(256))
    tables: dict[int, bytes] = {}
    at = 0

    def translated(base: bytes, out: bytearray) -> None:
        nonlocal at
        if op.gains:
            base = scaled(base, op, at, tables)
        if op.base is not None:
            base = base.translate(forth)
        inner = out.translate(forth)
        code(base, inner)
        out[:] = inner.translate(back)
        at += len(out)

    return translated


def scaled(base: bytes, op: Op, at: int = 0, tables: dict[int, bytes] | None = None) -> bytes:
    """`base`, which begins at byte `at` of the operation, times the operation's gains."""
    parts = []
    known: dict[int, bytes] = {} if tables is None else tables
    start = 0
    while start < len(base):
        gain = op.gains[(at + start) // op.run]
        end = min(len(base), start + op.run - (at + start) % op.run)
        table = known.get(gain)
        if table is None:
            if len(known) >= 16:
                known.clear()
            table = known[gain] = _gain_table(gain, op.zero)
        parts.append(base[start:end].translate(table))
        start = end
    return b"".join(parts)


def _gain_table(gain: int, zero: int) -> bytes:
    """Bytes are signed when their zero is 0, else unsigned; either way scaled around zero and kept in range."""
    table = bytearray(256)
    low, high = (-zero, 255 - zero) if zero else (-128, 127)
    for value in range(low, high + 1):
        moved = min(max(value * gain + (ONE >> 1) >> GAIN_BITS, low), high)
        table[(value + zero) & 255] = (moved + zero) & 255
    return bytes(table)


def _trees(bit: Bit, contexts: Contexts) -> Trees:
    """
    Binary trees of contexts, of which only those exist that were met: most never are, in a small model one in ten.

    Returns:
        ``plant(count) -> root``: `count` new trees; the next ones' numbers follow the first's.
        ``grown(root, bits, value) -> value``: codes a number of so many bits, the highest first.
    """
    links = array("H")  # two for each node: the next one's number, 0 where there is none yet
    firsts = array("I")  # the contexts of every _GROWTH nodes follow each other

    def plant(count: int) -> int:
        root = len(links) >> 1
        for _ in range(2 * count):
            links.append(0)
        return root

    def grown(root: int, bits: int, value: int) -> int:
        node = root
        number = 0
        for place in range(bits - 1, -1, -1):
            while node >= len(firsts) * _GROWTH:
                firsts.append(contexts.take(_GROWTH))
            one = bit(firsts[node // _GROWTH] + node % _GROWTH, value >> place & 1)
            number = number << 1 | one
            if place:
                link = 2 * node + one
                node = links[link]
                if not node:
                    node = links[link] = plant(1)
        return number

    return plant, grown


# Models.  What is fixed lies in one tuple: cells of a closure are slower than locals, and larger.

_LENGTH = bytes(min(abs(value if value < 128 else value - 256).bit_length(), 8) for value in range(256))


def _int8(bit: Bit, contexts: Contexts, trees: Trees, by: int, based: bool) -> Model:
    """
    Differences of signed bytes.

    What predicts a change is how much changed lately (a mean of some 16 differences, by octaves) and how large the
    base is; in a layer pruned by magnitude, the base alone; in a small one nothing, as contexts must learn first.
    Then: is it zero now; the sign; the magnitude, as its number of bits and those bits.
    """
    by_value = by == BY_VALUE
    octaves, sizes, rate = (1, 1, 31) if by == BY_NOTHING else (17, 9, 4)
    size_of = bytes(256) if by == BY_NOTHING else _LENGTH
    changes = contexts.take(256 if by_value else octaves * sizes)
    zeros = contexts.take(256 if by_value else 9) if based else 0
    signs = contexts.take(sizes * 2)
    lengths = contexts.take(octaves * 7)
    mantissas = contexts.take(8 * 12)
    fixed = by_value, based, rate, sizes, size_of, changes, zeros, signs, lengths, mantissas
    activity = 0

    def code(base: bytes, out: bytearray) -> None:
        nonlocal activity
        by_value, based, rate, sizes, size_of, changes, zeros, signs, lengths, mantissas = fixed
        mean = activity
        for at in range(len(out)):
            old = base[at]
            new = out[at]
            octave = mean.bit_length()
            context = changes + (old if by_value else octave * sizes + size_of[old])
            if not bit(context, new != old):
                out[at] = old
                mean -= mean >> rate
                continue
            if based and old and bit(zeros + (old if by_value else _LENGTH[old]), new == 0):
                out[at] = 0
                magnitude = 256 - old if old > 127 else old
            else:
                difference = (new ^ 128) - (old ^ 128)
                side = bit(signs + size_of[old] * 2 + (old > 127), difference < 0)
                magnitude = -difference if difference < 0 else difference
                context = lengths + octave * 7
                bits = 0
                while bits < 7 and bit(context + bits, magnitude >> (bits + 1) != 0):
                    bits += 1
                number = 1
                for place in range(bits - 1, -1, -1):
                    context = number if number < 8 else 8 + place
                    number = number << 1 | bit(mantissas + bits * 12 + context, magnitude >> place & 1)
                magnitude = number
                out[at] = old - number & 255 if side else old + number & 255
            mean += magnitude * 256 - mean >> rate
        activity = mean

    def passed() -> None:
        nonlocal activity
        activity = activity * 5 >> 3

    return code, passed


def _wide(bit: Bit, contexts: Contexts, trees: Trees, width: int, float_bits: int) -> Model:
    """
    Differences of little-endian numbers.

    A float's bits are taken as a number; how far they moved goes with the exponent, so the length of the difference
    is told relative to it.
    """
    size_bits = 8 * width
    changes = contexts.take(8)
    signs = contexts.take(2)
    plant, grown = trees
    lengths = plant(1)
    mantissas = plant(size_bits + 1)
    rest = contexts.take(size_bits)
    fixed = width, float_bits, size_bits, changes, signs, lengths, mantissas, rest
    history = 0
    side = 0

    def code(base: bytes, out: bytearray) -> None:
        nonlocal history, side
        width, float_bits, size_bits, changes, signs, lengths, mantissas, rest = fixed
        modulus = 1 << size_bits
        half = modulus >> 1
        for at in range(0, len(out), width):
            old = int.from_bytes(base[at : at + width], "little")
            new = int.from_bytes(out[at : at + width], "little")
            changed = bit(changes + history, new != old)
            history = (history << 1 | changed) & 7
            if changed:
                difference = new - old & modulus - 1
                magnitude = modulus - difference if difference >= half else difference
                side = bit(signs + side, difference >= half)
                exponent = old >> float_bits & 63 if float_bits else 0
                bits = grown(lengths, 7, magnitude.bit_length() + exponent & 127) - exponent & 127
                if not 1 <= bits <= size_bits:
                    raise ValueError(f"a difference of {bits} bits between elements of {size_bits}")
                most = min(bits - 1, 3)
                left = bits - 1 - most
                number = 1 << most | grown(mantissas + bits, most, magnitude >> left & (1 << most) - 1)
                for place in range(left - 1, -1, -1):
                    number = number << 1 | bit(rest + place, magnitude >> place & 1)
                old = (old - number if side else old + number) & modulus - 1
            out[at : at + width] = old.to_bytes(width, "little")

    def passed() -> None:
        nonlocal history
        history = 0

    return code, passed


def _raw(bit: Bit, contexts: Contexts, trees: Trees, width: int, based: bool) -> Model:
    """
    Bytes: the same as in the base, or the difference; without a base they are literal.

    Predicted from their place in an element; literal ones also from the same place of the element before.
    """
    hits = contexts.take(width * 16) if based else 0
    plant, grown = trees
    fixed = width, based, hits, plant(width * 8)
    hit = 0
    recent = bytes(width)  # the element before

    def code(base: bytes, out: bytearray) -> None:
        nonlocal hit, recent
        width, based, hits, first = fixed
        for at in range(len(out)):
            place = at % width
            new = out[at]
            if based:
                old = base[at]
                if not bit(hits + place * 16 + hit, new != old):
                    out[at] = old
                    hit = min(hit + 1, 15)
                    continue
                hit = 0
                out[at] = grown(first + place * 8, 8, new - old & 255) + old & 255
            else:
                before = out[at - width] if at >= width else recent[at - width]
                out[at] = grown(first + place * 8 + (before >> 5), 8, new)
        recent = (recent + bytes(out[-width:]))[-width:]

    return code, lambda: None
