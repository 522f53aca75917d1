"""Ports of this machine for servers that are told their number beforehand."""

from __future__ import annotations

import random
import socket

# Below what Linux (32768), macOS and the BSDs (49152) hand out by themselves: a port of theirs may go to any outgoing
# connection, or to a listener on port 0, between this choice and its use.
_RANGE = range(20_000, 32_000)


def free_port() -> int:
    """
    One of 127.0.0.1 that nobody listens on now.

    Raises:
        OSError: a hundred of them are taken.
    """
    for port in random.SystemRandom().sample(_RANGE, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port of 127.0.0.1 found between {_RANGE.start} and {_RANGE.stop - 1}")
