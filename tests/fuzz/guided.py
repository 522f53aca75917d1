"""
A coverage-guided fuzzer in one file: inputs that reach something new are kept, and mutated further.

Coverage is what `sys.settrace` tells of the files that a target names: pairs of lines that followed each other, with
how often, by octaves (the idea and the octaves are AFL's).  One seed, one course of events, as long as the target
itself asks neither clock nor chance.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

Trace = Callable[[FrameType, str, Any], Any]
MAX_BYTES = 2048


@dataclass(frozen=True)
class Target:
    """
    Attributes:
        run: takes any bytes; raises for what must not happen.
        files: ends of the paths whose lines count.
        words: what the mutator puts in, beside chance.
        seeds: inputs to begin with.
    """

    name: str
    run: Callable[[bytes], None]
    files: tuple[str, ...]
    words: tuple[bytes, ...] = ()
    seeds: tuple[bytes, ...] = (b"",)


@dataclass
class Found:
    """
    Attributes:
        inputs: how many were run.
        corpus: those that reached something new, in order.
        reached: pairs of lines, with octaves of how often.
        failure: the input that failed, and how.
    """

    inputs: int = 0
    corpus: list[bytes] = field(default_factory=list)
    reached: set[tuple[int, int, int, int]] = field(default_factory=set)
    failure: tuple[bytes, Exception] | None = None


def fuzz(target: Target, inputs: int, seed: int, corpus: Iterable[bytes] = (), until: float | None = None) -> Found:
    """
    Run `corpus`, the target's seeds, and then mutations, until one fails.

    Args:
        until: end at this time (`time.monotonic`), however many were run.
    """
    rng = random.Random(seed)
    found = Found()
    start = [*target.seeds, *corpus]
    coverage = Coverage(target.files)
    while found.inputs < inputs and (until is None or time.monotonic() < until):
        data = start.pop() if start else mutated(rng, found.corpus or [b""], target.words)
        found.inputs += 1
        try:
            reached = coverage.of(target.run, data)
        except Exception as error:
            found.failure = data, error
            break
        if not reached <= found.reached:
            found.reached |= reached
            found.corpus.append(data)
    return found


def smallest(target: Target, corpus: Sequence[bytes]) -> list[bytes]:
    """Inputs that reach together what all of `corpus` reaches; short ones first."""
    coverage = Coverage(target.files)
    kept: list[bytes] = []
    reached: set[tuple[int, int, int, int]] = set()
    for data in sorted(corpus, key=len):
        more = coverage.of(target.run, data)
        if not {(code, *pair) for code, *pair, _ in more} <= {(code, *pair) for code, *pair, _ in reached}:
            kept.append(data)
            reached |= more
    return kept


class Coverage:
    """What a call reached in some files."""

    def __init__(self, files: tuple[str, ...]) -> None:
        self._files = files
        self._known: dict[CodeType, int] = {}  # number of a code object that counts, or -1

    def of(self, run: Callable[[bytes], None], data: bytes) -> set[tuple[int, int, int, int]]:
        """Pairs of lines as (code object, line, next line, octave of how often)."""
        counts: dict[tuple[int, int, int], int] = {}
        known, files = self._known, self._files

        def enter(frame: FrameType, event: str, argument: Any) -> Trace | None:
            code = frame.f_code
            number = known.get(code)
            if number is None:
                number = known[code] = len(known) if code.co_filename.endswith(files) else -1
            if number < 0:
                return None
            last = 0

            def line(frame: FrameType, event: str, argument: Any) -> Trace:
                nonlocal last
                if event == "line":
                    pair = (number, last, frame.f_lineno)
                    counts[pair] = counts.get(pair, 0) + 1
                    last = frame.f_lineno
                return line

            return line

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            run(data)
        finally:
            sys.settrace(before)
        return {(*pair, count.bit_length()) for pair, count in counts.items()}


_TELLING = (0, 1, 2, 7, 15, 16, 31, 32, 63, 64, 127, 128, 254, 255)


def mutated(rng: random.Random, corpus: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One of the inputs, changed in a few places; newer ones are chosen more often."""
    size = len(corpus)
    data = bytearray(corpus[size - 1 - int(size * rng.random() ** 2)])
    for _ in range(1 << rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(16 * rng.random() ** 3))
        way = rng.randrange(8)
        if way == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1 and at < len(data):
            data[at] = rng.choice(_TELLING)
        elif way == 2 and at < len(data):
            data[at] = data[at] + rng.randint(-8, 8) & 255
        elif way == 3:
            del data[at:end]
        elif way == 4:
            data[at:at] = data[at:end] or rng.randbytes(1)
        elif way == 5:
            data[at:at] = rng.randbytes(rng.randint(1, 4))
        elif way == 6 and words:
            word = rng.choice(words)
            data[at : at + (len(word) if rng.random() < 0.5 else 0)] = word
        else:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            data[at:] = other[start:]
    return bytes(data[:MAX_BYTES])
