"""The demo page's engine on the testbed's models, and a client of its server."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.testclient import TestClient

from cropl.integrations.demo.app import make_app
from cropl.integrations.demo.engine import Engine
from cropl.integrations.demo.locating import Locator
from cropl.integrations.demo.serve import listening
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.testbed import weights
from cropl.testbed.scenes import scene

QUESTION = "What word is on the black sign?"


@pytest.fixture(scope="session")
def engine():
    folder = weights.resolve("testbed:llava")
    localizer = Localizer.from_pretrained(weights.resolve("testbed:localizer"), device="cpu")
    names = {"model": "testbed:llava", "localizer": "testbed:localizer"}
    return Engine(load_vlm(folder, device="cpu"), Locator(localizer), folder, names)


@pytest.fixture
def client(engine):
    return TestClient(make_app(engine), base_url="http://127.0.0.1:8765")


@pytest.fixture
def ask(client):
    """Ask the server: the events of its answer by their names."""

    def asking(**given):
        reply = client.post("/api/ask", json={"picture": "scene-5", "question": QUESTION, **given})
        assert reply.status_code == 200, reply.text
        events = [json.loads(line) for line in reply.text.splitlines()]
        return {name: value for event in events for name, value in event.items() if name != "stage"}

    return asking


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "scene.png"
    scene("test", 5).render().save(path)
    return path


@contextmanager
def running(engine):
    """A real server on a free port of this machine; gives its address."""
    listener = listening("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(make_app(engine), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@pytest.fixture(scope="module")
def address(engine):
    with running(engine) as found:
        yield found
