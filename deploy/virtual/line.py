"""
A serial line with a pty at the host's end: a process of its own that carries bytes as a UART would.

Each direction has 10 bits for a byte (8N1), a latency, and byte errors (a quarter each flipped, lost, inserted and
doubled).  Commands on standard input change it while it runs: ``cut``, ``restore``, ``errors 1e-3``, ``log TEXT`` (a
kernel message that the board's side writes in between), ``cuts COUNT BYTES SECONDS`` (so many cuts, each so long, with
so many bytes of the host in between), ``unplug`` (the host's adapter goes) and ``plug`` (it comes back as another pty,
whose path is the answer), and ``counts``, answered with a JSON line on what it has done.  It ends when standard input
does.

Real: ptys, their line discipline, timing to about a millisecond.  Not real: UART overruns, break, parity, and the
rate that a program sets (the line has its own).

It runs as a script and needs the standard library alone, as a board has several of them::

    line.py --baud 115200 --latency-s 0.001 --errors 0 --seed 0 [--board-fd 5]

It prints the path of the host's end; without --board-fd, which is a socket, also that of a second pty, the board's.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import random
import select
import time
import tty

AHEAD = 512  # bytes taken from a sender before they are on the wire, as a driver does
AHEAD_UNPACED = 65536
UNREAD_S = 0.5  # of patience with whoever reads an unpaced line; nobody may, and then the board must go on


class Direction:
    """
    One way.

    Args:
        source, sink: file descriptors that do not block.
        baud: bits a second; 0 for a line that does not pace.
        counts: of bytes that were flipped, lost, inserted and doubled.
    """

    def __init__(
        self, source: int, sink: int, baud: float, latency_s: float, seed: int, counts: collections.Counter[str]
    ) -> None:
        self.source, self.sink, self.baud = source, sink, baud
        self.carried = 0  # bytes that were on the wire
        self._counts = counts
        self._latency_s = latency_s
        self._rng = random.Random(seed)
        self._waiting: collections.deque[tuple[float, bytes]] = collections.deque()  # when its last bit is out
        self._free = 0.0
        self._flying: collections.deque[tuple[float, bytes]] = collections.deque()
        self._taken = 0.0
        self.stuck = False  # the sink takes nothing now

    def room(self) -> int:
        ahead = AHEAD if self.baud else AHEAD_UNPACED
        queued = sum(len(data) for queue in (self._waiting, self._flying if self.stuck else ()) for _, data in queue)
        return max(0, ahead - queued)

    def take(self, data: bytes, now: float) -> None:
        step = 16 if self.baud else len(data)
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            self._free = max(self._free, now) + (len(piece) * 10 / self.baud if self.baud else 0)
            self._waiting.append((self._free, piece))

    def due(self) -> float:
        queues = (self._waiting,) if self.stuck else (self._waiting, self._flying)
        return min((queue[0][0] for queue in queues if queue), default=math.inf)

    def step(self, now: float, errors: float, cut: bool, patience_s: float) -> None:
        """
        Move on what is due.

        Args:
            patience_s: how long to keep what the sink does not take; what it has not taken by then is lost, an overrun,
                and so is all that follows until it takes something again.
        """
        while self._waiting and self._waiting[0][0] <= now:
            at, piece = self._waiting.popleft()
            self.carried += len(piece)
            if not cut:
                self._flying.append((at + self._latency_s, self._damaged(piece, errors)))
        self.stuck = False
        while self._flying and self._flying[0][0] <= now:
            at, piece = self._flying.popleft()
            try:
                written = os.write(self.sink, piece)
            except BlockingIOError:
                written = 0
            except OSError:
                continue  # nobody is there
            if written:
                self._taken = now
            if written < len(piece) and now - self._taken < patience_s:
                self._flying.appendleft((at, piece[written:]))
                self.stuck = True
                return

    def _damaged(self, data: bytes, errors: float) -> bytes:
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
    parser.add_argument("--baud", type=float, default=0)
    parser.add_argument("--latency-s", type=float, default=0)
    parser.add_argument("--errors", type=float, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--board-fd", type=int)
    options = parser.parse_args()
    host, host_end = _pty()
    ends = [host_end]
    board = options.board_fd
    if board is None:
        board, board_end = _pty()
        ends.append(board_end)
    os.set_blocking(board, False)
    _answer(" ".join(map(os.ttyname, ends)))
    counts: collections.Counter[str] = collections.Counter()
    there = Direction(host, board, options.baud, options.latency_s, options.seed, counts)
    back = Direction(board, host, options.baud, options.latency_s, options.seed + 1, counts)
    # QEMU takes what it is given when the guest gets round to it; a pty is read now, by somebody or by nobody.
    there_s = math.inf if options.board_fd is not None else 0.0
    back_s = 0.0 if options.baud else UNREAD_S
    _carry(there, back, counts, options.errors, there_s, back_s)


def _carry(
    there: Direction, back: Direction, counts: collections.Counter[str], errors: float, there_s: float, back_s: float
) -> None:
    cut, commands = False, b""
    cuts, every, cut_s, next_cut, restored = 0, 0, 0.0, 0, math.inf
    while True:
        now = time.monotonic()
        if now >= restored:
            cut, restored, next_cut = False, math.inf, there.carried + every
        elif cuts and not cut and there.carried >= next_cut:
            cut, restored, cuts = True, now + cut_s, cuts - 1
            counts["cuts"] += 1
        there.step(now, errors, cut, there_s)
        back.step(now, errors, cut, back_s)
        wait = max(0.0, min(there.due(), back.due(), restored, now + 1.0) - time.monotonic())
        sources = [direction.source for direction in (there, back) if direction.room() > 0 and direction.source >= 0]
        readable, _, _ = select.select([*sources, 0], [one.sink for one in (there, back) if one.stuck], [], wait)
        now = time.monotonic()
        for direction in (there, back):
            if direction.source in readable:
                try:
                    data = os.read(direction.source, direction.room())
                except OSError:
                    continue
                if not data:
                    return  # QEMU's end is gone for good
                direction.take(data, now)
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
                elif word == "unplug":
                    os.close(there.source)
                    there.source = back.sink = -1
                elif word == "plug":
                    there.source, end = _pty()
                    back.sink = there.source
                    _answer(os.ttyname(end))
                elif word == "counts":
                    _answer(json.dumps(counts))


def _answer(text: str) -> None:
    """A line to the process that started this one."""
    os.write(1, text.encode() + b"\n")


def _pty() -> tuple[int, int]:
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    return master, slave


if __name__ == "__main__":
    main()
