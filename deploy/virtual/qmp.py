"""QEMU's machine protocol (QMP), spoken over a socket that QEMU was started with."""

from __future__ import annotations

import json
import socket
from typing import Any

from deploy.errors import VirtualError

TIMEOUT_S = 60.0  # savevm writes some 200 MB


class Qmp:
    """
    One conversation.

    Args:
        line: connected to QEMU's monitor.

    Raises (all methods):
        VirtualError: QEMU is gone, says nothing, or refuses; with its reason.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._line.settimeout(TIMEOUT_S)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []  # that came while something was waited for
        self._read()  # the greeting
        self.run("qmp_capabilities")

    def run(self, command: str, **arguments: Any) -> Any:
        """What the command returns."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._line.sendall(json.dumps(request).encode() + b"\n")
        except OSError:
            raise VirtualError("QEMU is gone") from None
        while True:
            answer = self._read()
            if "event" in answer:
                self.events = [*self.events[-99:], answer]
            elif "error" in answer:
                raise VirtualError(f"QEMU refuses {command}: {answer['error'].get('desc')}")
            elif "return" in answer:
                return answer["return"]

    def monitor(self, line: str) -> str:
        """
        A command of the older monitor for people, for what QMP has no command.

        Raises:
            VirtualError: also when it says anything but ``""``, as those used here do only when they fail.
        """
        said = str(self.run("human-monitor-command", **{"command-line": line})).strip()
        if said:
            raise VirtualError(f"QEMU refuses {line!r}: {said.splitlines()[-1]}")
        return said

    def close(self) -> None:
        self._line.close()

    def _read(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                more = self._line.recv(65536)
            except TimeoutError:
                raise VirtualError(f"QEMU says nothing for {TIMEOUT_S:.0f} s") from None
            except OSError:
                more = b""
            if not more:
                raise VirtualError("QEMU is gone")
            self._buffer += more
        text, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(text)
        return answer
