"""The server of the page: its files, the pictures, and the questions.

Errors of whoever asks come as JSON `{"error": ...}` with a 4xx status, before anything is computed. A question that
is computed answers with one JSON object a line, as it goes: its place in the line, the region, both answers; or, where
something fails on the way, an `error`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Collection
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cropl.errors import one_line
from cropl.integrations.demo.asked import MAX_BODY, Asked
from cropl.integrations.demo.engine import Engine
from cropl.integrations.demo.guard import LOOPBACK, Guard
from cropl.integrations.demo.line import Event, Line
from cropl.integrations.demo.measuring import Cancelled
from cropl.integrations.demo.pictures import MAX_BYTES, Picture

PAGE = Path(__file__).parent / "page"
FILES = ("demo.css", "demo.js", "costs.js", "pictures.js", "server.js", "stage.js")

_log = logging.getLogger(__name__)


class _Lines(StreamingResponse):
    """JSON lines; whatever ends the answer, who makes it is told."""

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self._lines = _told(events)
        super().__init__(self._lines, media_type="application/x-ndjson", headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            await self._lines.aclose()


def make_app(engine: Engine, hosts: Collection[str] = LOOPBACK) -> Starlette:
    """The server as an ASGI application.

    Args:
        engine: answers.
        hosts: see `Guard`.
    """
    line = Line()

    async def state(request: Request) -> Response:
        examples = await run_in_threadpool(lambda: [_about(engine, id) for id in engine.pictures.examples])
        return JSONResponse({**engine.state(), "pictures": examples})

    async def upload(request: Request) -> Response:
        data = await _body(request, MAX_BYTES, f"the file is larger than {MAX_BYTES // 1_000_000} MB")
        name = request.query_params.get("name", "")
        picture = await run_in_threadpool(engine.pictures.add, data, name)
        return JSONResponse(await run_in_threadpool(_about, engine, picture.id), 201)

    async def picture(request: Request) -> Response:
        def jpeg() -> bytes:
            found: Picture = engine.pictures[request.path_params["id"]]
            return found.thumbnail if "small" in request.query_params else found.preview

        try:
            content = await run_in_threadpool(jpeg)
        except ValueError as error:
            return _refused(404, error)
        return Response(content, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"})

    async def ask(request: Request) -> Response:
        asked = Asked.read(await _body(request, MAX_BODY, "the request is too long"))
        await run_in_threadpool(engine.check, asked)
        events = line.run(lambda cancelled: engine.answer(asked, cancelled))
        return _Lines(events)

    return Starlette(
        routes=[
            Route("/", _file("index.html")),
            *(Route(f"/{name}", _file(name)) for name in FILES),
            Route("/api/state", state),
            Route("/api/pictures", upload, methods=["POST"]),
            Route("/api/pictures/{id}", picture),
            Route("/api/ask", ask, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={
            ValueError: _on_value_error,
            HTTPException: _on_http_error,
            ClientDisconnect: _on_disconnect,
        },
    )


def _about(engine: Engine, id: str) -> dict[str, Any]:
    one = engine.pictures[id]
    return {
        "id": one.id, "name": one.name, "kind": one.kind, "width": one.image.width, "height": one.image.height,
        "tokens": engine.tokens(one), "questions": one.questions,
    }  # fmt: skip


async def _body(request: Request, limit: int, message: str) -> bytes:
    """The body, read no further than the limit."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:12]) > limit:
        raise HTTPException(413, message)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise HTTPException(413, message)
        parts.append(part)
    return b"".join(parts)


async def _told(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Lines; an error is the last of them."""
    try:
        async for event in events:
            yield _line(event)
    except Cancelled:
        return
    except ValueError as error:
        yield _line({"error": one_line(error)})
    except Exception as error:  # the next question may do better: a server does not end here
        _log.exception("a question failed")
        yield _line({"error": f"the answer failed: {one_line(error)[:300]}"})
    finally:
        await events.aclose()


def _line(event: Event) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _file(name: str) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        return FileResponse(PAGE / name, headers={"cache-control": "no-cache"})

    return serve


def _refused(status: int, error: Exception) -> Response:
    return JSONResponse({"error": one_line(error)}, status)


async def _on_value_error(request: Request, error: Exception) -> Response:
    return _refused(400, error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Nobody is left to tell."""
    return Response(status_code=400)
