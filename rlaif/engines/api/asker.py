"""Asks servers on behalf of one engine: chooses the server, retries, moves on when one fails, and keeps the
books."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.api.calls import Clients, Rejected, retrying
from rlaif.engines.api.costs import CostLimitError, Ledger
from rlaif.engines.api.servers import Server
from rlaif.engines.api.settings import ApiSettings
from rlaif.engines.api.wire import Reply, read_counts, read_reply

__all__ = ["Asker"]

HANDSHAKE_RETRIES = 2


class Asker:
    """Open as long as the `async with`."""

    def __init__(
        self, servers: Sequence[Server], *, key: ApiKey, settings: ApiSettings, ledger: Ledger
    ) -> None:
        self.servers = list(servers)
        self.settings = settings
        self._ledger = ledger
        self._key = key
        self._in_flight = 0
        self._landed = asyncio.Event()
        self._clients = Clients(
            self.servers, key=key, timeout=settings.timeout, connections=settings.concurrency
        )

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._clients.__aexit__(kind, error, trace)

    async def complete(self, body: Mapping[str, Any], *, home: int) -> Reply:
        """The reply to one request, from server `home` if it is ready, else from another one.

        Raises:
            Transient: All tries failed.
            Rejected: The server will not answer this request.
            CostLimitError: It could cost more than is left.
            ModelError: The key is refused.
        """
        sent = _characters(body)
        tokens = int(body.get("max_tokens") or body.get("max_completion_tokens") or 0) * int(body.get("n", 1))
        estimate = await self._reserve(sent, tokens)

        async def attempt() -> Reply:
            server = self._choose(home)
            async with server.window.slot():
                payload = await self._clients.complete(server, self.settings.api, body)
            self._ledger.record(read_counts(payload), sent=sent, received=len(str(payload)) // 4)
            return read_reply(payload)

        try:
            return await retrying(
                attempt, retries=self.settings.retries, backoff=self.settings.backoff, retried=self._retried
            )
        finally:
            self._ledger.release(estimate)
            self._in_flight -= 1
            self._landed.set()

    async def _reserve(self, sent: int, tokens: int) -> float:
        """Set a request's cost aside; waits for those in flight, which mostly cost less than was set aside
        for them.

        Raises:
            CostLimitError: It does not fit, and nothing is in flight any more.
        """
        while True:
            try:
                estimate = self._ledger.reserve(sent, tokens)
            except CostLimitError:
                if not self._in_flight:
                    raise
            else:
                self._in_flight += 1
                return estimate
            self._landed.clear()
            await self._landed.wait()

    def redact(self, text: str) -> str:
        """`text` without the key."""
        return self._key.redact(text)

    async def models(self, server: Server) -> Any:
        """The body of `GET /models` of one server; raises as `complete` does."""

        async def attempt() -> Any:
            return await self._clients.models(server)

        retries = min(HANDSHAKE_RETRIES, self.settings.retries)
        return await retrying(attempt, retries=retries, backoff=self.settings.backoff, retried=self._retried)

    async def tokenize(self, model: str, text: str) -> list[int]:
        """The tokens of a text, of a server that has vLLM's `POST /tokenize`; raises as `complete` does."""

        async def attempt() -> Any:
            return await self._clients.tokenize(self.servers[0], model, text)

        payload = await retrying(
            attempt, retries=self.settings.retries, backoff=self.settings.backoff, retried=self._retried
        )
        tokens = payload.get("tokens") if isinstance(payload, dict) else None
        if not isinstance(tokens, list) or not all(_is_id(token) for token in tokens):
            raise Rejected("bad_tokens")
        return tokens

    def _choose(self, home: int) -> Server:
        """The home server, or the next one when it is down or asked to be left alone; when all are, the one
        that is back first."""
        order = self.servers[home:] + self.servers[:home]
        return min(order, key=lambda server: server.wait())

    def _retried(self) -> None:
        self._ledger.usage.retries += 1


def _is_id(token: object) -> bool:
    return isinstance(token, int) and not isinstance(token, bool) and token >= 0


def _characters(body: Mapping[str, Any]) -> int:
    return len(body.get("prompt", "")) + sum(len(turn["content"]) for turn in body.get("messages", ()))
