"""Two ends of a connection and a line between them, in simulated time: one seed, one course of events."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from devices.protocol.arq import Connection, Splitter

Fault = Callable[[random.Random, bytes], bytes]


def byte_errors(rate: float) -> Fault:
    """Flips, drops, inserts and doubles single bytes, each as often."""

    def damage(rng: random.Random, data: bytes) -> bytes:
        out = bytearray()
        for byte in data:
            if rng.random() >= rate:
                out.append(byte)
                continue
            fate = rng.randrange(4)
            if fate == 0:
                out.append(byte ^ 1 << rng.randrange(8))
            elif fate == 1:
                out += bytes((byte, rng.randrange(256)))
            elif fate == 2:
                out += bytes((byte, byte))
        return bytes(out)

    return damage


@dataclass
class Line:
    """
    A line: `baud` 8N1, `latency_s` each way, its damage, and spans of time in which nothing arrives.

    Attributes:
        ends: host and board; `got` is what each has read so far.
    """

    baud: int = 115_200
    latency_s: float = 0.001
    fault: Fault = lambda rng, data: data
    cuts: tuple[tuple[float, float], ...] = ()
    seed: int = 0
    read: bool = True
    now: float = 100.0
    got: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self.ends = (Connection(7, True, self.now), Connection(7, False, self.now))
        self._splitters = (Splitter(), Splitter())
        self._free = [self.now, self.now]
        self._events: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self.sent = [0, 0]

    def run(self, until: Callable[[], bool], limit_s: float) -> float:
        """Let time pass until the condition holds; returns how much did."""
        started = self.now
        self._pump(0)
        self._pump(1)
        while not until():
            due = min(end.deadline() for end in self.ends)
            if self._events and self._events[0][0] <= due:
                self.now, _, to, data = heapq.heappop(self._events)
                for body in self._splitters[to].feed(data):
                    self.ends[to].receive(body, self.now)
                self._pump(to)
            else:
                self.now = max(self.now, due)
                self._pump(0)
                self._pump(1)
            if self.now - started > limit_s:
                raise TimeoutError(f"not in {limit_s} s")
        return self.now - started

    def _pump(self, end: int) -> None:
        if self.read:
            self.got[end].extend(self.ends[end].read())
        data = self.ends[end].transmit(self.now)
        self.sent[end] += len(data)
        to = 1 - end
        for at in range(0, len(data), 16):
            piece = data[at : at + 16]
            self._free[end] = max(self._free[end], self.now) + len(piece) * 10 / self.baud
            if any(a <= self._free[end] < b for a, b in self.cuts):
                continue
            self._count += 1
            piece = self.fault(self._rng, piece)
            heapq.heappush(self._events, (self._free[end] + self.latency_s, self._count, to, piece))
