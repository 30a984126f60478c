"""Errors as OpenAI's API has them: a status, and `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from rlaif.serving.work import Failed
from rlaif.text import well_formed

__all__ = ["Refusal", "error_body", "error_response", "refusal_of"]

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
"""Of the errors that are neither the request's (`invalid_request_error`) nor the server's."""


class Refusal(HTTPException):
    """A request that is not answered with what it asks for.

    Args:
        status: HTTP status.
        message: What is wrong, and what to do.
        param: The field of the request that it is about.
        code: A name for programs to act on.
        retry_after: Seconds after which it may be tried again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers=headers or None)
        self.message = message
        self.param = param
        self.code = code


def refusal_of(failed: Failed) -> Refusal:
    """The answer to a request whose job failed before anything of it was sent."""
    return Refusal(
        failed.status, failed.reason, param=failed.param, code=failed.code, retry_after=failed.retry_after
    )


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Any:
    """The JSON of an error."""
    type = TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    message, param = well_formed(message), None if param is None else well_formed(param)
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def error_response(error: Refusal) -> JSONResponse:
    """The answer to a request that is refused."""
    body = error_body(error.status_code, error.message, param=error.param, code=error.code)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
