"""What the server asks of the decoder, and what it hears back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rlaif.digest import seed_from
from rlaif.engines.base import Sampling
from rlaif.errors import RlaifError
from rlaif.serving.hold import Flag, Hold
from rlaif.serving.stream import TextStream
from rlaif.types import Message

if TYPE_CHECKING:
    import torch

    from rlaif.serving.moderating import Moderation

__all__ = ["Delta", "Ended", "Event", "Failed", "Finished", "Job", "Row", "emit_blocked", "start_rows"]

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
        flag: What it was blocked for.
    """

    choice: int
    finish: Finish
    reward: float | None = None
    flag: Flag | None = None


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
        moderation: Decides what of the completions may go out.
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
    moderation: Moderation | None = None
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
    """One completion that is being sampled.

    Attributes:
        hold: Holds back text that is not scored yet, where answers are moderated.
        spoken: Whether text has gone out.
        problem: Why it was refused, where that is not the model's output.
    """

    job: Job
    choice: int
    uniforms: torch.Tensor
    stream: TextStream
    hold: Hold | None = None
    count: int = 0
    text: str = ""
    spoken: bool = False
    problem: str = ""
    finish: Literal["", "stop", "length", "content_filter", "refused"] = ""

    @property
    def uniform(self) -> float:
        """The number in [0, 1) that the next token is drawn with; any where none is drawn any more."""
        return float(self.uniforms[min(self.count, len(self.uniforms) - 1)])

    @property
    def draws(self) -> bool:
        """Whether tokens are still drawn for it."""
        return not self.finish and not self.job.cancelled

    @property
    def live(self) -> bool:
        """Whether it is still stepped: tokens are drawn for it, or its last one has to be read yet."""
        return self.draws or (not self.settled and self.hold is not None and self.hold.unread)

    @property
    def settled(self) -> bool:
        """Whether nothing more comes of it."""
        if self.job.cancelled or self.finish in ("refused", "content_filter"):
            return True
        return bool(self.finish) and (self.hold is None or not self.hold.open)

    def take(self, token: int, ends: frozenset[int]) -> None:
        """Add a drawn token, -1 where the logits were not finite; the text that is certain goes out."""
        if token < 0:
            self.finish = "refused"
            return
        self.count += 1
        self.job.first_token = self.job.first_token or time.monotonic()
        ended = token in ends
        piece = "" if ended else self.stream.push(token)
        added = self.stream.added
        if ended or self.stream.stopped:
            self.finish = "stop"
        elif self.count >= self.job.sampling.max_new_tokens:
            self.finish = "length"
        rest = ""
        if self.finish:
            rest = self.stream.close()
            # The end of the text may be a stop string that could not be told from its beginning before.
            self.finish = "stop" if self.stream.stopped else self.finish
        if self.hold is None:
            self._give(piece + rest)
        else:
            self._hold_back(self.hold, None if ended else added, piece, rest)

    def read(self, states: torch.Tensor | None) -> None:
        """The model has read the last token: score it.

        Args:
            states: Its hidden states (L, H).
        """
        if self.hold is not None and self.hold.unread and not self.settled:
            self._moderated(lambda hold: hold.read(states))

    def settle(self) -> None:
        """Act on what the judge has answered."""
        if self.hold is not None and not self.settled:
            self._moderated(Hold.settle)

    def drop(self) -> None:
        """Nobody waits for it any more."""
        if self.hold is not None:
            self.hold.drop()

    def _hold_back(self, hold: Hold, added: str | None, piece: str, rest: str) -> None:
        """Hand text over to `hold`; `added` is None of a token that ends the turn, which has no text."""
        if added is not None:
            hold.draw(added, piece)
        if not hold.reads_states and hold.unread:
            self._moderated(lambda hold: hold.read(None))
        if self.finish in ("stop", "length"):
            self._moderated(lambda hold: hold.end(rest))

    def _moderated(self, act: Callable[[Hold], None]) -> None:
        """Let the moderator work, and pass on what it lets go; where it fails, nothing more goes out."""
        assert self.hold is not None
        try:
            act(self.hold)
        except (RlaifError, RuntimeError) as error:
            self.finish, self.problem = "refused", f"the moderator cannot read the answer: {error}"
            return
        if self.hold.blocked is not None:
            self.finish = "content_filter"
        self._give(self.hold.release())

    def _give(self, piece: str) -> None:
        if self.job.best_only:
            self.text += piece
            return
        if self.finish == "content_filter":
            assert self.job.moderation is not None
            assert self.hold is not None
            assert self.hold.blocked is not None
            piece = ("\n\n" if self.spoken else "") + self.job.moderation.message(self.hold.blocked)
        if piece:
            self.spoken = True
            self.job.emit(Delta(self.choice, piece))
        if self.finish in ("stop", "length", "content_filter") and self.settled:
            flag = None if self.hold is None else self.hold.blocked
            self.job.emit(Ended(self.choice, self.finish, flag=flag))


def emit_blocked(job: Job, choice: int, flag: Flag) -> None:
    """Tell of a choice of which no text has gone out that it is blocked."""
    assert job.moderation is not None
    job.emit(Delta(choice, job.moderation.message(flag)))
    job.emit(Ended(choice, "content_filter", flag=flag))


def start_rows(job: Job, tokenizer: Any, stops: Sequence[str]) -> list[Row]:
    """The rows of a job, each with random numbers of its own: the first draws as an engine's request of the
    same seed does."""
    from rlaif.engines.decoding import row_uniforms  # late: without a model nothing loads torch

    steps = job.sampling.max_new_tokens
    seeds = [job.seed, *(seed_from(job.seed, "choice", choice) for choice in range(1, job.samples))]
    job.rows = [
        Row(
            job,
            choice,
            row_uniforms(seed, steps),
            TextStream(tokenizer, (*stops, *job.sampling.stop)),
            None if job.moderation is None else job.moderation.hold_of(job.messages),
        )
        for choice, seed in enumerate(seeds)
    ]
    return job.rows


def best_row(rows: Sequence[Row], scores: Sequence[float]) -> int:
    """Place of the highest score that is a number; the first of equal ones."""
    return max(range(len(rows)), key=lambda at: (not math.isnan(scores[at]), scores[at], -at))
