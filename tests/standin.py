"""A server that stands in for an OpenAI-compatible one behind ours: a FastAPI application over real HTTP, which
answers as the test says, and knows what it was asked and when a client left.

    with Standin() as upstream:
        upstream.answer = lambda body: sse(*story("Yes", ", it is."))
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from rlaif.serving.server import ModelServer

PATIENCE = 30.0
"""Seconds after which a test gives up waiting for what must happen."""


def piece(text: str | None = None, *, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """One chunk of a stream."""
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({"id": "x", "object": "chat.completion.chunk", "choices": [choice]} | more)


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(prompt: int, completion: int) -> bytes:
    """The chunk that tells what was used."""
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event({"id": "x", "object": "chat.completion.chunk", "choices": [], "usage": told})


DONE = b"data: [DONE]\n\n"


def story(*texts: str) -> list[bytes]:
    """A good answer in these pieces."""
    first = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    return [first, *(piece(text) for text in texts), piece(finish="stop"), usage(7, len(texts)), DONE]


def whole(*texts: str) -> dict[str, Any]:
    """Answers as a server sends them that does not stream."""
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for at, text in enumerate(texts)
    ]
    return {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def error(status: int, message: str, *, retry_after: str = "", **more: Any) -> Response:
    """An error as the API writes it."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Response(json.dumps({"error": {"message": message} | more}), status, headers, "application/json")


class Dropped(Exception):
    """Ends a connection in the middle of an answer."""


class Standin:
    """See the module.

    Attributes:
        answer: Makes the answer to a request's body.
        asked: Bodies and headers of the completions that were asked for.
        ports: Where these requests came from; two of one connection have one.
        left: Streams that ended because their client had gone.
        models: What `GET /v1/models` lists.
    """

    def __init__(self) -> None:
        self.reset()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        config = uvicorn.Config(
            self._app(), log_config=None, log_level="critical", access_log=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def reset(self) -> None:
        """Answer well, and forget what was."""
        self.answer: Callable[[dict[str, Any]], Response] = lambda body: self.sse(*story("Hello", " there."))
        self.asked: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.ports: list[int] = []
        self.left = 0
        self.models: list[dict[str, Any]] = [
            {"id": "big", "object": "model", "created": 5, "owned_by": "them"}
        ]

    def sse(self, *pieces: bytes | threading.Event | type[Dropped] | float) -> Response:
        """A stream of these pieces: events are waited for, and a number of seconds is let pass."""
        return StreamingResponse(self._stream(pieces), media_type="text/event-stream")

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.asked.append((body, dict(request.headers)))
            self.ports.append(request.client.port if request.client else 0)
            return self.answer(body)

        @app.get("/v1/models")
        async def models() -> Response:
            listed = {"object": "list", "data": self.models}
            return Response(json.dumps(listed), media_type="application/json")

        return app

    async def _stream(self, pieces: Sequence[Any]) -> AsyncIterator[bytes]:
        try:
            for each in pieces:
                if isinstance(each, bytes):
                    yield each
                elif isinstance(each, threading.Event):
                    while not each.is_set():
                        await asyncio.sleep(0.002)
                elif each is Dropped:
                    raise Dropped
                else:
                    await asyncio.sleep(each)
        except asyncio.CancelledError:
            self.left += 1
            raise

    def __enter__(self) -> Standin:
        self._thread.start()
        until(lambda: self._server.started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    """Wait for what must happen."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


@contextmanager
def in_a_thread(server: ModelServer) -> Iterator[None]:
    """A server of ours answers inside the block, and has ended after it."""
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        until(lambda: server.started)
        yield
    finally:
        server.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
