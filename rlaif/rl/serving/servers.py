"""The servers of a rollout: adapters that all of them hold, or none, and completions from any.

An adapter's name is never used twice: what a server remembers of a prompt (its prefix cache) is kept under
the name, and would be of the old weights.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlaif.config.rollout import RolloutSettings
from rlaif.engines.api.api_key import SHOWN, ApiKey
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

RANK = re.compile(r"LoRA rank ([0-9]+) is greater than max_lora_rank ([0-9]+)")
TARGETS = re.compile(r"expected target modules in .*? but received (\[[^\]]*)")
MODULE = re.compile(r"[\w.]+\.(\w+)")
UNFIT = re.compile(r"max_lora_rank|target modules|unsupported LoRA|not supported")
"""What a server says of an adapter that it will never take. vLLM 0.32 says it with status 500."""


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
        self._cards: list[dict[str, Mapping[str, Any]]] = [{} for _ in self._servers]

    async def close(self) -> None:
        """End them."""
        await self._clients.__aexit__(None, None, None)

    async def base_name(self) -> str:
        """The name under which the servers serve the base.

        Raises:
            ModelError: A server cannot be reached, or they do not serve one under the same name.
        """
        listed = await asyncio.gather(*(self._listed(server) for server in self._servers))
        self._cards = listed
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

    def root(self, server: int, model: str) -> str:
        """What a server says that it loaded `model` from, as of the last `base_name`; empty where it does
        not say."""
        told = self._cards[server].get(model, {}).get("root")
        return told if isinstance(told, str) else ""

    def context(self, model: str) -> int | None:
        """The longest sequence that all servers take of `model`, as of the last `base_name`; `None` where
        none says."""
        told = [cards.get(model, {}).get("max_model_len") for cards in self._cards]
        return min((each for each in told if type(each) is int), default=None)

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

    async def ask(self, server: int, body: Mapping[str, Any]) -> Any:
        """The answer of one server to a completion request.

        Raises:
            Rejected: It refuses; its words say why.
            ModelError: It cannot be reached.
        """
        at = self._servers[server]

        async def attempt() -> Any:
            async with at.window.slot():
                return await self._clients.complete(at, "completions", body)

        return await self._tried(attempt, where=at.url, refusals=True)

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
            except Transient as error:
                if not UNFIT.search(error.said):
                    raise
                refused = Rejected(error.reason, error.said[:SHOWN], said=error.said)
            # A try before may have arrived, though its answer did not.
            if adapter.name in await self._named(server):
                return
            raise refused or Rejected("not_listed", "the server said yes, and does not list it")

        try:
            await self._tried(attempt, where=server.url, refusals=True)
        except Rejected as error:
            raise _cannot_load(adapter, error, server.url) from None
        except ModelError as error:
            raise ModelError(
                f"the adapter {adapter.name} cannot be loaded: {error.what}",
                where=error.where,
                remedy=error.remedy,
            ) from None

    async def _unload(self, server: Server, name: str) -> None:
        try:
            await self._clients.adapters(server, "unload", {"lora_name": name})
        except (Rejected, Transient):
            return

    async def _listed(self, server: Server) -> dict[str, Mapping[str, Any]]:
        return await self._tried(lambda: self._named(server), where=server.url)

    async def _named(self, server: Server) -> dict[str, Mapping[str, Any]]:
        """What the server lists, by name."""
        body = await self._clients.models(server)
        data = body.get("data") if isinstance(body, Mapping) else None
        rows = data if isinstance(data, list) else []
        return {row["id"]: row for row in rows if isinstance(row, Mapping) and isinstance(row.get("id"), str)}

    async def _tried(
        self, attempt: Callable[[], Awaitable[Result]], *, where: str, refusals: bool = False
    ) -> Result:
        """What `attempt` returns, tried as often as the settings say.

        Args:
            refusals: A refusal is raised as it is.
        """
        settings = self._settings
        try:
            return await retrying(
                attempt, retries=settings.retries, backoff=settings.backoff, retried=lambda: None
            )
        except Transient as error:
            said = f": {error.said[:SHOWN]}" if error.said else ""
            what, remedy = (
                f"the server did not answer ({error.reason}){said}",
                "look whether it runs; " + START,
            )
        except Rejected as error:
            if refusals:
                raise
            said = f": {error.detail}" if error.detail else ""
            what = f"the server refuses the request ({error.reason}){said}"
            remedy = START
            if error.status == 404 and not where.endswith("/v1"):
                remedy = f"vLLM answers below /v1: write {where}/v1"
        raise ModelError(what, where=where, remedy=remedy)


def _cannot_load(adapter: Adapter, refused: Rejected, url: str) -> ModelError:
    """The refusal of an adapter in words, with what would let it in."""
    said = f": {refused.detail}" if refused.detail else ""
    what = f"the server refuses the request ({refused.reason}){said}"
    remedy = f"{START}; the server must see {adapter.path.parent} under the same path (rollout.adapters)"
    if rank := RANK.search(refused.said):
        what = f"its rank is {rank[1]}, and the server takes {rank[2]} at most (--max-lora-rank)"
        remedy = f"start the server with --max-lora-rank {rank[1]} or more, or set `lora_rank: {rank[2]}`"
    elif targets := TARGETS.search(refused.said):
        names = sorted(set(MODULE.findall(targets[1]))) or [targets[1]]
        what = f"the server has no place for adapters on: {', '.join(names)}"
        remedy = (
            "rlaif trains adapters on every linear layer: leave `rollout` out to sample in this process, or "
            "use a version of vLLM that takes adapters on all of this model's layers"
        )
    return ModelError(f"the adapter {adapter.name} cannot be loaded: {what}", where=url, remedy=remedy)
