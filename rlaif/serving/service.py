"""What the application serves, and the jobs that a request asks of its decoder."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from rlaif.engines.base import Sampling
from rlaif.engines.chat import TemplateRefusal
from rlaif.serving.collecting import Collecting
from rlaif.serving.decoder import Decoder, QueueFull
from rlaif.serving.info import Info
from rlaif.serving.metrics import Metrics
from rlaif.serving.moderating import Moderation
from rlaif.serving.refusal import Refusal
from rlaif.serving.steering import Steering, Work
from rlaif.serving.wire import ChatRequest
from rlaif.serving.work import Event, Job
from rlaif.serving.worker import Worker
from rlaif.types import Message

if TYPE_CHECKING:
    from rlaif.serving.residents import Residents
    from rlaif.serving.upstream import Upstream

__all__ = ["Service"]

SOON = 5
"""Seconds after which a client may ask again, where directives have too much to decide."""


@dataclass(frozen=True)
class Service:
    """What the application serves.

    Attributes:
        residents: The models in this process; none where `upstream` answers.
        upstream: The decoder, where it is a server behind this one.
        moderation: Decides what is decoded and what of it goes out.
        most_tokens: Longest completion that may be asked for, and the length where a request says nothing.
        log_texts: Whether the log holds what was asked and answered.
        chats: Where exchanges are kept that agree to it.
        steering: Directives that every answer follows.
        info: What `GET /v1/info` says; each part adds its field.
    """

    residents: Residents | None
    batcher: Decoder
    metrics: Metrics
    upstream: Upstream | None = None
    moderation: Moderation | None = None
    most_tokens: int = 1024
    log: Callable[[str], None] = lambda line: None
    log_texts: bool = False
    chats: Collecting | None = None
    steering: Steering | None = None
    info: Info = field(default_factory=Info)
    started: int = field(default_factory=lambda: int(time.time()))
    _tokenizing: threading.Lock = field(default_factory=threading.Lock)
    _planner: Worker = field(default_factory=lambda: Worker("rlaif-directives"))

    @property
    def here(self) -> Residents:
        """The models in this process."""
        assert self.residents is not None
        return self.residents

    async def models(self) -> list[dict[str, Any]]:
        """The models that requests may name, as the API lists them.

        Raises:
            Refusal: The upstream does not say.
        """
        if self.upstream is not None:
            return await self.upstream.models()
        return [
            {"id": name, "object": "model", "created": self.started, "owned_by": "rlaif"}
            for name in self.here.roles
        ]

    def names(self) -> list[str]:
        """The models that requests may name, as far as they are known without asking an upstream."""
        if self.residents is None:
            return [] if self.upstream is None else list(self.upstream.names)
        return list(self.residents.roles)

    def most(self) -> dict[str, int]:
        """The greatest values of the fields of a request."""
        found = {"max_tokens": self.most_tokens, "max_completion_tokens": self.most_tokens}
        if self.upstream is None:
            rows = self.batcher.limits.rows
            found |= {"n": rows, "n_best": rows if self.here.reward is not None else 1}
        return found

    async def planned(self, body: ChatRequest, emit: Callable[[Event], None]) -> Work:
        """`work` on another thread: one alone where directives decide, which may ask a judge.

        Raises:
            Refusal: As by `work`.
            QueueFull: As much waits for the directives as may.
            NotServing: The server has stopped.
        """
        if self.steering is None:
            return await asyncio.to_thread(self.work, body, emit)
        limits, waiting = self.batcher.limits, self._planner.waiting
        if waiting >= limits.queue + limits.rows:
            raise QueueFull(waiting, SOON)
        return await asyncio.wrap_future(self._planner.submit(partial(self.work, body, emit)))

    def close(self) -> None:
        """Plan nothing more."""
        self._planner.close()

    def work(self, body: ChatRequest, emit: Callable[[Event], None]) -> Work:
        """The jobs that answer a request, as the directives say.

        Raises:
            Refusal: It asks for what there is not, or for more than may be.
        """
        if self.steering is None:
            return Work((self.job(body, emit),))
        choices, best_only = self.checked(body)
        stride = 1 if best_only else choices
        return self.steering.work(body.turns, emit, partial(self.job, body), choices=stride)

    def checked(self, body: ChatRequest) -> tuple[int, bool]:
        """How many completions are sampled, and whether only the best is wanted.

        Raises:
            Refusal: It asks for what there is not, or for fields that do not go together.
        """
        _check_fields(body)
        if self.upstream is not None:
            self.upstream.check(body)
            return body.n or 1, False
        if body.model not in self.here.roles:
            known = ", ".join(self.here.roles)
            what = f"there is no model {body.model!r} here; there are {known}"
            raise Refusal(404, what, param="model", code="model_not_found")
        return self._samples(body)

    def job(
        self, body: ChatRequest, emit: Callable[[Event], None], messages: Sequence[Message] | None = None
    ) -> Job:
        """What a request asks of the decoder.

        Args:
            messages: What the policy reads in place of the request's messages.

        Raises:
            Refusal: It asks for what there is not, or for more than may be.
        """
        samples, best_only = self.checked(body)
        messages = body.turns if messages is None else tuple(messages)
        if self.upstream is not None:
            most = self.most_tokens
            return self.upstream.job(body, messages, emit, most_tokens=most, moderation=self.moderation)
        ids = self._encoded(messages)
        sampling = Sampling(
            max_new_tokens=self._length(body, len(ids), scored=best_only),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            stop=body.stops,
        )
        return Job(
            role=self.here.roles[body.model],
            ids=ids,
            messages=messages,
            sampling=sampling,
            seed=secrets.randbits(63) if body.seed is None else body.seed,
            emit=emit,
            samples=samples,
            best_only=best_only,
            moderation=self.moderation,
        )

    def _samples(self, body: ChatRequest) -> tuple[int, bool]:
        """How many completions are sampled, and whether only the best is wanted."""
        best = body.n_best or 1
        if best > 1 and self.here.reward is None:
            what = "n_best needs a reward model: start the server with --reward"
            raise Refusal(400, what, param="n_best")
        if best > 1 and (body.n or 1) > 1:
            raise Refusal(400, "n and n_best do not go together", param="n_best")
        samples, most = max(best, body.n or 1), self.batcher.limits.rows
        if samples > most:
            name = "n_best" if best > 1 else "n"
            raise Refusal(400, f"at most {most} completions are sampled side by side here", param=name)
        return samples, best > 1

    def _encoded(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The prompt's tokens."""
        form = self.here.form
        with self._tokenizing:
            try:
                ids = tuple(form.encode([form.render(messages)])[0])
            except TemplateRefusal as error:
                raise Refusal(400, error.what, param="messages") from None
        if max(ids, default=0) >= self.here.base.model.get_input_embeddings().weight.shape[0]:
            raise Refusal(400, "the messages hold a token that the model does not have", param="messages")
        return ids

    def _length(self, body: ChatRequest, prompt: int, *, scored: bool) -> int:
        """The longest completion in tokens; one that is scored needs room for the end of its turn."""
        context, wanted, reward = self.here.base.context, body.most_tokens, self.here.reward
        if reward is not None and scored:
            context -= len(reward.format.close)
        if wanted is not None and wanted > self.most_tokens:
            what = f"at most {self.most_tokens} tokens may be asked for here, not {wanted}"
            raise Refusal(400, what, param="max_tokens")
        room = context - prompt
        if room < (wanted or 1):
            asked = "" if wanted is None else f" and the {wanted} asked for"
            what = f"the messages have {prompt} tokens; they{asked} pass the model's context of {context}"
            raise Refusal(400, what, param="messages", code="context_length_exceeded")
        return min(self.most_tokens, room) if wanted is None else wanted


def _check_fields(body: ChatRequest) -> None:
    """Refuse fields that contradict each other, or that would have no effect."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        what = "max_tokens and max_completion_tokens mean the same: send one of them"
        raise Refusal(400, what, param="max_completion_tokens")
    if body.stream_options is not None and not body.stream:
        raise Refusal(400, "stream_options needs stream: true", param="stream_options")
