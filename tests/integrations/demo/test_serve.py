"""Where the page is served, and what becomes of a question whose asker goes away."""

from __future__ import annotations

import errno
import json
import socket
import threading
import time
import urllib.request
from urllib.parse import urlsplit

import pytest

from cropl.errors import UsageError
from cropl.integrations.demo import serve as module
from cropl.integrations.demo.guard import allowed
from cropl.integrations.demo.serve import is_loopback, listening
from tests.integrations.demo.conftest import QUESTION


def post(address, body):
    request = urllib.request.Request(f"{address}/api/ask", json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=30) as reply:
        return [json.loads(line) for line in reply]


def connection(address, body):
    """A question on a socket of its own, to hang up on."""
    data = json.dumps(body).encode()
    made = socket.create_connection((urlsplit(address).hostname, urlsplit(address).port), timeout=30)
    head = f"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    made.sendall(head.encode() + data)
    return made


def test_a_question_that_is_given_up_blocks_nobody(engine, address, monkeypatch):
    """One is answered without an end, one waits behind it; both hang up, and the next one is answered."""
    begun, slow = threading.Event(), engine.answer

    def endless(asked, cancelled):
        if asked.question != "endless":
            yield from slow(asked, cancelled)
            return
        begun.set()
        deadline = time.monotonic() + 30
        while not cancelled() and time.monotonic() < deadline:
            yield {"stage": "pruned"}
            time.sleep(0.05)

    monkeypatch.setattr(engine, "answer", endless)
    asked = {"picture": "scene-5", "question": QUESTION}
    first = connection(address, {**asked, "question": "endless"})
    assert begun.wait(20)
    second = connection(address, asked)
    told = b""
    while b'"waiting", "ahead": 1' not in told:
        told += second.recv(4096)
    began = time.monotonic()
    second.close()
    first.close()
    assert post(address, asked)[-1]["dense"]["answer"] == "park"
    assert time.monotonic() - began < 15


def test_only_this_machine_by_default():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.4", "example.org", "")))
    assert "127.0.0.1" in allowed("10.0.0.5") and "10.0.0.5" in allowed("10.0.0.5") and not allowed("0.0.0.0")


def test_a_port_that_is_taken_is_left_alone():
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listening("127.0.0.1", port) as second:
            assert second.getsockname()[1] != port
    with pytest.raises(UsageError, match="--host no-such-host"):
        listening("no-such-host.invalid", 0)


def test_a_port_that_may_not_be_used_is_told(monkeypatch):
    def refuse(self, address):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(
        UsageError, match=r"--host 127.0.0.1 --port 80: cannot be listened on here \(permission denied\)"
    ):
        listening("127.0.0.1", 80)


def test_it_tells_its_address_and_opens_windows_only(engine, monkeypatch):
    told, opened = [], []

    class Window:
        open = staticmethod(opened.append)

    class Server:
        def __init__(self, config):
            assert config.host == "127.0.0.1" and not config.access_log

        def run(self, sockets):
            raise KeyboardInterrupt

    monkeypatch.setattr(module.uvicorn, "Server", Server)
    monkeypatch.setattr(module.webbrowser, "get", Window)
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        module.serve(engine, "127.0.0.1", port, browser=True, tell=told.append)
    assert told[0] == f"port {port} is taken; another one is used" and "http://127.0.0.1:" in told[1]
    for _ in range(200):
        if opened:
            break
        time.sleep(0.01)
    assert opened == [told[1].split()[2]]
    opened.clear()
    monkeypatch.setattr(module.webbrowser, "get", lambda: module.webbrowser.GenericBrowser("w3m"))
    module._open("http://127.0.0.1")  # a browser of the terminal is not started
