"""The HTTP interface: chat completions as OpenAI's API has them, the models, health and metrics."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from rlaif.engines.base import Sampling
from rlaif.engines.chat import TemplateRefusal
from rlaif.serving.answers import Health, ModelList
from rlaif.serving.collecting import Collecting, add_routes, kept, kept_stream
from rlaif.serving.decoder import Decoder, NotServing, QueueFull
from rlaif.serving.description import CHAT, PATH, UPSTREAM, describe, errors
from rlaif.serving.guard import KNOWN_PATHS, Guard, GuardSettings
from rlaif.serving.info import Info, add_info
from rlaif.serving.metrics import Metrics
from rlaif.serving.moderating import Moderation
from rlaif.serving.moderations import add_moderations, blocked_at_once, tell
from rlaif.serving.page import add_page
from rlaif.serving.passed import PassedRequest
from rlaif.serving.refusal import Refusal, error_body, error_response, refusal_of
from rlaif.serving.steering import Steering, Work
from rlaif.serving.wire import ChatCompletion, ChatRequest, event
from rlaif.serving.work import Event, Failed, Finished, Job
from rlaif.serving.worker import Worker
from rlaif.text import count_of
from rlaif.types import Message

if TYPE_CHECKING:
    from rlaif.serving.residents import Residents
    from rlaif.serving.upstream import Upstream

__all__ = ["Service", "create_app"]

Told = TypeVar("Told")

GONE = 499
"""Status in the log of a request whose client did not wait for the answer."""

SOON = 5
"""Seconds after which a client may ask again, where directives have too much to decide."""
LISTED = 5
"""Problems of one request that are spelled out."""


@dataclass(frozen=True)
class Service:
    """What the application serves.

    Attributes:
        residents: The models in this process; none where `upstream` answers.
        upstream: The decoder, where it is a server behind this one.
        moderation: Decides what is decoded and what of it goes out.
        most_tokens: Longest completion that may be asked for, and the length where a request says nothing.
        log_texts: Whether the log holds what was asked and answered.
        chats: Where exchanges are kept that agree to it.
        steering: Directives that every answer follows.
        info: What `GET /v1/info` says; each part adds its field.
    """

    residents: Residents | None
    batcher: Decoder
    metrics: Metrics
    upstream: Upstream | None = None
    moderation: Moderation | None = None
    most_tokens: int = 1024
    log: Callable[[str], None] = lambda line: None
    log_texts: bool = False
    chats: Collecting | None = None
    steering: Steering | None = None
    info: Info = field(default_factory=Info)
    started: int = field(default_factory=lambda: int(time.time()))
    _tokenizing: threading.Lock = field(default_factory=threading.Lock)
    _planner: Worker = field(default_factory=lambda: Worker("rlaif-directives"))

    @property
    def here(self) -> Residents:
        """The models in this process."""
        assert self.residents is not None
        return self.residents

    async def models(self) -> list[dict[str, Any]]:
        """The models that requests may name, as the API lists them.

        Raises:
            Refusal: The upstream does not say.
        """
        if self.upstream is not None:
            return await self.upstream.models()
        return [
            {"id": name, "object": "model", "created": self.started, "owned_by": "rlaif"}
            for name in self.here.roles
        ]

    def names(self) -> list[str]:
        """The models that requests may name, as far as they are known without asking an upstream."""
        if self.residents is None:
            return [] if self.upstream is None else list(self.upstream.names)
        return list(self.residents.roles)

    def most(self) -> dict[str, int]:
        """The greatest values of the fields of a request."""
        found = {"max_tokens": self.most_tokens, "max_completion_tokens": self.most_tokens}
        if self.upstream is None:
            rows = self.batcher.limits.rows
            found |= {"n": rows, "n_best": rows if self.here.reward is not None else 1}
        return found

    async def planned(self, body: ChatRequest, emit: Callable[[Event], None]) -> Work:
        """`work` on another thread: one alone where directives decide, which may ask a judge.

        Raises:
            Refusal: As by `work`.
            QueueFull: As much waits for the directives as may.
            NotServing: The server has stopped.
        """
        if self.steering is None:
            return await asyncio.to_thread(self.work, body, emit)
        limits, waiting = self.batcher.limits, self._planner.waiting
        if waiting >= limits.queue + limits.rows:
            raise QueueFull(waiting, SOON)
        return await asyncio.wrap_future(self._planner.submit(partial(self.work, body, emit)))

    def close(self) -> None:
        """Plan nothing more."""
        self._planner.close()

    def work(self, body: ChatRequest, emit: Callable[[Event], None]) -> Work:
        """The jobs that answer a request, as the directives say.

        Raises:
            Refusal: It asks for what there is not, or for more than may be.
        """
        if self.steering is None:
            return Work((self.job(body, emit),))
        choices, best_only = self.checked(body)
        stride = 1 if best_only else choices
        return self.steering.work(body.turns, emit, partial(self.job, body), choices=stride)

    def checked(self, body: ChatRequest) -> tuple[int, bool]:
        """How many completions are sampled, and whether only the best is wanted.

        Raises:
            Refusal: It asks for what there is not, or for fields that do not go together.
        """
        _check_fields(body)
        if self.upstream is not None:
            self.upstream.check(body)
            return body.n or 1, False
        if body.model not in self.here.roles:
            known = ", ".join(self.here.roles)
            what = f"there is no model {body.model!r} here; there are {known}"
            raise Refusal(404, what, param="model", code="model_not_found")
        return self._samples(body)

    def job(
        self, body: ChatRequest, emit: Callable[[Event], None], messages: Sequence[Message] | None = None
    ) -> Job:
        """What a request asks of the decoder.

        Args:
            messages: What the policy reads in place of the request's messages.

        Raises:
            Refusal: It asks for what there is not, or for more than may be.
        """
        samples, best_only = self.checked(body)
        messages = body.turns if messages is None else tuple(messages)
        if self.upstream is not None:
            most = self.most_tokens
            return self.upstream.job(body, messages, emit, most_tokens=most, moderation=self.moderation)
        ids = self._encoded(messages)
        sampling = Sampling(
            max_new_tokens=self._length(body, len(ids), scored=best_only),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            stop=body.stops,
        )
        return Job(
            role=self.here.roles[body.model],
            ids=ids,
            messages=messages,
            sampling=sampling,
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            emit=emit,
            samples=samples,
            best_only=best_only,
            moderation=self.moderation,
        )

    def _samples(self, body: ChatRequest) -> tuple[int, bool]:
        """How many completions are sampled, and whether only the best is wanted."""
        best = body.n_best or 1
        if best > 1 and self.here.reward is None:
            what = "n_best needs a reward model: start the server with --reward"
            raise Refusal(400, what, param="n_best")
        if best > 1 and (body.n or 1) > 1:
            raise Refusal(400, "n and n_best do not go together", param="n_best")
        samples, most = max(best, body.n or 1), self.batcher.limits.rows
        if samples > most:
            name = "n_best" if best > 1 else "n"
            raise Refusal(400, f"at most {most} completions are sampled side by side here", param=name)
        return samples, best > 1

    def _encoded(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's tokens."""
        form = self.here.form
        with self._tokenizing:
            try:
                ids = tuple(form.encode([form.render(messages)])[0])
            except TemplateRefusal as error:
                raise Refusal(400, error.what, param="messages") from None
        if max(ids, default=0) >= self.here.base.model.get_input_embeddings().weight.shape[0]:
            raise Refusal(400, "the messages hold a token that the model does not have", param="messages")
        return ids

    def _length(self, body: ChatRequest, prompt: int, *, scored: bool) -> int:
        """The longest completion in tokens; one that is scored needs room for the end of its turn."""
        context, wanted, reward = self.here.base.context, body.most_tokens, self.here.reward
        if reward is not None and scored:
            context -= len(reward.format.close)
        if wanted is not None and wanted > self.most_tokens:
            what = f"at most {self.most_tokens} tokens may be asked for here, not {wanted}"
            raise Refusal(400, what, param="max_tokens")
        room = context - prompt
        if room < (wanted or 1):
            asked = "" if wanted is None else f" and the {wanted} asked for"
            what = f"the messages have {prompt} tokens; they{asked} pass the model's context of {context}"
            raise Refusal(400, what, param="messages", code="context_length_exceeded")
        return min(self.most_tokens, room) if wanted is None else wanted


def _check_fields(body: ChatRequest) -> None:
    """Refuse fields that contradict each other, or that would have no effect."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        what = "max_tokens and max_completion_tokens mean the same: send one of them"
        raise Refusal(400, what, param="max_completion_tokens")
    if body.stream_options is not None and not body.stream:
        raise Refusal(400, "stream_options needs stream: true", param="stream_options")


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


def create_app(service: Service, settings: GuardSettings) -> Guard:
    """The ASGI application."""
    app = FastAPI(title="rlaif", docs_url=None, redoc_url=None, openapi_url=PATH)

    async def chat(request: Request, body: ChatRequest) -> Response:
        return await _chat(service, request, body)

    chat.__annotations__["body"] = ChatRequest if service.upstream is None else PassedRequest
    app.post("/v1/chat/completions", responses=CHAT)(chat)

    waits = errors(*UPSTREAM) if service.upstream is not None else {}

    @app.get("/v1/models", response_model=ModelList, response_model_exclude_unset=True, responses=waits)
    async def models() -> Any:
        return {"object": "list", "data": await service.models()}

    @app.get("/health", response_model=Health, responses=errors(503))
    async def health() -> Any:
        if not service.batcher.alive:
            raise Refusal(503, "the server is stopping, or its decoder has ended", retry_after=5)
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        gauges = {"rlaif_rows": service.batcher.rows, "rlaif_waiting": service.batcher.waiting}
        text = service.metrics.text(gauges)
        if service.moderation is not None:
            text += service.moderation.metrics()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    add_moderations(app, service.moderation, service.batcher)
    add_routes(app, service.chats)
    _tell(service)
    add_info(app, service.info)
    add_page(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(Exception, _broken)
    names = () if service.residents is None else tuple(service.residents.roles)
    upstream, token = service.upstream is not None, bool(settings.token)
    describe(app, models=names, most=service.most(), upstream=upstream, token=token)
    return Guard(app, settings, service.metrics, service.log)


def _tell(service: Service) -> None:
    """Say in `GET /v1/info` what the server has."""
    service.info.add("models", service.names)
    if service.chats is not None:
        chats = service.chats
        service.info.add("collect", lambda: chats.info)
    if service.steering is not None:
        service.info.add("directives", service.steering.info)
    if service.moderation is not None:
        categories = list(service.moderation.moderator.categories)
        service.info.add("moderation", lambda: {"categories": categories})


async def _chat(service: Service, request: Request, body: ChatRequest) -> Response:
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


async def _invalid(request: Request, error: Exception) -> Response:
    """400 for a body that is not a request, with every problem."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return error_response(Refusal(400, f"the body is not JSON: {problems[0]['ctx']['error']}"))
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return error_response(Refusal(400, "send a JSON object, with Content-Type: application/json"))
    places = [".".join(str(part) for part in problem["loc"][1:]) for problem in problems]
    said = [f"{place or 'body'}: {_said(problem)}" for place, problem in zip(places, problems, strict=True)]
    more = f"; and {count_of(len(said) - LISTED, 'more problem')}" if len(said) > LISTED else ""
    param = places[0].split(".")[0] or None
    return error_response(Refusal(400, "; ".join(said[:LISTED]) + more, param=param))


def _said(problem: Any) -> str:
    refused = problem["type"] in ("extra_forbidden", "none_required")
    return "is not supported here" if refused else str(problem["msg"])


async def _refused(request: Request, error: Exception) -> Response:
    """Any error with a status, ours and the framework's."""
    if isinstance(error, Refusal):
        return error_response(error)
    assert isinstance(error, StarletteHTTPException)
    said = str(error.detail)
    if error.status_code == 404:
        said = f"there is no {request.url.path} here; there are {', '.join(KNOWN_PATHS)}"
    return JSONResponse(error_body(error.status_code, said), error.status_code, error.headers)


async def _broken(_request: Request, _error: Exception) -> Response:
    """A defect of ours: the traceback goes to the log, not to the client."""
    return error_response(Refusal(500, "the server failed; its log says more"))
