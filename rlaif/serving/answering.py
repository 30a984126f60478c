"""A request for completions answered: whole, or as server-sent events while it is decoded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from rlaif.serving.collecting import kept, kept_stream
from rlaif.serving.decoder import NotServing, QueueFull
from rlaif.serving.moderations import blocked_at_once, tell
from rlaif.serving.refusal import Refusal, error_body, refusal_of
from rlaif.serving.service import Service
from rlaif.serving.steering import Work
from rlaif.serving.wire import ChatCompletion, ChatRequest, event
from rlaif.serving.work import Event, Failed, Finished

__all__ = ["answered"]

Told = TypeVar("Told")

GONE = 499
"""Status in the log of a request whose client did not wait for the answer."""


class _Inbox:
    """What the decoder tells of one job, carried to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._ahead: Event | None = None

    def put(self, told: Event) -> None:
        """Add an event, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, told)

    async def get(self) -> Event:
        """The next event."""
        told, self._ahead = self._ahead, None
        return told or await self._events.get()

    async def first(self) -> Event:
        """The first event, which stays the next one."""
        self._ahead = self._ahead or await self._events.get()
        return self._ahead

    async def whole(self, answer: ChatCompletion) -> Failed | Finished:
        """Gather all events into `answer`; returns the last."""
        while True:
            told = await self.get()
            if isinstance(told, Failed):
                return told
            answer.add(told)
            if isinstance(told, Finished):
                return told


async def answered(service: Service, request: Request, body: ChatRequest) -> Response:
    """Answer a request for completions."""
    inbox = _Inbox()
    try:
        work = await _unless_gone(request, service.planned(body, inbox.put))
        if work is None:
            return Response(status_code=GONE)
        if not await blocked_at_once(service.moderation, service.batcher, work.jobs, work.messages):
            work.submit(service.batcher)
    except QueueFull as full:
        raise Refusal(429, str(full), code="queue_full", retry_after=full.retry_after) from None
    except NotServing as stopping:
        raise Refusal(503, str(stopping), retry_after=5) from None
    answer = ChatCompletion(request.state.request_id, body.model, beside=work.beside, labels=work.labels)
    if body.stream:
        if service.upstream is not None and not await _begins(service, work, inbox, request):
            return Response(status_code=GONE)
        stream = _streamed(service, work, inbox, answer, with_usage=body.wants_usage)
        stream = kept_stream(service.chats, body, stream, lambda: answer.usage)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
    return await _whole(service, work, inbox, answer, request, body)


async def _whole(
    service: Service, work: Work, inbox: _Inbox, answer: ChatCompletion, request: Request, body: ChatRequest
) -> Response:
    """The answer in one piece; given up when the client goes away."""
    try:
        told = await _unless_gone(request, inbox.whole(answer))
        if told is None:
            return Response(status_code=GONE)
        if isinstance(told, Failed):
            raise refusal_of(told)
    finally:
        work.cancel(service.batcher)
    _log_answer(service, work, answer)
    return JSONResponse(await kept(service.chats, body, answer.body()))


async def _begins(service: Service, work: Work, inbox: _Inbox, request: Request) -> bool:
    """Wait for the first piece of a stream, so that a request which gets none is refused with a status; False
    when the client goes away before."""
    told: Event | None = None
    try:
        told = await _unless_gone(request, inbox.first())
    finally:
        if told is None or isinstance(told, Failed):
            work.cancel(service.batcher)
    if isinstance(told, Failed):
        raise refusal_of(told)
    return told is not None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Told]) -> Told | None:
    """The result of `work`; None, and no work any more, when the client closes the connection before."""
    gone, done = asyncio.create_task(_gone(request)), asyncio.create_task(work)
    try:
        await asyncio.wait((gone, done), return_when=asyncio.FIRST_COMPLETED)
        return done.result() if done.done() else None
    finally:
        gone.cancel()
        done.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _streamed(
    service: Service, work: Work, inbox: _Inbox, answer: ChatCompletion, *, with_usage: bool
) -> AsyncIterator[bytes]:
    """The answer as server-sent events; its jobs are cancelled when nobody reads them any more."""
    begun: set[int] = set()
    try:
        while True:
            told = await inbox.get()
            if isinstance(told, Failed):
                yield event(error_body(told.status, told.reason, param=told.param, code=told.code))
                return
            answer.add(told)
            if isinstance(told, Finished):
                break
            first = told.choice not in begun
            begun.add(told.choice)
            yield event(answer.piece(told, first=first, with_usage=with_usage))
        if with_usage:
            last: dict[str, Any] = {"object": "chat.completion.chunk", "choices": [], "usage": answer.usage}
            yield event({**answer.head, **last, **work.beside})
        _log_answer(service, work, answer)
        yield b"data: [DONE]\n\n"
    finally:
        work.cancel(service.batcher)


def _log_answer(service: Service, work: Work, answer: ChatCompletion) -> None:
    for line in tell(service.moderation, work.jobs, answer):
        service.log(line)
    if service.log_texts:
        asked = [message.as_dict() for message in work.messages]
        texts = [answer.texts.get(choice, "") for choice in sorted(answer.ended)]
        service.log(json.dumps({"id": answer.head["id"], "messages": asked, "completions": texts}))
