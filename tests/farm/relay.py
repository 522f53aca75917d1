"""A link that can be cut: a TCP relay on a port of its own."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time

from deploy.ports import free_port

LOOK_S = 0.05


class Relay:
    """
    Carries bytes between whoever connects to `port` and 127.0.0.1:`target`, as long as the link is whole.

    A cut ends all that is connected and refuses what comes.  A link that is silent keeps its connections, and holds
    what is sent back until it speaks again.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._listener: socket.socket | None = None
        self._peers: dict[socket.socket, socket.socket] = {}
        self._wanted = "whole"
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def cut(self, seconds: float) -> None:
        """Cut the link, and mend it after so long."""
        self._for("cut", seconds)

    def silence(self, seconds: float) -> None:
        self._for("silent", seconds)

    def _for(self, state: str, seconds: float) -> None:
        self._wanted = state
        time.sleep(seconds)
        self._wanted = "whole"

    def close(self) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            while not self._ends.is_set():
                if self._wanted == "silent":
                    time.sleep(LOOK_S)
                    continue
                if self._wanted == "cut":
                    self._hang_up(ready)
                    time.sleep(LOOK_S)
                    continue
                if self._listener is None:
                    self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
                    ready.register(self._listener, selectors.EVENT_READ)
                for key, _ in ready.select(LOOK_S):
                    if key.fileobj is self._listener:
                        self._accept(ready)
                    elif isinstance(key.fileobj, socket.socket):
                        self._carry(ready, key.fileobj)
            self._hang_up(ready)

    def _accept(self, ready: selectors.BaseSelector) -> None:
        assert self._listener
        near = self._listener.accept()[0]
        try:
            far = socket.create_connection(("127.0.0.1", self._target), 10)
        except OSError:  # nobody is there
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(30)
            self._peers[one] = other
            ready.register(one, selectors.EVENT_READ)

    def _carry(self, ready: selectors.BaseSelector, one: socket.socket) -> None:
        if one not in self._peers:
            return
        try:
            data = one.recv(1 << 16)
            if data:
                self._peers[one].sendall(data)
                return
        except OSError:
            pass
        self._end(ready, one, self._peers[one])

    def _hang_up(self, ready: selectors.BaseSelector) -> None:
        if self._listener is not None:
            ready.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self._end(ready, *self._peers)

    def _end(self, ready: selectors.BaseSelector, *some: socket.socket) -> None:
        for one in some:
            self._peers.pop(one, None)
            with contextlib.suppress(KeyError, ValueError):
                ready.unregister(one)
            one.close()
