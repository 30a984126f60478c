"""Sampling policies on vLLM servers, for training on what they say, or measuring it, here.

The base never moves: the servers hold it from their start. Before a rollout the policy's adapter is written,
loaded by every server under a name of its own, and asked by that name. What comes back are token ids and the
log-probabilities that the server drew them with; hidden states and log-probabilities for training are made
here, by one pass. The two programs round differently, which `math.truncated_importance` makes good.

A draw depends on the seed, the prompt and the index of the sample, as draws in this process do; but the
server's random numbers are not ours, and its rounding may depend on what else it answers at the time. So a
run on servers is repeated as far as they repeat themselves.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rlaif.config.rollout import RolloutSettings
from rlaif.digest import seed_from
from rlaif.engines.api.api_key import ApiKey
from rlaif.errors import ModelError
from rlaif.files import sync_to_disk
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.rl.checkpoint import checksum
from rlaif.rl.episodes import Episodes, micro_batches, response_states
from rlaif.rl.rollout import EncodedPrompt, Sampler, first_indices
from rlaif.rl.serving.checks import Expected, check_servers
from rlaif.rl.serving.probe import PROBE, PROBES, Probe, ProbeReplies, Replies, distance, loud
from rlaif.rl.serving.replies import Drawn, read_draws
from rlaif.rl.serving.requests import completion_request
from rlaif.rl.serving.servers import Adapter, Connection
from rlaif.rl.update import logprobs_at

__all__ = ["ServedSampler"]

OWN = "served-probe"
"""A role that is there while a server is looked at, or the reference is written."""
AT_ONCE = 256
"""Completions that a server has in hand at a time: vLLM's own default."""
ALIVE = 2
"""Versions of the adapter that a server holds at once, the newest among them."""


class ServedSampler(Sampler):
    """Samples from the active role of `base`, on servers that hold the same base.

    Args:
        folder: Adapters are written here; the servers see it under the same path.
        rows: Completions in one forward pass here.
        lora: Shape of the adapters that servers are looked at with, and of the reference's.
    """

    def __init__(
        self,
        base: SharedBase,
        settings: RolloutSettings,
        *,
        folder: Path,
        max_new_tokens: int,
        temperature: float,
        rows: int = 64,
        key: ApiKey | None = None,
        lora: LoraSettings | None = None,
    ) -> None:
        super().__init__(base, max_new_tokens=max_new_tokens, temperature=temperature, rows=rows)
        self.settings = settings
        self.lora = lora or LoraSettings()
        self.folder = folder.resolve()
        self.key = key or ApiKey()
        # Not of the run alone: a run that goes on must not use the names of its first part again.
        self.run = f"rlaif-{secrets.token_hex(4)}"
        self.version = 0
        self.alive: list[Adapter] = []
        self._published = ""
        self._loop = asyncio.Runner()
        self._servers = Connection(settings, self.key)

    @property
    def at_once(self) -> int:
        """See `Sampler`: as many as keep the servers busy."""
        return AT_ONCE * len(self.settings.base_urls)

    @torch.no_grad()
    def sample(self, questions: Sequence[EncodedPrompt], *, samples: int, seed: int) -> Episodes:
        """See `Sampler`; the episodes have the server's log-probabilities, too."""
        adapter = self.base.ranks.from_first(self.publish)
        firsts = first_indices(questions, samples)
        mine = [(questions[at], firsts[at], at) for at in self.base.ranks.share(len(questions))]
        if not mine:
            return self._nothing()
        groups = self._loop.run(self._ask(adapter, mine, samples=samples, seed=seed))
        rows = [(question, first + index) for question, first, _ in mine for index in range(samples)]
        return self._episodes(rows, [drawn for group in groups for drawn in group])

    def publish(self) -> Adapter:
        """Have every server hold the active role's adapter as it is now (for the reference one with B = 0);
        nothing is done where they do.

        Raises:
            ModelError: One cannot; then none holds the new version.
        """
        active = self.base.active
        weights = REFERENCE if active == REFERENCE else checksum(self.base.adapter_state(active))
        if self.alive and weights == self._published:
            return self.alive[-1]
        self.version += 1
        adapter = self._write(f"{self.run}-v{self.version}")
        try:
            self._loop.run(self._hand_over(adapter))
        except ModelError:
            shutil.rmtree(adapter.path, ignore_errors=True)
            raise
        self.alive.append(adapter)
        self._published = weights
        while len(self.alive) > ALIVE:
            shutil.rmtree(self.alive.pop(0).path, ignore_errors=True)
        return adapter

    def close(self) -> None:
        """Have the servers forget the adapters, remove their files, and end the connections."""
        self._loop.run(self._forget())
        self._loop.close()
        for adapter in self.alive:
            shutil.rmtree(adapter.path, ignore_errors=True)
        self.alive = []

    @torch.no_grad()
    def check(self) -> Probe:
        """Look at the servers before the first rollout: what they say of themselves, and how they answer as
        adapters of known weights, alone and side by side.

        Raises:
            ModelError: A server is not set up for this, or holds another base.
        """
        base, question = self.base, self.question(PROBE, PROBE.messages)
        written: list[Adapter] = []
        with self._adapter_of_its_own() as role, base.role(role):
            silent = base.adapter_state(role)
            try:
                for name, weights in (("reference", silent), ("probe", loud(silent))):
                    base.set_adapter_state(role, weights)
                    written.append(self._write(f"{self.run}-{name}"))
                replies = self._loop.run(self._probe(question, *written))
                far = distance(self._episodes(*replies.loud))
                base.set_adapter_state(role, silent)
                found = Probe(
                    alone=distance(self._episodes(*replies.alone)),
                    beside=distance(self._episodes(*replies.beside)),
                    loud=far,
                    effect=distance(self._episodes(*replies.loud)),
                    base_beside=distance(self._episodes(*replies.base)),
                )
            finally:
                for adapter in written:
                    shutil.rmtree(adapter.path, ignore_errors=True)
        found.refuse_mismatch()
        return found

    async def _probe(self, question: EncodedPrompt, reference: Adapter, other: Adapter) -> ProbeReplies:
        """Answers of every server as the reference alone, then as both and as the base in one batch."""
        servers = self._servers
        base = await servers.base_name()
        await check_servers(servers, base, self._expected())
        everywhere, rows = range(len(servers.urls)), [(question, index) for index in range(PROBES)]

        async def ask(adapter: Adapter, seed: int) -> Replies:
            groups = await asyncio.gather(
                *(self._group(adapter, question, PROBES, seed, at) for at in everywhere)
            )
            return rows * len(groups), [drawn for group in groups for drawn in group]

        try:
            await servers.load(reference)
            alone = await ask(reference, 0)
            await servers.load(other)
            beside, as_loud, by_name = await asyncio.gather(
                ask(reference, PROBES), ask(other, 0), ask(Adapter(base, reference.path), 2 * PROBES)
            )
        finally:
            await servers.unload(reference)
            await servers.unload(other)
        return ProbeReplies(alone=alone, beside=beside, loud=as_loud, base=by_name)

    # Adapters

    def _write(self, name: str) -> Adapter:
        """The active role's adapter in a folder of its own, which appears as a whole; for the reference one
        that changes nothing."""
        path, unfinished = self.folder / name, self.folder / f"{name}.tmp"
        if self.base.active == REFERENCE:
            with self._adapter_of_its_own() as role:
                self.base.save_adapter(role, unfinished)
        else:
            self.base.save_adapter(self.base.active, unfinished)
        for part in (*unfinished.iterdir(), unfinished):
            sync_to_disk(part)
        unfinished.rename(path)
        sync_to_disk(self.folder)
        return Adapter(name, path)

    @contextmanager
    def _adapter_of_its_own(self) -> Iterator[str]:
        """A role for as long as the block, whose adapter changes nothing (B = 0)."""
        self.base.add_adapter(OWN, self.lora, train=False)
        try:
            yield OWN
        finally:
            self.base.drop_adapter(OWN)

    def _expected(self) -> Expected:
        base = self.base
        return Expected(
            name=base.name,
            revision=base.revision if base.identity == base.revision else "",
            form=self.form,
            vocabulary=self._vocabulary,
            ends=self.ends,
        )

    @property
    def _vocabulary(self) -> int:
        return int(self.base.model.get_input_embeddings().weight.shape[0])

    async def _hand_over(self, adapter: Adapter) -> None:
        """Load the new version, then unload what is older than the one before it."""
        await self._servers.load(adapter)
        for old in self.alive[: len(self.alive) + 1 - ALIVE]:
            await self._servers.unload(old)

    async def _forget(self) -> None:
        for adapter in self.alive:
            await self._servers.unload(adapter)
        await self._servers.close()

    # Completions

    async def _ask(
        self, adapter: Adapter, mine: Sequence[tuple[EncodedPrompt, int, int]], *, samples: int, seed: int
    ) -> list[tuple[Drawn, ...]]:
        """The completions of each question, all of one question by one server."""
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(
                        self._group(adapter, question, samples, _seed(seed, question, first, samples), at)
                    )
                    for question, first, at in mine
                ]
        except* ModelError as errors:
            failure = errors.exceptions[0]
        else:
            return [task.result() for task in asked]
        raise failure

    async def _group(
        self, adapter: Adapter, question: EncodedPrompt, samples: int, seed: int, home: int
    ) -> tuple[Drawn, ...]:
        body = completion_request(
            adapter.name,
            question.ids,
            samples=samples,
            seed=seed,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            ends=self.ends,
        )

        def read(reply: Any) -> tuple[Drawn, ...]:
            return read_draws(
                reply,
                prompt=question.ids,
                samples=samples,
                ends=frozenset(self.ends),
                vocabulary=self._vocabulary,
                longest=self.max_new_tokens,
            )

        return await self._servers.complete(body, adapter=adapter, home=home, read=read)

    def _episodes(self, wanted: Sequence[tuple[EncodedPrompt, int]], drawn: Sequence[Drawn]) -> Episodes:
        """The completions as tensors, with the states and log-probabilities of a pass of our own."""
        base, device = self.base, self.base.device
        width = max(len(each.ids) for each in drawn)
        tokens = torch.tensor([[*each.ids, *[0] * (width - len(each.ids))] for each in drawn], device=device)
        theirs = torch.tensor(
            [[*each.logprobs, *[0.0] * (width - len(each.ids))] for each in drawn], device=device
        )
        length = torch.tensor([len(each.ids) for each in drawn], device=device)
        has_eos = torch.tensor([each.ids[-1] in self.ends for each in drawn], device=device)
        is_real = torch.arange(width, device=device) < length.unsqueeze(1)
        states = torch.zeros(len(drawn), width, base.hidden_size, dtype=base.dtype, device=device)
        prompts = [question.ids for question, _ in wanted]
        with base.held():
            for rows in micro_batches(prompts, range(len(prompts)), self.rows):
                states[rows] = response_states(
                    base, [prompts[row] for row in rows], tokens[rows], is_real[rows]
                )
            logprobs = logprobs_at(base, states, tokens, is_real, temperature=self.temperature)
        return Episodes(
            rows=self._rows(wanted, tokens, length, has_eos),
            tokens=tokens,
            is_real=is_real,
            has_eos=has_eos,
            states=states,
            logprobs=logprobs,
            sampler_logprobs=theirs,
        )


def _seed(seed: int, question: EncodedPrompt, first: int, samples: int) -> int:
    """The seed of a request. A server gives its choice i the seed plus i, so seeds are a multiple of the
    samples apart: no two prompts share one."""
    drawn = seed_from(seed, "served", question.prompt.fingerprint(), first) % (1 << 31)
    return drawn * samples
