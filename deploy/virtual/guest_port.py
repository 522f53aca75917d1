"""The control port of a virtual board: commands for its process 1, which runs them as root."""

from __future__ import annotations

import socket
import time

from deploy.errors import VirtualError

CONTROL_S = 60.0  # where this machine has much else to do


class Guest:
    """The control port: runs a shell command as root, while the guest has its senses."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._rest = b""

    def run(self, command: str, timeout_s: float = CONTROL_S) -> str:
        """
        What the command said.

        Raises:
            VirtualError: it failed, or the guest does not answer.
        """
        self._drop()
        self._line.settimeout(timeout_s)
        try:
            self._line.sendall(command.replace("\n", ";").encode() + b"\n")
            said, status = self._answer(time.monotonic() + timeout_s)
        except OSError:
            raise VirtualError(f"the board does not answer within {timeout_s:.0f} s") from None
        if status:
            raise VirtualError(f"the board refuses: {said.splitlines()[-1] if said else f'exit status {status}'}")
        return said

    def tell(self, command: str) -> None:
        """Without waiting for an answer."""
        self._line.sendall(command.encode() + b"\n")

    def _answer(self, until: float) -> tuple[str, int]:
        while True:
            said, mark, rest = self._rest.partition(b"\n\x01")
            status, end, rest = rest.partition(b"\n")
            if mark and end:
                self._rest = rest
                return said.decode("utf-8", "replace").strip(), int(status)
            self._line.settimeout(max(0.01, until - time.monotonic()))
            more = self._line.recv(65536)
            if not more:
                raise OSError
            self._rest += more

    def _drop(self) -> None:
        """Answers to what nobody waited for."""
        self._rest = b""
        self._line.setblocking(False)
        try:
            while self._line.recv(65536):
                pass
        except OSError:
            pass
