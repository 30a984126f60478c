"""What stands before every request: its id, who may ask, how much may be sent, and a line in the log.

Without a token only names of this machine are answered (against names that are pointed here, DNS rebinding);
a page of another site cannot ask, for it may not send JSON without being asked first, and no CORS header says
yes. The server's own page is sent without a token, for it holds no secret.
"""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlaif.serving.metrics import Metrics
from rlaif.serving.page import PAGE_PATHS
from rlaif.serving.refusal import Refusal, error_response
from rlaif.text import one_line

__all__ = ["KNOWN_PATHS", "Guard", "GuardSettings"]

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
OPEN_PATHS = ("/health", *PAGE_PATHS)
"""Answered without a token."""
KNOWN_PATHS = (
    "/v1/chat/completions",
    "/v1/models",
    "/v1/moderations",
    "/v1/feedback",
    "/v1/preferences",
    "/v1/info",
    "/health",
    "/metrics",
    "/openapi.json",
    "/",
)
LOCAL = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
SHOWN = 200
"""Characters of a path that the log shows."""


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Who may ask, and how much.

    Attributes:
        token: What `Authorization: Bearer` must say; anybody on this machine may ask when it is empty.
        most_body: Bytes of a request's body.
    """

    token: str = ""
    most_body: int = 1 << 20


class Guard:
    """An ASGI application before another."""

    def __init__(
        self, app: ASGIApp, settings: GuardSettings, metrics: Metrics, log: Callable[[str], None]
    ) -> None:
        self.app = app
        self.settings = settings
        self.metrics = metrics
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = number
        started, status = time.monotonic(), 499  # as nginx calls a client that has gone

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = number
            await send(message)

        try:
            if (refusal := self._refusal(scope["path"], headers)) is not None:
                await error_response(refusal)(scope, receive, send_with_id)
            else:
                await self.app(scope, self._bounded(receive), send_with_id)
        finally:
            path = scope["path"]
            self.metrics.answered(path if path in KNOWN_PATHS else "other", status)
            took = (time.monotonic() - started) * 1000
            shown = one_line(path)[:SHOWN]
            self.log(f"{scope['method']} {shown} {status} {took:.0f} ms id={number}")

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        """Why a request is not even read."""
        token = self.settings.token
        if not token and not LOCAL.fullmatch(headers.get("host", "")):
            return Refusal(400, "this server answers to names of its own machine only", code="bad_host")
        if token and path not in OPEN_PATHS:
            scheme, _, said = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(said.strip().encode(), token.encode()):
                what = "the token is missing or wrong: send Authorization: Bearer TOKEN"
                return Refusal(401, what, code="invalid_api_key")
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:19]) > self.settings.most_body:
            return self._too_large()
        return None

    def _bounded(self, receive: Receive) -> Receive:
        """`receive` that refuses a body that is longer than may be, also where its length was not said."""
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.settings.most_body:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> Refusal:
        most = self.settings.most_body
        return Refusal(413, f"the body may have {most} bytes at most", code="request_too_large")
