"""The engine protocol: generate text, and read the probability of label strings at the next position.

A request is plain data and complete in itself, so that its digest can key a journal. An engine plans its
batches over *all* the requests it is given and only then leaves out those already `done`: so what is left out
never changes the batch, and thus the rounding, of what is computed, and a resumed run ends with the same
numbers as an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rlaif.types import Message

__all__ = [
    "LEAST_SHARE",
    "is_refusal",
    "Engine",
    "EngineCard",
    "Generation",
    "GenerationRequest",
    "LabelReading",
    "LabelRequest",
    "Sampling",
    "TokenCount",
]

LEAST_SHARE = 0.005
"""Least probability that the labels of a question must hold together for their ratio to say something. Below
it the model is about to write something else (it begins to think, or answers in other words), and the two
tails that remain are noise."""


@dataclass(frozen=True, slots=True)
class EngineCard:
    """What identifies an engine: everything that may change its answers.

    Attributes:
        name: The model as the user named it.
        revision: Commit hash, or digest of the weights; answers are journaled under it.
        kind: `hf`, `openai` or `scripted`.
        dtype: Arithmetic of the forward pass, e.g. `bfloat16`.
        context: Longest sequence in tokens.
        chat: Whether the model has a chat template (else the plain form is used).
        reads: How a served model is asked and its labels are read, in words
            (`chat, top 20 log-probabilities`, `chat, 8 votes`); empty where there is one way only.
    """

    name: str
    revision: str
    kind: str
    dtype: str
    context: int
    chat: bool
    reads: str = ""

    @property
    def label(self) -> str:
        """`name@revision`, as files record it."""
        return f"{self.name}@{self.revision}"

    def identity(self) -> dict[str, Any]:
        """The part of the card that an answer depends on, for journal keys."""
        identity = {"revision": self.revision, "kind": self.kind, "dtype": self.dtype, "chat": self.chat}
        return identity | {"reads": self.reads} if self.reads else identity


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens.

    Attributes:
        max_new_tokens: Longest completion in tokens.
        temperature: Logits are divided by it; 0 means greedy.
        top_p: Draw from the smallest set of tokens that holds this probability; 1 keeps the model's own
            distribution.
        stop: Strings that end a completion; they are not part of it.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion to sample.

    Attributes:
        messages: The conversation; the completion continues it as the assistant. When the last message is the
            assistant's, the completion continues that text.
        seed: Fixes the draw: the same request gives the same completion, whatever else is in its batch (up to
            rounding).
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int

    def identity(self) -> dict[str, Any]:
        """The request as JSON values, for journal keys."""
        sampling = self.sampling
        return {
            "messages": [[m.role, m.content] for m in self.messages],
            "seed": self.seed,
            "sampling": [sampling.max_new_tokens, sampling.temperature, sampling.top_p, list(sampling.stop)],
        }


@dataclass(frozen=True, slots=True)
class Generation:
    """One sampled completion.

    Attributes:
        text: Decoded text without special tokens.
        finish: `stop`, `length`, or `refused` when nothing could be sampled (`reason` says why).
        tokens: How many tokens were sampled, the end token included.
    """

    text: str
    finish: Literal["stop", "length", "refused"]
    tokens: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LabelRequest:
    """One question whose answer is one of a few labels.

    Attributes:
        messages: The conversation; when the last message is the assistant's, the label continues that text.
        labels: Distinct strings, e.g. `("A", "B")`.
    """

    messages: tuple[Message, ...]
    labels: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """The request as JSON values, for journal keys."""
        return {"messages": [[m.role, m.content] for m in self.messages], "labels": list(self.labels)}


@dataclass(frozen=True, slots=True)
class LabelReading:
    """What the model holds of each label at the next position.

    Attributes:
        logprobs: Natural-log probability of each label under the full softmax, in the request's order; empty
            when invalid.
        reason: Why there is no reading; empty when there is one. In-process: `prompt_too_long`,
            `labels_alike`, `not_finite`. Served: also `no_logprobs`, `labels_not_in_top`, `labels_unlikely`,
            `no_label_in_answer`, and the reasons of requests that got no answer.
        tokens: Length of the prompt in tokens.
        bounded: For each label, how its log-probability was found where a server did not tell it: `told` (it
            was told), `least` (at most that of the least token told) or `mass` (at most what the tokens told
            leave). Empty when all were told.
    """

    logprobs: tuple[float, ...]
    tokens: int = 0
    reason: str = ""
    bounded: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Probability that the labels hold together, from 0 to 1."""
        return min(1.0, math.fsum(math.exp(min(0.0, each)) for each in self.logprobs if not math.isnan(each)))


REFUSALS = (
    "prompt_too_long",
    "template_refused",
    "unknown_token",
    "rejected_",
    "content_filter",
    "no_content",
    "tool_calls",
    "refusal",
    "transient:",
)
"""How the reasons begin of a request that got no answer. All other reasons are of answers that say nothing
usable."""


def is_refusal(reason: str) -> bool:
    """Whether the request was not answered, so that it may be asked again: of a server with a longer context,
    for one."""
    return reason.startswith(REFUSALS)


class Engine(Protocol):
    """Runs one model. Implementations: `hf`, `scripted` (and `openai`)."""

    @property
    def card(self) -> EngineCard:
        """Who answers."""
        ...

    @property
    def at_once(self) -> int:
        """Requests that are answered side by side, in no order: it waits for work where it is given few more.
        1 where they are put into batches of its own."""
        ...

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """Sample a completion for every request that is not in `done`.

        Yields one mapping a finished batch, from the request's index to its result; each index comes exactly
        once.
        """
        ...

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """Read the labels of every request that is not in `done`; yields as `generate` does."""
        ...


class TokenCount(Protocol):
    """Counts tokens without weights: enough for a dry run."""

    def count(self, messages: Sequence[Message]) -> int:
        """Length in tokens of the rendered conversation, the generation prompt included."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model will read it."""
        ...
