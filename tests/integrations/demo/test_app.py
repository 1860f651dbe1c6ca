"""The server of the page: its files, uploads, what it refuses, and for whom it answers."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image

from cropl.integrations.demo import app, asked, pictures
from cropl.integrations.demo.asked import METHODS
from tests.integrations.demo.conftest import QUESTION


def png(width=64, height=48):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_the_page_loads_nothing_from_elsewhere(client):
    served = {name: client.get(f"/{name}") for name in ("", *app.FILES)}
    assert {path.name for path in app.PAGE.iterdir()} == {"index.html", *app.FILES}
    for name, reply in served.items():
        assert reply.status_code == 200 and len(reply.content) > 500, name
        assert not re.search(r"(?:https?:)?//[\w.-]+\.\w|@import|\bimport\(|url\((?!data:)", reply.text), name
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy
    page = served[""].text
    linked = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert set(linked) == {"data:,", "/demo.css", "/demo.js"}
    imported = re.findall(r'from "\./([\w.]+)"', "".join(reply.text for reply in served.values()))
    assert {"demo.css", "demo.js", *imported} == set(app.FILES)


def test_every_control_of_the_page_has_a_label(client):
    page = client.get("/").text
    unnamed = []
    for tag in re.findall(r"<(?:input|select|output|svg)[^>]*>", page):
        id = re.search(r'\bid="([^"]+)"', tag)
        inside = re.search(r"<label[^>]*>(?:(?!</label>).)*" + re.escape(tag), page, re.DOTALL)
        named = "aria-" in tag or inside or (id and f'for="{id[1]}"' in page) or tag.startswith("<output")
        unnamed += [] if named else [tag]
    assert not unnamed


def test_the_state_offers_what_runs_here(client, engine):
    state = client.get("/api/state").json()
    methods = {method["name"]: method for method in state["methods"]}
    assert list(methods) == list(METHODS) and state["method"] == "ilp" and state["layers"] == 6
    assert {name for name, method in methods.items() if method["missing"]} == {"plc"}
    assert (methods["ilp"]["layer"], methods["prune"]["layer"], methods["divprune"]["layer"]) == (1, None, 0)
    assert {one["kind"] for one in state["pictures"]} == {"scene", "photo"}
    assert all(one["tokens"] == 576 and one["questions"] for one in state["pictures"])
    small, large = (client.get(f"/api/pictures/{state['pictures'][-1]['id']}{end}") for end in ("?small", ""))
    assert max(Image.open(io.BytesIO(small.content)).size) == 240 < max(Image.open(io.BytesIO(large.content)).size)


def test_an_upload_can_be_asked_about(client, ask):
    reply = client.post("/api/pictures?name=red.png", content=png())
    assert reply.status_code == 201
    told = reply.json()
    assert (told["name"], told["width"], told["height"], told["kind"]) == ("red.png", 64, 48, "upload")
    assert ask(picture=told["id"], max_new_tokens=1)["dense"]["total"] == 576


@pytest.mark.parametrize(
    "content, status, message",
    [
        (b"no image", 400, "image 'a.png': not a JPEG, PNG or WebP image"),
        (b"", 400, "image 'a.png'"),
        (png()[:-30], 400, "damaged"),
        (png(20_000, 4_000), 400, "80000000|20000x4000 pixels, the limit is 50,000,000"),
        (b"\0" * (pictures.MAX_BYTES + 1), 413, "larger than 20 MB"),
    ],
)
def test_a_bad_file_is_told(client, content, status, message):
    reply = client.post("/api/pictures?name=a.png", content=content)
    assert reply.status_code == status and re.search(message, reply.json()["error"]), reply.text
    assert client.get("/api/state").status_code == 200


@pytest.mark.parametrize(
    "given, message",
    [
        ({"question": " \n "}, "the question is empty"),
        ({"question": "a" * (asked.MAX_QUESTION + 1)}, "1,001 characters, the limit is 1,000"),
        ({"question": 3}, "must be text"),
        ({"picture": "upload-none"}, "upload it again"),
        ({"picture": None}, "no picture"),
        ({"method": "fastvv"}, "did you mean 'fastv'"),
        ({"method": "plc"}, "not trained with a compressor"),
        ({"budget": 0}, "at least 1 token"),
        ({"budget": 577}, "has 576 visual tokens"),
        ({"budget": 1.5}, r"a share in \(0, 1\]"),
        ({"budget": "64"}, "must be a number"),
        ({"method": "random"}, "give a budget"),
        ({"method": "dense", "budget": 64}, "no effect with dense"),
        ({"layer": 7}, "has 6 decoder layers"),
        ({"method": "fastv", "budget": 64, "layer": 0}, "^layer=0: .*give at least 1"),
        ({"question": "\ud83d"}, "lone surrogate"),
        ({"picture": "\ud83d"}, "lone surrogate"),
        ({"layer": -1}, "must be an integer from 0"),
        ({"method": "pyramiddrop", "budget": 64, "layer": 1}, "at layers of its own"),
        ({"region": [0, 0, 8, 1]}, "region"),
        ({"region": [0, 0, 1]}, "four integers"),
        ({"region": "all"}, "four integers"),
        ({"max_new_tokens": 10_000}, "from 1 to 256"),
        ({"question_": "?"}, "unknown key"),
    ],
)
def test_a_wrong_question_is_told_before_it_is_computed(client, given, message):
    content = json.dumps({"picture": "scene-5", "question": QUESTION, **given})
    reply = client.post("/api/ask", content=content)
    assert reply.status_code == 400 and re.search(message, reply.json()["error"]), reply.text


def test_bodies_that_are_no_question(client):
    for body in (b"", b"[1]", b"{", b"[" * 10_000, b'"\xff"'):
        assert client.post("/api/ask", content=body).status_code == 400
    assert client.post("/api/ask", content=b" " * (asked.MAX_BODY + 1)).status_code == 413
    assert client.get("/api/ask").status_code == 405
    assert client.get("/api/pictures/nothing").status_code == 404
    assert client.get("/../../etc/passwd").status_code == 404


def test_an_error_while_answering_is_told_and_the_server_goes_on(engine, client, ask, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the accelerator has left")

    monkeypatch.setattr(engine.vlm, "generate", fail)
    reply = client.post("/api/ask", json={"picture": "scene-5", "question": QUESTION})
    assert reply.status_code == 200
    assert "the accelerator has left" in json.loads(reply.text.splitlines()[-1])["error"]
    monkeypatch.undo()
    assert ask()["dense"]["answer"] == "park"


def test_other_sites_are_refused(client):
    for headers in (
        {"host": "evil.example"},
        {"host": "[1"},
        {"host": "evil.example:8765"},
        {"origin": "https://evil.example"},
        {"origin": "http://[1"},
    ):
        reply = client.get("/api/state", headers=headers)
        assert reply.status_code == 403 and "error" in reply.json()
    for headers in ({"host": "localhost:8765"}, {"host": "[::1]:8765"}, {"origin": "http://127.0.0.1:8765"}):
        assert client.get("/demo.css", headers=headers).status_code == 200


def test_old_uploads_make_room(monkeypatch):
    held = pictures.Pictures()
    monkeypatch.setattr(pictures, "HELD_PIXELS", 2000)
    first, second, third = (held.add(png(40, height), "a") for height in (20, 21, 22))
    assert held[second.id] is second and held[third.id] is third
    with pytest.raises(ValueError, match="upload it again"):
        held[first.id]
    large = held.add(png(100, 100), "b")
    assert held[large.id] is large and len(held._uploads) == 1
