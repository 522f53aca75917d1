"""
Who may see the dashboard.

On the loopback address, whoever is on this machine; the name in the address bar must be this machine's, so that no web
site can have a browser ask for it under a name of its own.  On any other address, whoever has the token: once in the
address (``?token=...``), then in a cookie, or in a header (``Authorization: Bearer ...``).
"""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "deploy-token"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def is_loopback(host: str) -> bool:
    """Whether an address, or the name of a machine, is this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """
    Lets through who may see it.

    Args:
        token: None asks for none, and answers to the loopback's names alone.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._answer(connection) or self._app)(scope, receive, send_with_headers)

    def _answer(self, connection: HTTPConnection) -> ASGIApp | None:
        """What to say instead of the page; None where the page may be seen."""
        if self._token is None:
            if is_loopback(connection.url.hostname or ""):
                return None
            return PlainTextResponse("this page answers to localhost alone\n", 403)
        given = connection.query_params.get("token")
        if given is not None and self._fits(given):
            # The token must not stay in the address, which is copied, bookmarked and logged.
            rest = urlencode([pair for pair in parse_qsl(connection.url.query) if pair[0] != "token"])
            answer = RedirectResponse(str(connection.url.path) + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return answer
        bearer = connection.headers.get("authorization", "").removeprefix("Bearer ")
        if self._fits(connection.cookies.get(COOKIE, "")) or self._fits(bearer):
            return None
        return PlainTextResponse("needs the token that `deploy farm dashboard` printed: /?token=...\n", 401)

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())
