"""Moves bytes to and from a board.  `open_transport` picks the one that boards.yaml names."""

from __future__ import annotations

from pathlib import Path

from deploy.boards import Board, LocalTransport, SerialTransport, SshTransport
from deploy.errors import TransportError
from deploy.transport.base import Channel, Transport

__all__ = ["Channel", "Transport", "open_transport"]


def open_transport(board: Board, known_hosts: Path) -> Transport:
    """
    Reach the board.

    Args:
        known_hosts: file of the pinned host keys (ssh).

    Raises:
        TransportError: see the transport.
    """
    settings = board.transport
    if isinstance(settings, LocalTransport):
        from deploy.transport.local import Local

        return Local()
    if isinstance(settings, SshTransport):
        from deploy.transport.ssh import Ssh

        return Ssh(board.name, settings, known_hosts)
    assert isinstance(settings, SerialTransport)
    raise TransportError(
        f"board {board.name!r} is on a serial line, which this version cannot speak yet",
        "give it a network and `transport: {kind: ssh, host: ...}`",
        board=board.name,
    )
