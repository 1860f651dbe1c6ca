"""Serves the page until it is interrupted."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
import webbrowser
from collections.abc import Callable

import uvicorn

from cropl.errors import UsageError
from cropl.integrations.demo.app import make_app
from cropl.integrations.demo.engine import Engine
from cropl.integrations.demo.guard import allowed


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server on this host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening(host: str, port: int) -> socket.socket:
    """A socket on this port, or on a free one where it is taken.

    Raises:
        UsageError: there is no such host here, or the port may not be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}") from None
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        try:
            made.bind(address)
            made.listen(128)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            made.close()
            made = socket.socket(family, socket.SOCK_STREAM)
            made.bind((address[0], 0, *address[2:]))
            made.listen(128)
    except OSError as error:
        made.close()
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"--host {host} --port {port}: cannot be listened on here ({reason})") from None
    return made


def serve(engine: Engine, host: str, port: int, browser: bool, tell: Callable[[str], None] = print) -> None:
    """Serve until Ctrl+C.

    Args:
        engine: answers.
        host, port: where; a free port where this one is taken.
        browser: whether to open the page in a browser, if there is one with a window.
        tell: gets the page's address.
    """
    listener = listening(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    if port not in (0, listener.getsockname()[1]):
        tell(f"port {port} is taken; another one is used")
    config = uvicorn.Config(
        make_app(engine, allowed(host)),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=2,
    )
    tell(f"cropl demo: {address}  (Ctrl+C ends it)")
    if browser:
        threading.Thread(target=_open, args=(address,), daemon=True).start()
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()


def _open(address: str) -> None:
    """In a browser with a window; one that runs in the terminal would take it from us."""
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return
    if type(found) is not webbrowser.GenericBrowser:
        found.open(address)
