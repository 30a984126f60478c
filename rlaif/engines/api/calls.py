"""One request to one server, through the `openai` client and retried by `tenacity` (both come with
`rlaif-toolkit[api]`).

Every failure is sorted into one of three: *transient* (asked again, here or elsewhere; a reply that makes no
sense too), *rejected* (this request, for good) and *fatal* (no request can succeed: the key is refused). The
texts of these errors are ours; of a server's own text a short piece is told, with the key taken out.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from itertools import chain, cycle
from types import TracebackType
from typing import Any, Literal, TypeVar

import openai
import tenacity

from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.api.http import AGAIN, FULL, http_library, open_http, retry_after
from rlaif.engines.api.servers import Server
from rlaif.engines.api.wire import Malformed
from rlaif.errors import ModelError

__all__ = ["Clients", "Rejected", "Transient", "retrying"]

Result = TypeVar("Result")

TOO_LONG = (
    "context length",
    "context window",
    "maximum context",
    "too long",
    "too many tokens",
    "context size",
    "context_length",
)
POOL = 32
"""Connections a client: its pool walks through all of them for every request."""

BACKOFF_MAX = 30.0
AT_LENGTH = 20_000
"""Characters of a server's words that are looked through."""


class Transient(Exception):
    """May succeed when asked again; `elsewhere` says that another server should be asked, `said` is the
    server's own word, redacted."""

    def __init__(self, reason: str, *, elsewhere: bool = False, said: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.elsewhere = elsewhere
        self.said = said


class Rejected(Exception):
    """The server will not answer this request; `detail` is its own word, redacted, in short, and `said` at
    length."""

    def __init__(self, reason: str, detail: str = "", *, status: int = 0, said: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.status = status
        self.said = said or detail


class Clients:
    """Clients of each server, open as long as the `async with`; they take turns.

    Args:
        key: Sent to every server.
        timeout: Seconds for a whole request, however slowly its bytes come.
        connections: As many requests are sent to one server at once.
    """

    def __init__(self, servers: list[Server], *, key: ApiKey, timeout: float, connections: int) -> None:
        self._key = key
        self._timeout = timeout
        each = range(0, connections, POOL)
        self._open = {
            server.url: [_client(server.url, key, timeout, connections) for _ in each] for server in servers
        }
        self._turns = {url: cycle(clients) for url, clients in self._open.items()}

    async def __aenter__(self) -> Clients:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in chain.from_iterable(self._open.values()):
            await client.close()

    async def models(self, server: Server) -> Any:
        """The body of `GET /models`."""
        models = next(self._turns[server.url]).models.with_raw_response
        return await self._send(server, lambda: models.list())

    async def tokenize(self, server: Server, model: str, text: str) -> Any:
        """The body of the answer to `POST /tokenize`, which vLLM has beside `/v1`."""
        return await self.tokenized(server, {"model": model, "prompt": text, "add_special_tokens": False})

    async def tokenized(self, server: Server, body: Mapping[str, Any]) -> Any:
        """The body of the answer to `POST /tokenize` with this body: a text, or messages."""
        url = server.url.removesuffix("/").removesuffix("/v1") + "/tokenize"
        client = next(self._turns[server.url])
        return await self._send(
            server, lambda: client.post(url, cast_to=object, body=dict(body)), parsed=True
        )

    async def adapters(self, server: Server, do: Literal["load", "unload"], body: Mapping[str, str]) -> None:
        """`POST /v1/load_lora_adapter` or `/v1/unload_lora_adapter`, which vLLM answers with a line of
        text."""
        client = next(self._turns[server.url])
        path = f"/{do}_lora_adapter"
        await self._send(server, lambda: client.post(path, cast_to=_response(), body=dict(body)), parsed=True)

    async def complete(
        self, server: Server, api: Literal["chat", "completions"], body: Mapping[str, Any]
    ) -> Any:
        """The body of the answer to `POST /chat/completions` or `/completions`. Fields that the API does not
        know travel along."""
        client = next(self._turns[server.url])
        path = "/chat/completions" if api == "chat" else "/completions"
        # Not by the client's typed methods: they walk through the body by its types, at a fifth of the time
        # of a request.
        return await self._send(server, lambda: client.post(path, cast_to=_response(), body=body))

    async def _send(self, server: Server, send: Callable[[], Awaitable[Any]], *, parsed: bool = False) -> Any:
        """Send, and tell the server's window how it went.

        Args:
            parsed: The client reads the body, or nobody does.

        Raises:
            Transient, Rejected, ModelError: See the module; raised outside of the handler, so that no error
            carries the request.
        """
        sent_at = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                raw = await send()
            payload = raw if parsed else json.loads(raw.text)
        except TimeoutError:
            failure: Exception = Transient("timeout", elsewhere=True)
        except (ValueError, RecursionError):
            failure = Transient("bad_json")
        except openai.APIStatusError as error:
            failure = self._sort(server, error, sent_at)
        except openai.APITimeoutError:
            failure = Transient("timeout", elsewhere=True)
        except openai.OpenAIError:
            failure = Transient("connection", elsewhere=True)
        else:
            server.answered()
            return payload
        if isinstance(failure, Transient) and failure.elsewhere:
            server.missed()
        raise failure

    def _sort(self, server: Server, error: openai.APIStatusError, sent_at: float) -> Exception:
        """What a status other than 2xx means."""
        status, said = error.status_code, self._key.redact(_message(error), most=AT_LENGTH)
        if status in FULL:
            server.window.narrow(sent_at, retry_after(error.response.headers))
            return Transient("rate_limited" if status == 429 else "overloaded")
        if status in AGAIN or status >= 500:
            return Transient(f"http_{status}", elsewhere=True, said=said)
        detail = self._key.redact(_message(error))
        if status == 401 or (status == 403 and "logprob" not in detail):
            return ModelError(
                f"the server refuses the key ({status})",
                where=server.url,
                remedy="export RLAIF_API_KEY=…, or name the variable (--api-key-env) or the file "
                "(--api-key-file) that holds it",
            )
        if any(words in detail.lower() for words in TOO_LONG):
            return Rejected("prompt_too_long", detail, status=status, said=said)
        return Rejected(f"rejected_{status}", detail, status=status, said=said)


async def retrying(
    attempt: Callable[[], Awaitable[Result]], *, retries: int, backoff: float, retried: Callable[[], None]
) -> Result:
    """Call `attempt` until it raises neither `Transient` nor `Malformed`, `retries` times more at most.

    Waits are exponential with jitter. A server's own `Retry-After` is heeded by its window, which the next
    attempt waits for.

    Raises:
        Transient: The last attempt failed too.
    """

    async def once() -> Result:
        try:
            return await attempt()
        except Malformed as error:
            failure = Transient(error.reason)
        raise failure

    # Waits lie between half and all of backoff · 2^attempt: the jitter keeps requests that failed together
    # from coming together again.
    wait = tenacity.wait_random_exponential(
        multiplier=backoff / 2, max=BACKOFF_MAX / 2
    ) + tenacity.wait_exponential(multiplier=backoff / 2, max=BACKOFF_MAX / 2)
    policy = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Transient),
        stop=tenacity.stop_after_attempt(retries + 1),
        wait=wait,
        reraise=True,
        before_sleep=lambda _state: retried(),
    )
    return await policy(once)


def _client(url: str, key: ApiKey, timeout: float, connections: int) -> openai.AsyncOpenAI:
    """A client that does not retry by itself."""
    return openai.AsyncOpenAI(
        api_key=key.reveal(),
        base_url=url,
        timeout=timeout,
        max_retries=0,
        http_client=open_http(url, timeout=timeout, connections=connections),
        default_headers={"Accept-Encoding": "identity"},
    )


@cache
def _response() -> Any:
    """The HTTP library's type of a response: as a type to cast to, the response as it came."""
    return http_library().Response


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else body
    return message if isinstance(message, str) else ""
