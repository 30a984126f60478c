"""An engine without a model: answers come from two Python functions. For tests, ours and yours, and for dry
exercises.

    from rlaif.engines.scripted import ScriptedEngine
    engine = ScriptedEngine(generate=lambda request: "Hello!", labels=lambda request: [-0.1, -2.4])

On the command line, `--judge scripted` names the default one and `--judge scripted:package.module:attribute`
yours.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from rlaif.digest import digest, seed_from, unit_from
from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.errors import ModelError
from rlaif.types import Message

__all__ = ["ScriptedCrash", "ScriptedEngine", "load_scripted", "pseudo_answer", "pseudo_labels"]

Request = TypeVar("Request", GenerationRequest, LabelRequest)
Answer = TypeVar("Answer", Generation, LabelReading)

WORDS = (
    "a",
    "calm",
    "plain",
    "honest",
    "short",
    "warm",
    "careful",
    "kind",
    "clear",
    "useful",
    "answer",
    "question",
    "reason",
    "detail",
    "example",
    "step",
    "friend",
    "morning",
    "river",
    "garden",
    "letter",
    "story",
    "idea",
    "plan",
    "choice",
    "word",
    "sentence",
    "place",
    "day",
    "can",
    "may",
    "will",
    "helps",
    "shows",
    "keeps",
    "gives",
    "finds",
    "makes",
    "the",
    "and",
    "but",
    "because",
    "perhaps",
    "today",
    "together",
    "slowly",
    "gladly",
)
LABEL_MASS = 0.9
"""Probability that the default labels hold together; the rest stands for all other tokens."""


class ScriptedCrash(RuntimeError):
    """Raised by `fail_after`: the machine that a test wants to see die. Not an `RlaifError`, so nothing
    handles it."""


def pseudo_answer(request: GenerationRequest) -> str:
    """Three to twenty-four words that depend on the request alone."""
    seed = seed_from("answer", request.identity())
    words = [WORDS[seed_from(seed, position) % len(WORDS)] for position in range(3 + seed % 22)]
    return " ".join(words).capitalize() + "."


def pseudo_labels(request: LabelRequest) -> list[float]:
    """Log-probabilities that depend on the request alone and sum to `LABEL_MASS` in probability."""
    identity = request.identity()
    shares = [0.02 + unit_from("label", position, identity) for position in range(len(request.labels))]
    return [math.log(LABEL_MASS * share / sum(shares)) for share in shares]


class ScriptedEngine:
    """Answers with two functions, in batches, and counts what it was asked. Also counts tokens: one a word.

    Args:
        generate: Text for a request; cut at its stop strings and at `max_new_tokens` words.
        labels: Log-probabilities for a request, one per label.
        name: Name on the card.
        revision: Answers are journaled under it: change it when the functions change. By default a digest of
            their names.
        batch_size: Answers yielded at a time.
        context: Longest prompt in words; a longer one is refused (`prompt_too_long`).
        fail_after: Raise `ScriptedCrash` in place of the first batch that begins after so many answers.

    Attributes:
        generated: Texts given so far.
        read: Label readings given so far.
        calls: Calls of `generate` and of `label_logprobs` that were iterated.
    """

    def __init__(
        self,
        generate: Callable[[GenerationRequest], str] = pseudo_answer,
        labels: Callable[[LabelRequest], Sequence[float]] = pseudo_labels,
        *,
        name: str = "scripted",
        revision: str = "",
        batch_size: int = 8,
        context: int = 100_000,
        fail_after: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ModelError(f"batch_size is {batch_size}", remedy="give a whole number from 1")
        self._generate = generate
        self._labels = labels
        self._card = EngineCard(
            name=name,
            revision=revision or digest([_name(generate), _name(labels)]),
            kind="scripted",
            dtype="none",
            context=context,
            chat=True,
        )
        self.batch_size = batch_size
        self.fail_after = fail_after
        self.generated = 0
        self.read = 0
        self.calls = 0

    @property
    def card(self) -> EngineCard:
        """Who answers; its kind is `scripted`."""
        return self._card

    @property
    def at_once(self) -> int:
        """1: nothing is waited for."""
        return 1

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """As `Engine.generate`."""
        for batch in self._batches(requests, done, self._one_generation):
            self.generated += len(batch)
            yield batch

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """As `Engine.label_logprobs`."""
        for batch in self._batches(requests, done, self._one_reading):
            self.read += len(batch)
            yield batch

    def count(self, messages: Sequence[Message]) -> int:
        """Words of the rendered conversation."""
        return len(self.render(messages).split())

    def render(self, messages: Sequence[Message]) -> str:
        """`role: content` a line; ends with `assistant:` unless the assistant's text is to be continued."""
        lines = [f"{message.role}: {message.content}" for message in messages]
        if not messages or messages[-1].role != "assistant":
            lines.append("assistant:")
        return "\n".join(lines)

    def _batches(
        self, requests: Sequence[Request], done: Container[int], answer: Callable[[Request], Answer]
    ) -> Iterator[dict[int, Answer]]:
        self.calls += 1
        for start in range(0, len(requests), self.batch_size):
            indices = [
                index
                for index in range(start, min(start + self.batch_size, len(requests)))
                if index not in done
            ]
            if not indices:
                continue
            if self.fail_after is not None and self.generated + self.read >= self.fail_after:
                raise ScriptedCrash(f"scripted to fail after {self.fail_after} answers")
            yield {index: answer(requests[index]) for index in indices}

    def _one_generation(self, request: GenerationRequest) -> Generation:
        if self.count(request.messages) > self._card.context:
            return Generation(text="", finish="refused", tokens=0, reason="prompt_too_long")
        text = self._generate(request)
        for stop in request.sampling.stop:
            text = text.partition(stop)[0]
        words = text.split()
        if len(words) > request.sampling.max_new_tokens:
            kept = words[: request.sampling.max_new_tokens]
            return Generation(text=" ".join(kept), finish="length", tokens=len(kept))
        return Generation(text=text, finish="stop", tokens=len(words) + 1)

    def _one_reading(self, request: LabelRequest) -> LabelReading:
        tokens = self.count(request.messages)
        if tokens > self._card.context:
            return LabelReading(logprobs=(), tokens=tokens, reason="prompt_too_long")
        if len(set(request.labels)) < len(request.labels):
            return LabelReading(logprobs=(), tokens=tokens, reason="labels_alike")
        logprobs = tuple(float(value) for value in self._labels(request))
        if len(logprobs) != len(request.labels):
            raise ModelError(
                f"the scripted labels function gave {len(logprobs)} log-probabilities for "
                f"{len(request.labels)} labels",
                where=self._card.name,
                remedy="return one number a label, in the request's order",
            )
        if not all(math.isfinite(value) for value in logprobs):
            return LabelReading(logprobs=(), tokens=tokens, reason="not_finite")
        return LabelReading(logprobs=logprobs, tokens=tokens)


def load_scripted(name: str) -> ScriptedEngine:
    """The engine that `scripted` or `scripted:package.module:attribute` names.

    The attribute is a `ScriptedEngine`, or a function without arguments that returns one.

    Raises:
        ModelError: It cannot be imported, or is something else.
    """
    if name == "scripted":
        return ScriptedEngine()
    prefix, _, path = name.partition(":")
    module_name, _, attribute = path.partition(":")
    if prefix != "scripted" or not module_name or not attribute:
        raise ModelError(
            f"{name!r} names no scripted engine",
            remedy="write scripted, or scripted:package.module:attribute",
        )
    try:
        found: Any = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, SyntaxError, AttributeError, ValueError) as error:
        raise ModelError(
            f"cannot import the scripted engine: {error}",
            where=name,
            remedy="check the spelling, and that the module's folder is on PYTHONPATH",
        ) from error
    engine = found() if callable(found) else found
    if not isinstance(engine, ScriptedEngine):
        raise ModelError(
            f"{attribute} is a {type(engine).__name__}, not a ScriptedEngine",
            where=name,
            remedy="name a ScriptedEngine, or a function without arguments that returns one",
        )
    return engine


def _name(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"
