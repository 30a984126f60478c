"""A server that keeps the contract of all parts of `rlaif serve`, with the real page: its answers depend on the
question, and it remembers what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from rlaif.serving.info import Info, add_info
from rlaif.serving.page import add_page
from rlaif.serving.refusal import error_body

__all__ = ["EVIL", "StandIn"]

EVIL = (
    "<script>document.title = 'run'</script></div><img src=x onerror=\"document.title='run'\"> "
    '<a href="javascript:document.title=1">x</a> &amp; "quoted" \u202eevil'
)
CONSENT = f"We keep what you write here, to train the next policy. {EVIL}"
CODE = "Here it is:\n\n```python\nprint('<b>sea</b>')\n\nx = 1\n```\n\nAnd that is all."
POEM = " ".join(f"word-{number}" for number in range(40))
PIECE = 7
"""Characters of a chunk."""


@dataclass
class StandIn:
    """What the server has, and what it was asked.

    Attributes:
        away: Refuses so many requests for completions, with `status`.
        parts: Whether it collects, moderates and has directives.
    """

    models: tuple[str, ...] = ("base", "ppo")
    parts: bool = True
    token: str = ""
    away: int = 0
    status: int = 429
    retry_after: int = 1
    asked: list[dict[str, Any]] = field(default_factory=list)
    sent: list[tuple[str, Any]] = field(default_factory=list)
    deleted: set[str] = field(default_factory=set)
    gone: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def app(self) -> FastAPI:
        """The application."""
        app = FastAPI(openapi_url=None)
        info = Info()
        info.add("models", lambda: list(self.models))
        if self.parts:
            info.add("collect", lambda: {"consent": CONSENT, "retain_days": 30})
            info.add("moderation", lambda: {"categories": ["kind", "honest"]})
            info.add("directives", lambda: {"digest": "d1", "ids": ["short", "both-sides"]})
            self._add_parts(app)
        add_info(app, info)
        add_page(app)

        @app.get("/v1/models")
        async def models() -> Any:
            return {"object": "list", "data": [{"id": name} for name in self.models]}

        app.post("/v1/chat/completions")(self._chat)
        app.middleware("http")(self._guard)
        return app

    async def _guard(self, request: Request, call: Any) -> Response:
        asks = bool(self.token) and request.url.path.startswith("/v1/")
        if asks and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse(error_body(401, "the token is missing or wrong"), 401)
        answer: Response = await call(request)
        return answer

    def _add_parts(self, app: FastAPI) -> None:
        @app.post("/v1/{name:path}")
        async def told(name: str, request: Request) -> Any:
            body = await request.json()
            if name == "chat/completions":
                return await self._chat(request)
            self.sent.append((name, body))
            named = [body.get(key) for key in ("id", "chosen", "rejected")]
            if self.deleted.intersection(filter(None, named)):
                return JSONResponse(error_body(404, "that exchange is not stored"), 404)
            if name == "moderations":
                scores = {"kind": 0.12, f"honest {EVIL}": 0.91}
                told = {key: score > 0.5 for key, score in scores.items()}
                return {"results": [{"flagged": True, "categories": told, "category_scores": scores}]}
            return {"object": name}

        @app.delete("/v1/chats/{id}")
        async def delete(id: str) -> Any:
            self.deleted.add(id)
            return {"deleted": True}

    async def _chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.away > 0:
            self.away -= 1
            said = error_body(self.status, "the queue is full")
            return JSONResponse(said, self.status, {"Retry-After": str(self.retry_after)})
        return StreamingResponse(self._stream(body), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        question, model = body["messages"][-1]["content"], body["model"]
        head = {"id": f"chatcmpl-{model}-{len(self.asked)}", "model": model}

        def event(*choices: dict[str, Any], **more: Any) -> bytes:
            body = {**head, "choices": list(choices), **more}
            return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()

        if "break off" in question:
            yield event({"index": 0, "delta": {"content": "half an ans"}, "finish_reason": None})
            return
        try:
            for choice in self._choices(question, model):
                if "slow" in question:
                    await asyncio.sleep(0.02)
                yield event(choice)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        more: dict[str, Any] = {"usage": {"completion_tokens": 12}}
        if self.parts:
            more |= {
                "stored": body.get("store") is True,
                "directives": {"digest": "d1", "applied": ["short"] if "short" in question else []},
            }
        yield event(**more)
        yield b"data: [DONE]\n\n"

    def _choices(self, question: str, model: str) -> Iterator[dict[str, Any]]:
        """The chunks of an answer, each of one choice."""
        texts = {0: f"{model} says: {question}"}
        labels: dict[int, str] = {}
        end: dict[str, Any] = {"finish_reason": "stop"}
        if "evil" in question:
            texts = {0: EVIL}
        elif "code" in question:
            texts = {0: CODE}
        elif "slow" in question:
            texts = {0: POEM * 500}
        elif "blocked" in question:
            texts = {0: "The first words. This answer was stopped."}
            end = {
                "finish_reason": "content_filter",
                "moderation": {"category": f"kind {EVIL}", "score": 0.876},
            }
        elif "both sides" in question:
            texts, labels = {0: "It has much for it.", 1: "It has much against it."}, {0: "for", 1: "against"}
        elif "cut" in question:
            end = {"finish_reason": "length"}
        for index, text in texts.items():
            label = {"label": labels[index]} if index in labels else {}
            for at in range(0, len(text), PIECE):
                delta = {"content": text[at : at + PIECE]}
                yield {"index": index, "delta": delta, "finish_reason": None} | label
            yield {"index": index, "delta": {}} | end | label

    @contextmanager
    def running(self) -> Iterator[StandIn]:
        """Answer on a free port, until the block ends."""
        server = uvicorn.Server(uvicorn.Config(self.app(), port=0, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
        yield self
        server.should_exit = True
        thread.join()
