"""A server of shards with a certificate, on this machine, whose faults a test chooses."""

import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from cropl.data import remote

Write = Callable[..., Path]
Reply = Callable[[BaseHTTPRequestHandler, bytes], None]
SHARD = "samples-000001.tar"


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, length: int | None = None) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def status(code: int) -> Reply:
    return lambda handler, body: send(handler, b"<html>no</html>", code)


def leads_to(location: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


def without_length(body: bytes) -> Reply:
    """HTTP/1.0: the end of the connection is the end of the body."""

    def reply(handler: BaseHTTPRequestHandler, _: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        # A reader that has had enough hangs up.
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            handler.wfile.write(body)

    return reply


class Site:
    """A server of a folder. `replies[file]` are used up, one a request, before the file itself is sent."""

    def __init__(self, folder: Path, context: ssl.SSLContext) -> None:
        self.folder, self.replies, self.requests, self.queries = (
            folder,
            dict[str, list[Reply]](),
            Counter[str](),
            set[str](),
        )
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                site.requests[path[1:]] += 1
                site.queries.add(query)
                file = site.folder / path[1:]
                body = file.read_bytes() if file.is_file() else b""
                waiting = site.replies.get(path[1:])
                if waiting:
                    waiting.pop(0)(self, body)
                else:
                    send(self, body, 200 if file.is_file() else 404)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("localhost", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # readers hang up on purpose
        self.url = f"https://localhost:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def serve(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Site]]:
    """Serves folders at addresses of this machine that are trusted; the cache is the test's, and nobody waits."""
    certificate = authority.issue_cert("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("CROPL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setattr(remote, "DELAYS_S", (0.0, 0.0, 0.0))
    sites: list[Site] = []

    def start(folder: Path) -> Site:
        sites.append(Site(folder, context))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()


@pytest.fixture
def site(serve: Callable[[Path], Site], write_shards: Write) -> Site:
    """Ten samples in three shards."""
    return serve(write_shards())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "shards"


def cached(cache: Path) -> list[str]:
    """What the cache holds beside locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


def hangs_up(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.connection.close()


def cut(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    send(handler, body[: len(body) // 2], length=len(body))


def cut_without_length(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    without_length(body[: len(body) // 2])(handler, body)
