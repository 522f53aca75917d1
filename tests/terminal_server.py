"""A terminal server: one serial port of this machine behind TCP, as RFC 2217 (pyserial's own server side) or raw."""

from __future__ import annotations

import select
import socket
import threading
from types import TracebackType

import serial
from serial import rfc2217


class Pty(serial.Serial):
    """A pty has no modem lines, which the server side of RFC 2217 reads and sets."""

    cts = dsr = ri = cd = False

    def _update_dtr_state(self) -> None: ...

    def _update_rts_state(self) -> None: ...

    def _update_break_state(self) -> None: ...


class TerminalServer:
    """
    Serves one connection after the other.

    Args:
        tty: path of the port.
        raw: bytes as they are, no Telnet.

    Attributes:
        url: for `port:` of boards.yaml.
        rates: that the host has asked for (RFC 2217 only).
    """

    def __init__(self, tty: str, raw: bool) -> None:
        self._tty, self._raw = tty, raw
        self._listener = socket.create_server(("127.0.0.1", 0))
        number = self._listener.getsockname()[1]
        self.url = f"{'socket' if raw else 'rfc2217'}://127.0.0.1:{number}"
        self.rates: list[int] = []
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """What the server side of RFC 2217 answers goes to the host."""
        self._host.sendall(data)

    def close(self) -> None:
        self._over = True
        self._listener.close()
        self._thread.join()

    def __enter__(self) -> TerminalServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        self._listener.settimeout(0.1)
        while not self._over:
            try:
                self._host, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with self._host, Pty(self._tty, 115_200, timeout=0) as port:
                manager = None if self._raw else rfc2217.PortManager(port, self)
                while not self._over and self._carry(port, manager):
                    self.rates += [port.baudrate] if port.baudrate not in self.rates else []

    def _carry(self, port: serial.Serial, manager: rfc2217.PortManager | None) -> bool:
        readable, _, _ = select.select([self._host, port.fileno()], [], [], 0.1)
        try:
            if port.fileno() in readable:
                data = port.read(4096)
                self._host.sendall(b"".join(manager.escape(data)) if manager else data)
            if self._host in readable:
                data = self._host.recv(4096)
                if not data:
                    return False
                port.write(b"".join(manager.filter(data)) if manager else data)
        except OSError:
            return False
        return True
