"""HTTP as every connection to an OpenAI-compatible server has it: by the `openai` client's own HTTP library,
with bounds on what is read."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import openai

__all__ = ["AGAIN", "FULL", "http_library", "open_http", "retry_after"]

FULL = (429, 503)
AGAIN = (408, 409, 425, 500, 502, 504, 520, 522, 524, 529)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{0,12})?")
"""Seconds as `Retry-After` writes them."""
LARGEST_BODY = 64 << 20
"""Bytes of the largest reply that is read."""
LARGEST_COMPRESSED = 64 << 10
"""Bytes of the largest compressed reply; deflate unfolds a thousandfold at most."""


def open_http(url: str, *, timeout: Any, connections: int) -> Any:
    """An asynchronous HTTP client for one server. Proxies of the environment are not for a server on this
    machine.

    Args:
        timeout: Seconds, or the library's own `Timeout`.
        connections: At most; no request waits for one.
    """
    return openai.DefaultAsyncHttpxClient(
        timeout=timeout,
        trust_env=urlsplit(url).hostname not in LOOPBACK,
        follow_redirects=False,
        limits=http_library().Limits(max_connections=connections, max_keepalive_connections=connections),
        event_hooks={"response": [_refuse_large]},
    )


def http_library() -> Any:
    """The client library's HTTP library, which has changed its name."""
    return sys.modules[type(openai.DEFAULT_CONNECTION_LIMITS).__module__.partition(".")[0]]


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks for, in any of the three spellings; 0 when it does not."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if NUMBER.fullmatch(value):
            return float(value) * scale
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0


async def _refuse_large(response: Any) -> None:
    """Refuse a body by its headers, before it is read: a compressed megabyte may hold a gigabyte.

    None is asked for compressed. A body of unknown length is counted as it comes.
    """
    told = str(response.headers.get("content-length", ""))
    length = int(told) if told.isascii() and told.isdigit() else None
    plain = response.headers.get("content-encoding", "identity").strip().lower() in ("", "identity")
    if (plain and (length or 0) > LARGEST_BODY) or (
        not plain and (length is None or length > LARGEST_COMPRESSED)
    ):
        raise openai.OpenAIError("the reply is too large")
    if length is None:
        response.stream = _counted(response.stream)


def _counted(stream: Any) -> Any:
    """The stream of a body, which ends with an error beyond `LARGEST_BODY`.

    Built on the stream's own abstract base, which the HTTP library insists on: that library has changed its
    name.
    """
    base = next(kind for kind in type(stream).__mro__ if kind.__name__ == "AsyncByteStream")

    class Counted(base):  # type: ignore[misc, valid-type]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            seen = 0
            async for chunk in stream:
                seen += len(chunk)
                if seen > LARGEST_BODY:
                    raise openai.OpenAIError("the reply is too large")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return Counted()
