"""The servers of a rollout: adapters that all of them hold, or none, and completions from any.

An adapter's name is never used twice: what a server remembers of a prompt (its prefix cache) is kept under
the name, and would be of the old weights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlaif.config.rollout import RolloutSettings
from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.api.calls import Clients, Rejected, Transient, retrying
from rlaif.engines.api.servers import Server
from rlaif.errors import ModelError

__all__ = ["Adapter", "Connection"]

Result = TypeVar("Result")

START = (
    "start it with: VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE --enable-lora --max-lora-rank 16 "
    "--max-loras 3 --logprobs-mode processed_logprobs --generation-config vllm"
)
"""The line that the documentation gives."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A version of the policy: the name that servers know it by, and its folder, which they see under the
    same path."""

    name: str
    path: Path


class Connection:
    """Open connections to the servers, which one event loop uses."""

    def __init__(self, settings: RolloutSettings, key: ApiKey) -> None:
        self._settings = settings
        self._servers = tuple(Server(url.rstrip("/"), settings.concurrency) for url in settings.base_urls)
        self._clients = Clients(
            list(self._servers), key=key, timeout=settings.timeout, connections=settings.concurrency
        )

    async def close(self) -> None:
        """End them."""
        await self._clients.__aexit__(None, None, None)

    async def base_name(self) -> str:
        """The name under which the servers serve the base.

        Raises:
            ModelError: A server cannot be reached, or they do not serve one under the same name.
        """
        listed = await asyncio.gather(*(self._listed(server) for server in self._servers))
        wanted = self._settings.model or next(iter(listed[0]), "")
        for server, names in zip(self._servers, listed, strict=True):
            if wanted not in names:
                raise ModelError(
                    f"the server does not serve {wanted or 'any model'!r}; it lists: "
                    f"{', '.join(names) or 'nothing'}",
                    where=server.url,
                    remedy="start all servers with the same base and --served-model-name, or set "
                    "rollout.model",
                )
        return wanted

    async def load(self, adapter: Adapter) -> None:
        """Have every server hold `adapter`; where one cannot, none does.

        Raises:
            ModelError: One refuses, or cannot be reached.
        """
        ends = await asyncio.gather(
            *(self._load(server, adapter) for server in self._servers), return_exceptions=True
        )
        failed = [(server, end) for server, end in zip(self._servers, ends, strict=True) if end is not None]
        if not failed:
            return
        held = [server for server, end in zip(self._servers, ends, strict=True) if end is None]
        await asyncio.gather(*(self._unload(server, adapter.name) for server in held))
        raise failed[0][1]

    async def unload(self, adapter: Adapter) -> None:
        """Have the servers forget `adapter`. One that cannot be reached, or has forgotten it, is left as it
        is."""
        await asyncio.gather(*(self._unload(server, adapter.name) for server in self._servers))

    async def complete(
        self, body: Mapping[str, Any], *, adapter: Adapter, home: int, read: Callable[[Any], Result]
    ) -> Result:
        """The answer to a completion request of `adapter`, as `read` reads it; what that finds `Malformed` is
        asked for again. The server numbered `home` is asked, or another while it is away.

        Raises:
            ModelError: It refuses, or none can be reached.
        """
        tries = 0

        async def attempt() -> Result:
            nonlocal tries
            server = await self._next_up(home + tries)
            tries += 1
            async with server.window.slot():
                try:
                    return read(await self._clients.complete(server, "completions", body))
                except Rejected as error:
                    refused = error
            if refused.status != 404:
                raise refused
            # It was started anew since the adapter was loaded, and knows nothing of it.
            await self._load(server, adapter)
            raise Transient("adapter_gone")

        return await self._tried(attempt, where=self._servers[home % len(self._servers)].url)

    async def tokenize(self, server: int, body: Mapping[str, Any]) -> list[int] | None:
        """What `POST /tokenize` of a server makes of a text or of messages; `None` where it does not say."""
        at = self._servers[server]
        try:
            found = await self._clients.tokenized(at, body)
        except (Rejected, Transient):
            return None
        ids = found.get("tokens") if isinstance(found, Mapping) else None
        return ids if isinstance(ids, list) and all(type(each) is int for each in ids) else None

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of the servers."""
        return tuple(server.url for server in self._servers)

    async def _next_up(self, first: int) -> Server:
        """The next server from number `first` on that is not left alone now; else the one that is soonest
        not."""
        order = [self._servers[(first + at) % len(self._servers)] for at in range(len(self._servers))]
        server = min(order, key=Server.wait)
        await asyncio.sleep(server.wait())
        return server

    async def _load(self, server: Server, adapter: Adapter) -> None:
        async def attempt() -> None:
            refused: Rejected | None = None
            try:
                await self._clients.adapters(
                    server, "load", {"lora_name": adapter.name, "lora_path": str(adapter.path)}
                )
            except Rejected as error:
                refused = error
            # A try before may have arrived, though its answer did not.
            names = await self._names(server)
            if adapter.name in names:
                return
            raise refused or Rejected("not_listed", "the server said yes, and does not list it")

        try:
            await self._tried(attempt, where=server.url)
        except ModelError as error:
            raise ModelError(
                f"the adapter {adapter.name} cannot be loaded: {error.what}",
                where=error.where,
                remedy=f"{START}; the server must see {adapter.path.parent} under the same path "
                "(rollout.adapters)",
            ) from None

    async def _unload(self, server: Server, name: str) -> None:
        try:
            await self._clients.adapters(server, "unload", {"lora_name": name})
        except (Rejected, Transient):
            return

    async def _listed(self, server: Server) -> list[str]:
        return await self._tried(lambda: self._names(server), where=server.url)

    async def _names(self, server: Server) -> list[str]:
        body = await self._clients.models(server)
        data = body.get("data") if isinstance(body, Mapping) else None
        rows = data if isinstance(data, list) else []
        return [row["id"] for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)]

    async def _tried(self, attempt: Callable[[], Awaitable[Result]], *, where: str) -> Result:
        settings = self._settings
        try:
            return await retrying(
                attempt, retries=settings.retries, backoff=settings.backoff, retried=lambda: None
            )
        except Transient as error:
            what, remedy = f"the server did not answer ({error.reason})", "look whether it runs; " + START
        except Rejected as error:
            said = f": {error.detail}" if error.detail else ""
            what, remedy = f"the server refuses the request ({error.reason}){said}", START
        raise ModelError(what, where=where, remedy=remedy)
