"""
A serial line: two ptys, and a process of its own between them that carries bytes as slowly as a UART does.

Each direction has 10 bits for a byte (8N1), a latency, and byte errors (a quarter each flipped, lost, inserted and
doubled).  ``Line.tell`` changes it while it runs: ``cut``, ``restore``, ``errors 1e-3``, ``log TEXT`` (a kernel message
that the board's side writes in between), ``cuts COUNT BYTES SECONDS`` (so many cuts, each so long, with so many bytes
of the host in between); `Line.counts` says what it has done.

Real: ptys, their line discipline, timing to about a millisecond.  Not real: UART overruns, break, parity, and the
rate that a program sets (the line has its own).
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import select
import subprocess
import sys
import time
import tty
from types import TracebackType

AHEAD = 512  # bytes taken from a sender before they are on the wire, as a driver does


class Line:
    """
    The line, running; `host` and `board` are the paths of its two ends.
    """

    def __init__(self, baud: int = 115_200, latency_s: float = 0.001, errors: float = 0.0, seed: int = 0) -> None:
        options = ["--baud", str(baud), "--latency-s", str(latency_s), "--errors", str(errors), "--seed", str(seed)]
        self._process = subprocess.Popen(
            [sys.executable, "-S", __file__, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.host, self.board = self._process.stdout.readline().split()

    def tell(self, command: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def counts(self) -> dict[str, int]:
        """Cuts, kernel messages, and bytes that were flipped, lost, inserted and doubled, so far."""
        self.tell("counts")
        assert self._process.stdout
        told: dict[str, int] = json.loads(self._process.stdout.readline())
        return told

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Direction:
    def __init__(
        self, source: int, sink: int, options: argparse.Namespace, seed: int, counts: collections.Counter[str]
    ) -> None:
        self.source, self.sink = source, sink
        self.carried = 0
        self._counts = counts
        self._byte_s = 10 / options.baud
        self._latency_s = options.latency_s
        self._rng = random.Random(seed)
        self._waiting: collections.deque[tuple[float, bytes]] = collections.deque()  # when its last bit is out
        self._free = 0.0
        self._flying: collections.deque[tuple[float, bytes]] = collections.deque()

    def room(self) -> int:
        return AHEAD - sum(len(data) for _, data in self._waiting)

    def take(self, data: bytes, now: float) -> None:
        for at in range(0, len(data), 16):
            piece = data[at : at + 16]
            self._free = max(self._free, now) + len(piece) * self._byte_s
            self._waiting.append((self._free, piece))

    def due(self) -> float:
        times = [queue[0][0] for queue in (self._waiting, self._flying) if queue]
        return min(times, default=float("inf"))

    def step(self, now: float, errors: float, cut: bool) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            at, piece = self._waiting.popleft()
            self.carried += len(piece)
            if not cut:
                self._flying.append((at + self._latency_s, self._damage(piece, errors)))
        while self._flying and self._flying[0][0] <= now:
            try:
                os.write(self.sink, self._flying.popleft()[1])
            except BlockingIOError:
                pass  # an overrun

    def _damage(self, data: bytes, errors: float) -> bytes:
        if not errors:
            return data
        out = bytearray()
        for byte in data:
            if self._rng.random() >= errors:
                out.append(byte)
                continue
            fate = self._rng.choice(("flipped", "lost", "inserted", "doubled"))
            self._counts[fate] += 1
            if fate == "flipped":
                out.append(byte ^ 1 << self._rng.randrange(8))
            elif fate != "lost":
                out += bytes((byte, byte if fate == "doubled" else self._rng.randrange(256)))
        return bytes(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--baud", type=int)
    parser.add_argument("--latency-s", type=float)
    parser.add_argument("--errors", type=float)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    ends = [os.openpty() for _ in range(2)]
    for master, slave in ends:
        tty.setraw(slave)
        os.set_blocking(master, False)
    sys.stdout.write(" ".join(os.ttyname(slave) for _, slave in ends) + "\n")
    sys.stdout.flush()
    host, board = ends[0][0], ends[1][0]
    counts: collections.Counter[str] = collections.Counter()
    there = _Direction(host, board, options, options.seed, counts)
    back = _Direction(board, host, options, options.seed + 1, counts)
    errors, cut, commands = options.errors, False, b""
    cuts, every, cut_s, next_cut, restored = 0, 0, 0.0, 0, float("inf")
    while True:
        now = time.monotonic()
        if now >= restored:
            cut, restored, next_cut = False, float("inf"), there.carried + every
        elif cuts and not cut and there.carried >= next_cut:
            cut, restored, cuts = True, now + cut_s, cuts - 1
            counts["cuts"] += 1
        for direction in (there, back):
            direction.step(now, errors, cut)
        wait = max(0.0, min(there.due(), back.due(), restored) - time.monotonic())
        sources = [direction.source for direction in (there, back) if direction.room() > 0]
        readable, _, _ = select.select([*sources, 0], [], [], min(wait, 1.0))
        now = time.monotonic()
        for direction in (there, back):
            if direction.source in readable:
                try:
                    direction.take(os.read(direction.source, direction.room()), now)
                except OSError:
                    pass
        if 0 in readable:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, commands = (commands + data).split(b"\n")
            for line in lines:
                word, _, rest = line.decode().partition(" ")
                if word in ("cut", "restore"):
                    cut = word == "cut"
                    counts["cuts"] += cut
                elif word == "errors":
                    errors = float(rest)
                elif word == "log":
                    back.take(rest.encode() + b"\r\n", now)
                    counts["kernel messages"] += 1
                elif word == "cuts":
                    count, size, seconds = rest.split()
                    cuts, every, cut_s, next_cut = int(count), int(size), float(seconds), there.carried + int(size)
                elif word == "counts":
                    sys.stdout.write(json.dumps(counts) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
