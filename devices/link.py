"""
How the agent's bytes travel: a link takes and gives whole runs of bytes, reliably and in order.

On a pipe or an SSH channel that is what the operating system does already.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Protocol

OFFERED_BYTES = 1 << 20  # what may wait for a host that is slow to take it
LOOK_S = 0.5  # between two looks at whether to wait on


class Link(Protocol):
    """
    A two-way stream of bytes that arrive whole and in order, or break.

    Attributes:
        given_up: asked now and then while a slow host is waited for; once it is true, that host is gone.
    """

    given_up: Callable[[], bool]

    def fileno(self) -> int:
        """What to wait for before `receive`."""
        ...

    def receive(self) -> bytes | None:
        """
        Take what has come; call when `fileno` is readable, or when `deadline` has passed.

        Returns:
            Bytes, perhaps none; None when the other side is gone.
        """
        ...

    def send(self, data: bytes) -> None:
        """
        Send all of `data`.

        Raises:
            OSError: the other side is gone.
        """
        ...

    def room(self) -> bool:
        """Whether the other side is not so slow that too much waits to be taken."""
        ...

    def offer(self, data: bytes) -> bool:
        """
        Send `data`, and what was offered before, as far as that goes without waiting; the rest with the next call.

        Returns:
            True while something is left.

        Raises:
            OSError: the other side is gone.
        """
        ...

    def deadline(self) -> float | None:
        """When (`time.monotonic`) `receive` must be called even if nothing has come; None: never."""
        ...


class PipeLink:
    """
    Two file descriptors.

    Args:
        patience_s: how long the host may take nothing before it counts as gone.
    """

    def __init__(self, source: int, sink: int, patience_s: float = 60.0) -> None:
        self._source = source
        self._sink = sink
        self._patience_s = patience_s
        self._waiting = bytearray()  # offered, not sent yet
        self.given_up: Callable[[], bool] = lambda: False
        os.set_blocking(sink, False)
        self._writable = select.poll()
        self._writable.register(sink, select.POLLOUT)

    def fileno(self) -> int:
        return self._source

    def receive(self) -> bytes | None:
        return os.read(self._source, 1 << 20) or None

    def room(self) -> bool:
        return len(self._waiting) <= OFFERED_BYTES

    def offer(self, data: bytes) -> bool:
        self._waiting += data
        while self._waiting:
            try:
                del self._waiting[: os.write(self._sink, self._waiting)]
            except BlockingIOError:
                return True
        return False

    def send(self, data: bytes) -> None:
        view = memoryview(bytes(self._waiting) + data)
        self._waiting.clear()
        taken = time.monotonic()
        while view:
            if not self._writable.poll(LOOK_S * 1000):
                if self.given_up() or time.monotonic() - taken > self._patience_s:
                    raise TimeoutError("the host takes nothing")
                continue
            try:
                view = view[os.write(self._sink, view) :]
                taken = time.monotonic()
            except BlockingIOError:
                continue

    def deadline(self) -> float | None:
        return None
