"""
An adaptive binary range coder: bits in and out, each predicted from what its context has seen before.

Both directions are functions ``bit(context, value) -> bit``.  The encoder codes `value`; the decoder ignores it and
answers what was coded.  So a model of the data is written once, for both, and they cannot drift apart::

    if bit(CHANGED, new != old):      # the decoder's `new` is not known yet; its answer is what counts
        ...

Probabilities have 22 bits and move by 1/(n + 1.5) on the n-th use, down to 1/(LIMIT + 1.5): exact counting at first,
then slow forgetting.  All numbers stay below 2**30, which CPython computes without multi-digit arithmetic.

What limits the decoder is the interpreter, some 0.3 us per bit; hence closures over locals and no classes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Callable, Protocol

LIMIT = 254
_ONE = 1 << 22
_RENORMALIZE = 1 << 22  # the range is in [2**22, 2**30) whenever a bit is coded
_START = 1 << 24
_DIVISORS = [2 * (LIMIT - left) + 3 for left in range(LIMIT + 1)]
_FRESH = _ONE >> 1 << 8 | LIMIT


class Bit(Protocol):
    """Code one bit in a context; see the module."""

    def __call__(self, context: int, value: int, /) -> int: ...


class Contexts:
    """
    The states of all contexts of one stream: a probability of 22 bits, and 8 that count down to the slowest rate.

    Four bytes each; a list would keep an object of 28 for every number.
    """

    def __init__(self) -> None:
        self.states = array("i")

    def take(self, count: int) -> int:
        """Make `count` fresh contexts; returns the first one's number."""
        first = len(self.states)
        for _ in range(count):
            self.states.append(_FRESH)
        return first


def encoder(contexts: Contexts) -> tuple[Bit, Callable[[], bytes]]:
    """``bit`` to code with, and ``finish`` that returns all bytes."""
    states, divisors = contexts.states, _DIVISORS
    out = bytearray()
    low = 0
    span = _START

    def bit(context: int, value: int, /) -> int:
        nonlocal low, span
        state = states[context]
        p = state >> 8
        n = state & 255
        bound = (span >> 15) * (p >> 7 | 1)
        if value:
            low += bound
            span -= bound
            p -= (p << 1) // divisors[n]
        else:
            span = bound
            p += (_ONE - p << 1) // divisors[n]
        states[context] = p << 8 | (n and n - 1)
        while span < _RENORMALIZE:
            shift()
            span <<= 8
        return 1 if value else 0

    def shift() -> None:
        """Move the top byte of `low` out; what is above it is a carry into bytes that are out already."""
        nonlocal low
        carry = low >> 24
        at = len(out) - 1
        while carry:
            carry += out[at]
            out[at] = carry & 255
            carry >>= 8
            at -= 1
        out.append(low >> 16 & 255)
        low = (low & 0xFFFF) << 8

    def finish() -> bytes:
        for _ in range(3):
            shift()
        return bytes(out)

    return bit, finish


def decoder(contexts: Contexts, source: Iterator[int]) -> Bit:
    """
    ``bit`` that reads from `source`.

    Raises:
        ValueError: (so does ``bit``) the bytes end too early.
    """
    states, divisors = contexts.states, _DIVISORS
    span = _START
    code = 0

    def take() -> int:
        for byte in source:
            return byte
        raise ValueError("it ends too early")

    for _ in range(3):
        code = code << 8 | take()

    def bit(context: int, value: int, /) -> int:
        nonlocal code, span
        state = states[context]
        p = state >> 8
        n = state & 255
        bound = (span >> 15) * (p >> 7 | 1)
        if code < bound:
            span = bound
            p += (_ONE - p << 1) // divisors[n]
            value = 0
        else:
            code -= bound
            span -= bound
            p -= (p << 1) // divisors[n]
            value = 1
        states[context] = p << 8 | (n and n - 1)
        while span < _RENORMALIZE:
            code = code << 8 | take()
            span <<= 8
        return value

    return bit
