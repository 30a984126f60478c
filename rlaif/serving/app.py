"""The HTTP interface: chat completions as OpenAI's API has them, the models, health and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from rlaif.serving.answering import answered
from rlaif.serving.answers import Health, ModelList
from rlaif.serving.collecting import add_routes
from rlaif.serving.description import CHAT, PATH, UPSTREAM, describe, errors
from rlaif.serving.guard import KNOWN_PATHS, Guard, GuardSettings
from rlaif.serving.info import add_info
from rlaif.serving.moderations import add_moderations
from rlaif.serving.page import add_page
from rlaif.serving.passed import PassedRequest
from rlaif.serving.refusal import Refusal, error_body, error_response
from rlaif.serving.service import Service
from rlaif.serving.wire import ChatRequest
from rlaif.text import count_of

__all__ = ["create_app"]

LISTED = 5
"""Problems of one request that are spelled out."""
PENALTIES = ("presence_penalty", "frequency_penalty")
"""Fields that a model in this process takes at 0 only."""


def create_app(service: Service, settings: GuardSettings) -> Guard:
    """The ASGI application."""
    app = FastAPI(title="rlaif", docs_url=None, redoc_url=None, openapi_url=PATH)

    async def chat(request: Request, body: ChatRequest) -> Response:
        return await answered(service, request, body)

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


async def _invalid(request: Request, error: Exception) -> Response:
    """400 for a body that is not a request, with every problem."""
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if any(problem["type"] == "json_invalid" for problem in problems):
        return error_response(Refusal(400, f"the body is not JSON: {problems[0]['ctx']['error']}"))
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        return error_response(Refusal(400, "send a JSON object, with Content-Type: application/json"))
    places = [".".join(_named(problem["loc"][1:])) for problem in problems]
    said = [f"{place or 'body'}: {_said(problem)}" for place, problem in zip(places, problems, strict=True)]
    more = f"; and {count_of(len(said) - LISTED, 'more problem')}" if len(said) > LISTED else ""
    param = places[0].split(".")[0] or None
    return error_response(Refusal(400, "; ".join(said[:LISTED]) + more, param=param))


def _named(place: Sequence[Any]) -> list[str]:
    """The fields and numbers of a place, without the forms that were tried for them (`str`, `list[…]`)."""
    return [str(part) for part in place if isinstance(part, int) or (part.isidentifier() and part != "str")]


def _said(problem: Any) -> str:
    refused = problem["type"] in ("extra_forbidden", "none_required")
    idle = problem["loc"][-1] in PENALTIES and problem["type"] in ("less_than_equal", "greater_than_equal")
    return "is not supported here" if refused or idle else str(problem["msg"])


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
