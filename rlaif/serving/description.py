"""`/openapi.json`: FastAPI's description of the routes, corrected until it is true.

A route says its own answers by `errors` and `CHAT`; those that every route may give (an unknown host, a wrong
token, a body that is too long, a defect) are added here. Bodies that cannot be right are answered with 400
and our error object, not with FastAPI's 422.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI

from rlaif.serving.answers import ChatAnswer, ChatChunk, ErrorAnswer
from rlaif.serving.wire import GREATEST_SEED, LEAST_SEED

__all__ = ["CHAT", "PATH", "UPSTREAM", "describe", "errors"]

PATH = "/openapi.json"
MEANINGS = {
    400: "What is asked for cannot be, or the request's Host is not a name of this machine.",
    401: "The token is missing or wrong.",
    404: "There is no such model or thing.",
    413: "The body is too long.",
    429: "As many requests wait as may; with an upstream also when it is full.",
    500: "The model or the server failed.",
    502: "The upstream failed, or made no sense.",
    503: "The server is stopping; with an upstream also when it cannot be reached.",
    504: "The upstream said nothing for too long.",
}
UPSTREAM = (429, 502, 503, 504)
LATER = (429, 503)
"""Statuses with `Retry-After`."""
STREAM = {
    "type": "object",
    "description": "A server-sent event: a piece of the answer, an error that ended it, or [DONE].",
    "properties": {
        "event": {"const": "message"},
        "data": {
            "type": "string",
            "anyOf": [
                {
                    "contentMediaType": "application/json",
                    "contentSchema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/ChatChunk"},
                            {"$ref": "#/components/schemas/ErrorAnswer"},
                        ]
                    },
                },
                {"const": "[DONE]"},
            ],
        },
    },
    "required": ["data"],
    "additionalProperties": False,
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: that it may answer so, with our error object."""
    return {status: {"model": ErrorAnswer, "description": MEANINGS[status]} for status in statuses}


CHAT: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ChatAnswer,
        "description": "The answer; with `stream: true` in pieces.",
        "content": {"text/event-stream": {"schema": STREAM}},
    },
    **errors(404, 429, 503),
}
"""Answers to a request for completions."""


def describe(
    app: FastAPI, *, models: Sequence[str], most: Mapping[str, int], upstream: bool, token: bool
) -> None:
    """Correct what `app.openapi()` says.

    Args:
        models: The names that requests may use; none where only an upstream knows them.
        most: The greatest values of fields that are bounded by how the server was started.
        upstream: Whether another server answers.
        token: Whether one is asked for.
    """
    plain: Callable[[], dict[str, Any]] = app.openapi

    def corrected() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            _correct_forms(schema["components"]["schemas"], models, most)
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    _correct_answers(operation, upstream=upstream, token=token and path != "/health")
            if token:
                schemes = {"token": {"type": "http", "scheme": "bearer"}}
                schema["components"]["securitySchemes"] = schemes
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = corrected  # type: ignore[method-assign]


def _correct_forms(forms: dict[str, Any], models: Sequence[str], most: Mapping[str, int]) -> None:
    """The forms of bodies: FastAPI's own errors leave, pieces of streams come in."""
    for name in ("HTTPValidationError", "ValidationError"):
        forms.pop(name, None)
    chunk = ChatChunk.model_json_schema(ref_template="#/components/schemas/{model}")
    forms |= {name: form for name, form in chunk.pop("$defs").items() if name not in forms}
    forms["ChatChunk"] = chunk
    for form in _schemas(forms):  # FastAPI writes bounds as floats, which cannot hold those of a seed
        if form.get("type") == "integer":
            for bound, far in (("minimum", LEAST_SEED), ("maximum", GREATEST_SEED)):
                if bound in form:
                    form[bound] = far if form[bound] == float(far) else int(form[bound])
    fields = forms["PassedRequest" if "PassedRequest" in forms else "ChatRequest"]["properties"]
    if models:
        fields["model"]["enum"] = list(models)
    for name, greatest in most.items():
        for form in _schemas(fields[name]):
            if form.get("type") == "integer":
                form["maximum"] = greatest


def _schemas(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in it."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _schemas(each)
    elif isinstance(value, list):
        for each in value:
            yield from _schemas(each)


def _correct_answers(operation: dict[str, Any], *, upstream: bool, token: bool) -> None:
    """What one route may answer, and with which headers."""
    answers = operation["responses"]
    answers.pop("422", None)
    added = [400, 500, *([413] if "requestBody" in operation else []), *([401] if token else [])]
    added += UPSTREAM if upstream and "429" in answers else []
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    for status in added:
        answers.setdefault(str(status), {"description": MEANINGS[status], "content": content})
    operation["responses"] = answers = dict(sorted(answers.items()))
    number = {"required": True, "schema": {"type": "string"}, "description": "Of the request, as in the log."}
    seconds = {"required": True, "schema": {"type": "integer", "minimum": 0}}
    for status, answer in answers.items():
        answer["headers"] = {"X-Request-Id": number}
        if int(status) in LATER:
            answer["headers"]["Retry-After"] = seconds
    if token:
        operation["security"] = [{"token": []}]
