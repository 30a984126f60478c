"""Serves a session to a browser on this machine, and to nobody else.

It listens on the loopback address. Every path begins with a random token, so that other users and other
pages of the browser cannot guess it; the Host header is checked, against names that are pointed here (DNS
rebinding); a change needs a POST of JSON, which a foreign page cannot send without being asked first.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlaif.collect.page import PAGE
from rlaif.collect.session import CLICKS, Session
from rlaif.collect.summary import summary
from rlaif.errors import ConfigError, RlaifError
from rlaif.files import parse_object

__all__ = ["CollectServer"]

HOST = "127.0.0.1"
MOST_BODY = 4096
"""Bytes of a request's body."""
SECONDS = 30
"""After which a connection that says nothing is closed."""


class _Refused(Exception):
    """A request that is not answered with what it asks for."""

    def __init__(self, status: HTTPStatus, problem: str) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem


class CollectServer(ThreadingHTTPServer):
    """The page of a session; `serve_forever` returns when the annotator has finished.

    Args:
        port: 0 takes any that is free.

    Raises:
        ConfigError: The port is taken, or may not be listened on.
    """

    daemon_threads = True

    def __init__(self, session: Session, *, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.guard = threading.Lock()
        self.finished = False
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on port {port} ({error.strerror or error})",
                where="--port",
                remedy="name another port, or 0 for any that is free",
            ) from error

    @property
    def url(self) -> str:
        """Where the page is; who knows it can label."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def told(self) -> dict[str, Any]:
        """The state of the session for the page, with the summary at its end."""
        state = self.session.state()
        if state["pair"] is None:
            state["summary"] = summary(self.session)
        return {"state": state}

    def finish(self) -> dict[str, Any]:
        """Take note that the annotator has finished; `serve_forever` ends when that was answered."""
        self.finished = True
        return {"finished": True, "summary": summary(self.session)}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away before its answer is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: CollectServer
    timeout = SECONDS
    server_version = "rlaif"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        try:
            self._answer(self._post)
        finally:
            if self.server.finished:
                # `shutdown` waits for the loop, which may wait for this thread.
                threading.Thread(target=self.server.shutdown, daemon=True).start()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: their paths hold the token."""

    def _answer(self, handle: Any) -> None:
        try:
            path = self._path()
            with self.server.guard:
                told = handle(path)
        except _Refused as refused:
            self._send_json({"problem": refused.problem}, refused.status)
        except RlaifError as error:  # the disk refused: the page says so, and nothing counts as written
            self._send_json({"problem": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)
        else:
            if told is None:
                self._send_page()
            else:
                self._send_json(told, HTTPStatus.CONFLICT if "problem" in told else HTTPStatus.OK)

    def _path(self) -> str:
        """What is asked for behind the token.

        Raises:
            _Refused: The Host header or the token is not ours.
        """
        port = self.server.server_port
        if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            raise _Refused(HTTPStatus.FORBIDDEN, "this page is served to this machine only")
        _, _, rest = self.path.partition("/")
        token, slash, path = rest.partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.NOT_FOUND, "open the address that rlaif collect labels has printed")
        return path

    def _get(self, path: str) -> dict[str, Any] | None:
        if path == "":
            return None
        if path == "state":
            return self.server.told()
        raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _post(self, path: str) -> dict[str, Any]:
        body = self._body()
        session = self.server.session
        match path:
            case "answer":
                key, click = body.get("pair"), body.get("click")
                if not isinstance(key, str) or click not in CLICKS:
                    raise _Refused(
                        HTTPStatus.BAD_REQUEST, f"give pair, and click: one of {', '.join(CLICKS)}"
                    )
                problem = "" if session.answer(key, click) else "that pair is not the one that is asked about"
            case "undo":
                problem = "" if session.undo() else "there is nothing of this session to undo"
            case "finish":
                return self.server.finish()
            case _:
                raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        return self.server.told() | ({"problem": problem} if problem else {})

    def _body(self) -> dict[str, Any]:
        """The JSON object of a request.

        Raises:
            _Refused: It is none, too long, or of another type.
        """
        if self.headers.get_content_type() != "application/json" or "Transfer-Encoding" in self.headers:
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "say the length of the body")
        if len(length) > 9 or int(length) > MOST_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MOST_BODY} bytes are read")
        try:
            return parse_object(self.rfile.read(int(length)).decode())
        except ValueError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"the body is not a JSON object ({error})") from None

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        body = PAGE.replace("NONCE", nonce).encode()
        self._send(body, HTTPStatus.OK, type="text/html; charset=utf-8", policy=policy)

    def _send_json(self, value: dict[str, Any], status: HTTPStatus) -> None:
        self._send(json.dumps(value).encode(), status, type="application/json", policy="default-src 'none'")

    def _send(self, body: bytes, status: HTTPStatus, *, type: str, policy: str) -> None:
        headers = {
            "Content-Type": type,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
