"""Sampling a base on vLLM servers without its weights in this process: config and tokenizer are enough.

The servers are asked as an adapter with B = 0, never as the base by its own name. Its log-probabilities are
not compared, since there are none here to compare them with; what a server tells of its base is (`checks`).
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.rollout import RolloutSettings
from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.engines.chat import TEMPLATE_REFUSED, ChatFormat, TemplateRefusal, end_tokens
from rlaif.engines.hf import UNKNOWN_TOKEN
from rlaif.errors import ModelError
from rlaif.models.load import context_length, empty_model, load_tokenizer, resolve
from rlaif.models.still_adapter import write_still_adapter
from rlaif.rl.serving.checks import Expected, check_servers
from rlaif.rl.serving.replies import Drawn, read_draws
from rlaif.rl.serving.requests import completion_request
from rlaif.rl.serving.servers import Adapter, Connection

__all__ = ["ServedPolicy"]

AHEAD = 2
"""So many times as many requests are under way as the servers take at once."""
SEEDS = 1 << 62
"""vLLM's seeds are signed numbers of 64 bits."""


class _Asked(NamedTuple):
    """A request in tokens, or the reason why it is none."""

    ids: tuple[int, ...]
    reason: str = ""


class ServedPolicy:
    """An engine that samples a model on servers that hold it.

    Args:
        spec: The model, as for `rlaif.models.load.resolve`.
        folder: Opens the folder that an adapter is written into, for as long as it is asked.

    Raises:
        ModelError: There is no such model.
    """

    def __init__(
        self,
        spec: str,
        settings: RolloutSettings,
        *,
        folder: Callable[[], AbstractContextManager[Path]],
        key: ApiKey,
    ) -> None:
        self.settings, self._folder, self._key = settings, folder, key
        self._source = resolve(spec, weights=False)
        model, tokenizer = empty_model(self._source), load_tokenizer(self._source)
        self.form = ChatFormat(tokenizer, name=spec)
        self.ends = end_tokens(model, self.form)
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self._card = EngineCard(
            name=spec,
            revision=self._source.revision,
            kind="vllm",
            dtype="served",
            context=context_length(model.config, tokenizer),
            chat=self.form.chat,
        )

    @property
    def card(self) -> EngineCard:
        """See `Engine`."""
        return self._card

    @property
    def at_once(self) -> int:
        """See `Engine`."""
        return self.settings.concurrency * len(self.settings.base_urls)

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """Refused: a judge on a server is named `openai:MODEL`."""
        raise ModelError(
            "a policy on servers answers no labels", remedy="name the judge openai:MODEL, and its `server`"
        )

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """See `Engine`; each answer comes by itself.

        Raises:
            ModelError: A server cannot be reached, or is not set up for this.
        """
        with asyncio.Runner() as loop, self._folder() as folder:
            servers = Connection(self.settings, self._key)
            try:
                base = loop.run(servers.base_name())
                asked = [self._encode(request, servers.context(base)) for request in requests]
                if refused := {
                    index: Generation(text="", finish="refused", tokens=0, reason=each.reason)
                    for index, each in enumerate(asked)
                    if each.reason and index not in done
                }:
                    yield refused
                wanted = [at for at, each in enumerate(asked) if not each.reason and at not in done]
                if wanted:
                    loop.run(check_servers(servers, base, self._expected()))
                    with self._adapter(loop, servers, folder) as adapter:
                        yield from _Draws(self, servers, adapter, requests, asked).of(wanted, loop)
            finally:
                loop.run(servers.close())

    @contextmanager
    def _adapter(self, loop: asyncio.Runner, servers: Connection, folder: Path) -> Iterator[Adapter]:
        """An adapter that changes nothing, which the servers hold as long as the block."""
        name = f"rlaif-{secrets.token_hex(4)}-reference"
        adapter = Adapter(name, (folder / name).resolve())
        try:
            write_still_adapter(empty_model(self._source), self._source, adapter.path)
            loop.run(servers.load(adapter))
            yield adapter
        finally:
            loop.run(servers.unload(adapter))
            shutil.rmtree(adapter.path, ignore_errors=True)

    def _encode(self, request: GenerationRequest, served: int | None) -> _Asked:
        """A request in tokens, which must fit into the context here and on the servers."""
        try:
            ids = tuple(self.form.encode([self.form.render(request.messages)])[0])
        except TemplateRefusal:
            return _Asked((), TEMPLATE_REFUSED)
        if max(ids, default=0) >= self.vocabulary:
            return _Asked((), UNKNOWN_TOKEN)
        longest = len(ids) + request.sampling.max_new_tokens
        too_long = longest > min(self._card.context, served or self._card.context)
        return _Asked(ids, "prompt_too_long" if too_long else "")

    def _expected(self) -> Expected:
        return Expected(
            name=self._source.name,
            revision=self._source.revision,
            form=self.form,
            vocabulary=self.vocabulary,
            ends=self.ends,
        )

    def generation(self, drawn: Drawn, request: GenerationRequest) -> Generation:
        """What was drawn, as text that ends before a stop string."""
        ended = drawn.ids[-1] in self.ends
        text = str(
            self.form.tokenizer.decode(
                list(drawn.ids[: len(drawn.ids) - ended]),
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        )
        before = text
        for stop in self.form.stops + request.sampling.stop:
            before = before.partition(stop)[0]
        stopped = ended or before != text
        return Generation(text=before, finish="stop" if stopped else "length", tokens=len(drawn.ids))


@dataclass(frozen=True)
class _Draws:
    """Requests that are sent side by side."""

    policy: ServedPolicy
    servers: Connection
    adapter: Adapter
    requests: Sequence[GenerationRequest]
    asked: Sequence[_Asked]

    def of(self, wanted: Sequence[int], loop: asyncio.Runner) -> Iterator[Mapping[int, Generation]]:
        """The completions of those `wanted`, as they come in."""
        left, under_way = deque(wanted), dict[asyncio.Task[Drawn], int]()
        try:
            while left or under_way:
                yield loop.run(self._next(left, under_way))
        finally:
            loop.run(_end(under_way))

    async def _next(
        self, left: deque[int], under_way: dict[asyncio.Task[Drawn], int]
    ) -> dict[int, Generation]:
        """Send what there is room for, and wait for an answer."""
        while left and len(under_way) < AHEAD * self.policy.at_once:
            index = left.popleft()
            under_way[asyncio.create_task(self._draw(index))] = index
        ready, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
        found = {under_way.pop(task): task.result() for task in ready}
        return {at: self.policy.generation(drawn, self.requests[at]) for at, drawn in found.items()}

    async def _draw(self, index: int) -> Drawn:
        policy, request, ids = self.policy, self.requests[index], self.asked[index].ids
        body = completion_request(
            self.adapter.name,
            ids,
            samples=1,
            seed=request.seed % SEEDS,
            max_new_tokens=request.sampling.max_new_tokens,
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            ends=policy.ends,
        )

        def read(reply: Any) -> Drawn:
            (drawn,) = read_draws(
                reply,
                prompt=ids,
                samples=1,
                ends=policy.ends,
                vocabulary=policy.vocabulary,
                longest=request.sampling.max_new_tokens,
            )
            return drawn

        return await self.servers.complete(body, adapter=self.adapter, home=index, read=read)


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """End what is under way, whose answers nobody waits for."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
