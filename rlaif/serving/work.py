"""What the server asks of the decoder, and what it hears back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlaif.digest import seed_from
from rlaif.engines.base import Sampling
from rlaif.serving.stream import TextStream
from rlaif.types import Message

if TYPE_CHECKING:
    import torch

__all__ = ["Delta", "Ended", "Event", "Failed", "Finished", "Job", "Row", "start_rows"]

Finish = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that was added to a choice."""

    choice: int
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete.

    Attributes:
        reward: The reward model's score, where it chose among several.
    """

    choice: int
    finish: Finish
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is done; nothing follows.

    Attributes:
        completion_tokens: Sampled tokens over all rows, end tokens included.
        counted: Whether the two are known; an upstream need not tell them.
    """

    prompt_tokens: int
    completion_tokens: int
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without a result; nothing follows.

    Attributes:
        status: Of the answer, where none of it was sent yet.
        param: The field of the request that it is about.
        code: A name for programs to act on.
        retry_after: Seconds after which it may be tried again.
    """

    reason: str
    status: int = 500
    param: str | None = None
    code: str | None = None
    retry_after: int | None = None


Event = Delta | Ended | Finished | Failed


@dataclass(eq=False, slots=True)
class Job:
    """One request: a prompt, and how many completions of it are sampled side by side.

    Attributes:
        role: The adapter that answers, or `reference`.
        ids: The prompt's tokens.
        samples: Rows of the batch that it takes.
        best_only: Whether the reward model keeps one of the samples, which is choice 0.
        emit: Hears of what happens, on the decoder's thread; must return at once.
        cancelled: Set by the decoder's owner: its rows leave before the next step.
        created: When it was made, in seconds of the monotonic clock.
        first_token: When its first token was drawn; 0 before.
    """

    role: str
    ids: tuple[int, ...]
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    emit: Callable[[Event], None]
    samples: int = 1
    best_only: bool = False
    cancelled: bool = False
    created: float = field(default_factory=time.monotonic)
    first_token: float = 0.0
    rows: list[Row] = field(default_factory=list)

    @property
    def cost(self) -> int:
        """Room that a row may need in the key-value cache, in tokens."""
        return len(self.ids) + self.sampling.max_new_tokens

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Sampled so far, over all rows."""
        return sum(row.count for row in self.rows)


@dataclass(eq=False, slots=True)
class Row:
    """One completion that is being sampled."""

    job: Job
    choice: int
    uniforms: torch.Tensor
    stream: TextStream
    count: int = 0
    text: str = ""
    finish: Literal["", "stop", "length", "refused"] = ""

    @property
    def uniform(self) -> float:
        """The number in [0, 1) that the next token is drawn with."""
        return float(self.uniforms[self.count])

    @property
    def live(self) -> bool:
        """Whether tokens are still drawn for it."""
        return not self.finish and not self.job.cancelled

    def take(self, token: int, ends: frozenset[int]) -> None:
        """Add a drawn token, -1 where the logits were not finite; the text that is certain goes out."""
        if token < 0:
            self.finish = "refused"
            return
        self.count += 1
        self.job.first_token = self.job.first_token or time.monotonic()
        ended = token in ends
        piece = "" if ended else self.stream.push(token)
        if ended or self.stream.stopped:
            self.finish = "stop"
        elif self.count >= self.job.sampling.max_new_tokens:
            self.finish = "length"
        if self.finish:
            piece += self.stream.close()
            # The end of the text may be a stop string that could not be told from its beginning before.
            self.finish = "stop" if self.stream.stopped else self.finish
        self._give(piece)

    def _give(self, piece: str) -> None:
        if self.job.best_only:
            self.text += piece
            return
        if piece:
            self.job.emit(Delta(self.choice, piece))
        if self.finish in ("stop", "length"):
            self.job.emit(Ended(self.choice, self.finish))


def start_rows(job: Job, tokenizer: Any, stops: Sequence[str]) -> list[Row]:
    """The rows of a job, each with random numbers of its own: the first draws as an engine's request of the
    same seed does."""
    from rlaif.engines.decoding import row_uniforms  # late: without a model nothing loads torch

    steps = job.sampling.max_new_tokens
    seeds = [job.seed, *(seed_from(job.seed, "choice", choice) for choice in range(1, job.samples))]
    job.rows = [
        Row(job, choice, row_uniforms(seed, steps), TextStream(tokenizer, (*stops, *job.sampling.stop)))
        for choice, seed in enumerate(seeds)
    ]
    return job.rows


def best_row(rows: Sequence[Row], scores: Sequence[float]) -> int:
    """Place of the highest score that is a number; the first of equal ones."""
    return max(range(len(rows)), key=lambda at: (not math.isnan(scores[at]), scores[at], -at))
