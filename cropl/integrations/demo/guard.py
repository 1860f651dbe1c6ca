"""What every answer of the server goes through: only this machine's own page may ask, and the page loads nothing else.

A page of any site can send requests to a server on this machine, and by a name that it makes point here even read the
answers. So the address that a browser believes to talk to has to be ours, and so has the page that it talks for.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANYWHERE = ("0.0.0.0", "::")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses requests that were made for another host or by another site's page, and adds `HEADERS`.

    Args:
        app: what is guarded.
        hosts: names and addresses that a browser may call the server by; none allows every one.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app, self.hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if (self.hosts and _split(f"//{host}")[1] not in self.hosts) or (origin and _split(origin)[0] != host):
            refused = JSONResponse({"error": "this page is not served to other sites"}, 403)
            await refused(scope, receive, guarded)
        else:
            await self.app(scope, receive, guarded)


def allowed(host: str) -> Collection[str]:
    """The names that a server on this host goes by; empty where that is not known, as on all interfaces."""
    return () if host in ANYWHERE else {*LOOPBACK, host}


def _split(address: str) -> tuple[str, str]:
    """The host with its port as it is written, and its bare name in lower case; empty for what is no address."""
    try:
        parts = urlsplit(address)
        return parts.netloc, (parts.hostname or "").lower()
    except ValueError:
        return "", ""
