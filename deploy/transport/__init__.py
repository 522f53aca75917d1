"""Moves bytes to and from a board.  `open_transport` picks the one that boards.yaml names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deploy.boards import Board, LocalTransport, SerialTransport, SshTransport
from deploy.transport.base import Channel, Transport

__all__ = ["Channel", "Transport", "open_transport"]


def open_transport(
    board: Board, known_hosts: Path, ask: Callable[[str], str] | None = None, strict: bool = False
) -> Transport:
    """
    Reach the board.

    Args:
        known_hosts: file of the pinned host keys (ssh).
        ask: asks a person for a password (serial); None where nobody can be asked.
        strict: refuse a host key that is not known (ssh).

    Raises:
        TransportError: see the transport.
    """
    settings = board.transport
    if isinstance(settings, LocalTransport):
        from deploy.transport.local import Local

        return Local()
    if isinstance(settings, SshTransport):
        from deploy.transport.ssh import Ssh

        return Ssh(board.name, settings, known_hosts, strict)
    assert isinstance(settings, SerialTransport)
    from deploy.transport.serial import Serial

    return Serial(board, settings, ask)
