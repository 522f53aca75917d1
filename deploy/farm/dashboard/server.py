"""The dashboard as a server of its own, on loopback unless it is told otherwise."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable

import uvicorn

from deploy.errors import FarmError
from deploy.farm.dashboard.app import Dashboard
from deploy.farm.dashboard.guard import is_loopback

GRACE_S = 1  # for pages that are being sent when it ends; a stream has no end of its own


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        FarmError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(64)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise FarmError(f"cannot listen on {host}:{port}: {reason}", "`--port` names another; 0 takes any") from None
    return listener


def serve(dashboard: Dashboard, host: str, port: int, ready: Callable[[str], None]) -> None:
    """
    Serve until interrupted.

    Args:
        ready: told the address of the first page, with the token where one is needed.

    Raises:
        FarmError: the address cannot be used.
    """
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    with listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        query = f"?token={token}" if token else ""
        ready(f"http://{shown}:{listener.getsockname()[1]}/{query}")
        server(dashboard, token).run([listener])


def server(dashboard: Dashboard, token: str | None) -> uvicorn.Server:
    app = dashboard.app(token)
    return uvicorn.Server(
        uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=GRACE_S,
            server_header=False,
        )
    )  # fmt: skip
