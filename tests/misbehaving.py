"""An HTTP server on 127.0.0.1 that speaks the OpenAI API, and misbehaves when told to.

    with MisbehavingServer() as server:
        server.misbehave(status(429, retry_after=0.05), cut())   # the next two questions
        engine = OpenAIEngine("toy", [server.url], ...)

A good answer depends on the question alone (`truth`, `echo`), so that a test can tell whether every request
got its own. Probes, which an engine sends before its first question, are answered well unless the server is
built otherwise.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from rlaif.digest import unit_from

Action = Callable[["Handler", dict[str, Any]], None]
PROBES = ("Answer with one letter, A or B.", "Write the numbers from one to eight")


def question_of(body: Mapping[str, Any]) -> str:
    """The last message's text, or the prompt."""
    return str(body["prompt"]) if "prompt" in body else str(body["messages"][-1]["content"])


def truth(question: str) -> tuple[float, float]:
    """Log-probabilities of A and B that a good answer tells."""
    share = 0.1 + 0.6 * unit_from("truth", question)
    return math.log(share), math.log(0.9 - share)


def echo(question: str) -> str:
    """The completion that a good answer holds."""
    return f"You said: {question}"


def chat_top(*pairs: tuple[str, Any]) -> dict[str, Any]:
    """The `logprobs` of a chat answer."""
    top = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in pairs]
    return {"content": [{"token": pairs[0][0], "logprob": pairs[0][1], "bytes": None, "top_logprobs": top}]}


def good(body: dict[str, Any], *, logprobs: bool = True) -> dict[str, Any]:
    """The right answer to a question."""
    question = question_of(body)
    a, b = truth(question)
    chat = "messages" in body
    text = echo(question) if body.get("max_tokens", 99) > 8 else ("A" if a > b else "B")
    ranked = sorted([(" A", a), (" B", b), (" the", math.log(0.1))], key=lambda pair: -pair[1])
    told = chat_top(*ranked) if chat else {"top_logprobs": [dict(ranked)], "tokens": [ranked[0][0]]}
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    if body.get("logprobs") and logprobs:
        choice["logprobs"] = told
    closed = body.get("messages", [{}])[-1].get("role") == "assistant" and not body.get(
        "continue_final_message"
    )
    tokens = len(json.dumps(body.get("messages", question)).split()) + (4 if closed else 0)
    usage = {
        "prompt_tokens": tokens,
        "completion_tokens": len(text.split()),
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    return {"id": "x", "choices": [choice], "usage": usage}


def answer(change: Callable[[dict[str, Any]], Any] = lambda reply: reply) -> Action:
    """A good answer, changed before it is sent."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        handler.reply(json.dumps(change(good(body))).encode())

    return act


def logprobs(*pairs: tuple[str, Any]) -> Action:
    """An answer that tells these tokens."""

    def change(reply: dict[str, Any]) -> dict[str, Any]:
        reply["choices"][0]["logprobs"] = chat_top(*pairs)
        return reply

    return answer(change)


def body_of(raw: bytes) -> Action:
    """These bytes, with status 200."""
    return lambda handler, _body: handler.reply(raw)


def status(code: int, message: str = "no", *, retry_after: str | float | None = None) -> Action:
    """An error as the API writes it."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    raw = json.dumps({"error": {"message": message, "type": "error", "code": None}}).encode()
    return lambda handler, _body: handler.reply(raw, code=code, headers=headers)


def echo_key(code: int = 400) -> Action:
    """An error that tells the key back, as careless servers do."""

    def act(handler: Handler, _body: dict[str, Any]) -> None:
        key = handler.headers["Authorization"].removeprefix("Bearer ")
        handler.reply(
            json.dumps({"error": {"message": f"bad key {key} in {dict(handler.headers)}"}}).encode(),
            code=code,
        )

    return act


def cut(after: int = 10) -> Action:
    """The connection ends in the middle of the answer."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        raw = json.dumps(good(body)).encode()
        handler.begin(200, len(raw), {})
        handler.wfile.write(raw[:after])
        handler.close_connection = True

    return act


def hang_up() -> Action:
    """The connection ends before the answer."""

    def act(handler: Handler, _body: dict[str, Any]) -> None:
        handler.close_connection = True

    return act


def slow(seconds: float) -> Action:
    """A good answer, a byte at a time, over so many seconds or until the client leaves."""

    def act(handler: Handler, body: dict[str, Any]) -> None:
        raw = json.dumps(good(body)).encode()
        handler.begin(200, len(raw), {})
        try:
            for byte in raw:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(seconds / len(raw))
        except OSError:
            handler.close_connection = True

    return act


class Handler(BaseHTTPRequestHandler):
    """Answers one request as its server says."""

    protocol_version = "HTTP/1.1"
    server: _Http

    def do_GET(self) -> None:
        owner = self.server.owner
        if owner.models is None:
            self.reply(b"{}", code=404)
        else:
            self.reply(json.dumps({"object": "list", "data": owner.models}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.owner.act_on(body)(self, body)
        self.server.owner.ended()

    def begin(self, code: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(length),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, raw: bytes, *, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        try:
            self.begin(code, len(raw), headers or {})
            self.wfile.write(raw)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


class _Http(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128
    owner: MisbehavingServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what the tests are about."""


class MisbehavingServer:
    """See the module.

    Args:
        models: What `GET /models` lists; `None` answers 404.
        always: What every question gets that has no action of its own.
        probes: What the engine's probes get.
        capacity: Questions at once; one more gets 429.
        work: Seconds that an answer takes.
        port: Where it listens; a free one where it is 0.

    Attributes:
        asked: Bodies of the questions, probes left out, in the order in which they came.
        probed: Bodies of the probes.
        most_at_once: Questions that were open at the same time, at most.
    """

    def __init__(
        self,
        *,
        models: list[dict[str, Any]] | None = None,
        always: Action | None = None,
        probes: Action | None = None,
        capacity: int | None = None,
        work: float = 0.0,
        port: int = 0,
    ) -> None:
        self.models = models
        self.asked: list[dict[str, Any]] = []
        self.probed: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._always = always or answer()
        self._probes = probes or answer()
        self._capacity = capacity
        self._work = work
        self._open = 0
        self._actions: deque[Action] = deque()
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", port), Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def misbehave(self, *actions: Action) -> None:
        """What the next questions get, in their order."""
        self._actions.extend(actions)

    def act_on(self, body: dict[str, Any]) -> Action:
        """The action for a question; counts it."""
        with self._lock:
            self._open += 1
            texts = [str(turn["content"]) for turn in body.get("messages", ())] + [str(body.get("prompt"))]
            if any(probe in text for probe in PROBES for text in texts):
                self.probed.append(body)
                return self._probes
            self.asked.append(body)
            self.most_at_once = max(self.most_at_once, self._open)
            full = self._capacity is not None and self._open > self._capacity
            action = status(429) if full else self._actions.popleft() if self._actions else self._always
        if not full:
            time.sleep(self._work)
        return action

    def ended(self) -> None:
        """A question was answered, well or not."""
        with self._lock:
            self._open -= 1

    def __enter__(self) -> MisbehavingServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
