"""A route to a TCP server that is cut and restored: bytes wait, or the connection is reset under both ends."""

from __future__ import annotations

import collections
import select
import socket
import struct
import threading
import time
from types import TracebackType


class Route:
    """
    Carries connections to a port of this machine.

    Args:
        every: bytes towards the server after which the next cut comes.
        cut_s: how long nothing passes; what was sent meanwhile arrives afterwards, as TCP sends it again.
        reset: of so many cuts the last one ends the connection instead.

    Attributes:
        counts: cuts that the connection survived, and resets.
    """

    def __init__(self, port: int, every: int, cut_s: float, reset: int) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._target, self._every, self._cut_s, self._reset = port, every, cut_s, reset
        self._until_cut = every
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over = True
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> Route:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        other: dict[socket.socket, socket.socket] = {}
        hosts: set[socket.socket] = set()
        while not self._over:
            readable, _, _ = select.select([self._listener, *other], [], [], 0.1)
            for source in readable:
                if source is self._listener:
                    host, _ = self._listener.accept()
                    board = socket.create_connection(("127.0.0.1", self._target))
                    other[host], other[board] = board, host
                    hosts.add(host)
                elif source in other and not self._carry(source, other[source], source in hosts):
                    for end in (source, other[source]):
                        del other[end]
                        end.close()
        for end in other:
            end.close()

    def _carry(self, source: socket.socket, sink: socket.socket, upwards: bool) -> bool:
        """False when the connection is over."""
        try:
            data = source.recv(min(65536, self._until_cut) if upwards else 65536)
            sink.sendall(data)
        except OSError:
            return False
        if upwards:
            self._until_cut -= len(data)
        if self._until_cut <= 0:
            self._until_cut = self._every
            if sum(self.counts.values()) % self._reset == self._reset - 1:
                self.counts["resets"] += 1
                for end in (source, sink):  # RST instead of FIN
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            self.counts["cuts"] += 1
            time.sleep(self._cut_s)
        return bool(data)
