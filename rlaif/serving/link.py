"""The connection to an upstream: what is sent, and what it means when no answer comes. Needs
`rlaif-toolkit[api]`."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai

from rlaif.engines.api.http import AGAIN, FULL, http_library, open_http, retry_after
from rlaif.engines.api.wire import Malformed
from rlaif.errors import ConfigError
from rlaif.serving.chunks import error_of, whole_body
from rlaif.serving.passed import UpstreamSettings
from rlaif.serving.work import Failed
from rlaif.text import well_formed

__all__ = ["SOON", "Link", "Lost", "model_entry"]

CONNECT = 5.0
"""Seconds in which a connection must stand."""
SOON = 5
"""Seconds after which a client may ask again, where the upstream says nothing."""
SHOWN = 500
"""Characters of an upstream's own message that a client is told."""
LARGEST_ERROR = 64 << 10
"""Bytes of an upstream's error that are read."""
LONGEST_PAUSE = 3600.0
"""Seconds of the longest `Retry-After` that is passed on."""
REFUSED = (400, 404, 413, 415, 422)
"""Statuses of an upstream that are about the request."""


class Lost(Exception):
    """A request that got no answer.

    Attributes:
        failed: What the client is told.
        again: Whether it may be sent once more.
        pause: Seconds that the upstream wants to be left alone before.
    """

    def __init__(
        self, status: int, reason: str, *, again: bool = False, pause: float = 0.0, **more: Any
    ) -> None:
        super().__init__(reason)
        self.failed = Failed(reason, status=status, **more)
        self.again = again
        self.pause = pause


class Link:
    """A pool of connections, used on one loop; open as long as the `async with`.

    Raises:
        ConfigError: The environment names a proxy that is none.
    """

    def __init__(self, settings: UpstreamSettings) -> None:
        self.settings = settings
        times = http_library().Timeout(settings.timeout, connect=min(CONNECT, settings.timeout))
        try:
            self._http = open_http(settings.url, timeout=times, connections=settings.rows)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"the proxy that the environment names cannot be used ({_said(error)})",
                where="HTTP_PROXY, HTTPS_PROXY, ALL_PROXY",
                remedy="correct the variable, or unset it for this command",
            ) from None

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, *_exits: object) -> None:
        await self._http.aclose()

    def told(self, text: str) -> str:
        """The upstream's own words as a client may read them: short, without the key."""
        return well_formed(self.settings.key.redact(text, most=SHOWN))

    @asynccontextmanager
    async def asked(self, method: str, path: str, body: bytes | None = None) -> AsyncIterator[Any]:
        """A response with status 200, its body not read yet.

        Raises:
            Lost: There is none; or its body could not be read inside the block.
        """
        library, answered = http_library(), False
        key = self.settings.key
        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key.reveal()}"} if key else {}
        url = self.settings.url + path
        try:
            async with self._http.stream(method, url, content=body, headers=headers) as response:
                if response.status_code != 200:
                    raise await self._refusal(response)
                answered = True
                yield response
        except (library.ConnectError, library.ConnectTimeout) as error:
            failure = Lost(
                503, f"the upstream cannot be reached ({_said(error)})", again=True, retry_after=SOON
            )
        except library.TimeoutException:
            failure = Lost(504, f"the upstream said nothing for {self.settings.timeout:g} seconds")
        except (library.HTTPError, openai.OpenAIError) as error:
            what = "the upstream's answer was cut off" if answered else "the upstream ended the connection"
            failure = Lost(502, f"{what} ({_said(error)})", again=not answered)
        else:
            return
        raise failure

    async def _refusal(self, response: Any) -> Lost:
        """What a status other than 200 means."""
        raw = b""
        async for piece in response.aiter_bytes():
            raw += piece
            if len(raw) > LARGEST_ERROR:
                break
        try:
            said, param, code = error_of(json.loads(raw))
        except (ValueError, RecursionError):
            said, param, code = "", None, None
        status, pause = response.status_code, min(retry_after(response.headers), LONGEST_PAUSE)
        said = self.told(said)
        because = f": {said}" if said else f" with status {status}"
        if status in FULL:
            soon = math.ceil(pause) or SOON
            return Lost(status, f"the upstream is full{because}", again=True, pause=pause, retry_after=soon)
        if status in AGAIN or status >= 500:
            return Lost(502, f"the upstream failed{because}", again=True)
        if status in (401, 403):
            return Lost(502, f"the upstream refuses this server's key or request{because}")
        if status in REFUSED and said:
            told = 400 if status in (415, 422) else status
            code = code or ("model_not_found" if status == 404 else None)
            return Lost(told, f"the upstream refuses{because}", param=param, code=code)
        return Lost(502, f"the upstream does not answer as an OpenAI-compatible server does{because}")

    async def models(self) -> list[dict[str, Any]]:
        """The models that the upstream lists.

        Raises:
            Lost: It does not.
        """
        async with self.asked("GET", "/models") as response:
            try:
                payload = json.loads(await whole_body(response.aiter_bytes()))
            except (Malformed, ValueError, RecursionError):
                payload = None
        listed = payload.get("data") if isinstance(payload, dict) else None
        if not isinstance(listed, list):
            raise Lost(502, "the upstream does not list its models")
        models = (entry for entry in listed if isinstance(entry, dict))
        return [model_entry(entry) for entry in models if isinstance(entry.get("id"), str)]


def model_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """A model as the API lists it, with what vLLM tells of an adapter's base and of the context."""
    created = entry.get("created")
    found: dict[str, Any] = {
        "id": well_formed(entry["id"]),
        "object": "model",
        "created": created if type(created) is int else 0,
        "owned_by": _text(entry.get("owned_by")) or "upstream",
    }
    found |= {name: _text(entry[name]) for name in ("root", "parent") if _text(entry.get(name))}
    length = entry.get("max_model_len")
    return found | ({"max_model_len": length} if type(length) is int else {})


def _text(value: object) -> str:
    return well_formed(value) if isinstance(value, str) else ""


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__
