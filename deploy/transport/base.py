"""
The transport contract.

A transport reaches a board and runs one command there; the command's standard input and output become a channel of
bytes.  What the bytes mean is none of its business.

A channel says whether it is lossy.  On a reliable one (pipe, SSH) every byte arrives, once and in order, or the
channel breaks.  On a lossy one (UART) bytes may vanish, change or come twice; frames find themselves again
(`devices.protocol.framing.Decoder(lossy=True)`), and whoever sends resends.
"""

from __future__ import annotations

from typing import Protocol

WRITE_TIMEOUT_S = 30.0


class Channel(Protocol):
    """Standard input and output of one command on a board."""

    lossy: bool

    def read(self, timeout_s: float) -> bytes | None:
        """
        Return what has come, at least one byte; ``b""`` when nothing will come any more; None when nothing came
        within `timeout_s`.
        """
        ...

    def write(self, data: bytes) -> None:
        """
        Send all of `data`.

        Raises:
            OSError: the other side is gone; TimeoutError among them, it took nothing for `WRITE_TIMEOUT_S`.
        """
        ...

    def ended(self) -> tuple[int | None, str]:
        """Exit status of the command (None: unknown), and the end of what it said on standard error."""
        ...

    def close(self) -> None:
        """Hang up.  The command sees the end of its input."""
        ...


class Transport(Protocol):
    """A way to a board."""

    @property
    def description(self) -> str:
        """For messages: ``ssh pi@10.0.0.7:22``."""
        ...

    def run(self, command: str) -> Channel:
        """
        Start a shell command on the board.

        Raises:
            TransportError: it cannot be started.
        """
        ...

    def close(self) -> None: ...
