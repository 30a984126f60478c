"""A moderator that reads the text alone: an adapter on a small base, and a linear head for each category on
the mean of the last layer's states."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from rlaif.models.shared_base import SharedBase
from rlaif.moderation.base import Scores, Watch
from rlaif.moderation.probe import Heads, Reads, digest_of, encode_all, kind_of
from rlaif.moderation.states import Encoder, ReadText, layer_count, read_states
from rlaif.moderation.windows import WINDOW
from rlaif.types import Message

__all__ = ["LoraModerator"]


@dataclass(frozen=True)
class LoraModerator:
    """See `rlaif.moderation.base.Moderator`. Threads wait for each other: the base has one active role, which
    another thread's pass would switch off in the middle.

    Attributes:
        role: The adapter on `base`.
        heads: Of prompts and of exchanges, on the mean state.
        window: `watch` reads the text again after so many tokens.
    """

    base: SharedBase
    role: str
    categories: tuple[str, ...]
    thresholds: Mapping[str, float]
    heads: Mapping[Reads, Heads]
    window: int = WINDOW
    _reading: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.base)

    @property
    def layers(self) -> tuple[int, ...]:
        """None: it reads the text."""
        return ()

    @property
    def digest(self) -> str:
        """16 hex digits of the adapter, the heads and the thresholds."""
        found = hashlib.sha256(digest_of(self.heads, self.categories, self.thresholds, self.window).encode())
        for name, weight in sorted(self.base.adapter_state(self.role).items()):
            found.update(name.encode() + weight.float().numpy().tobytes())
        return found.hexdigest()[:16]

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        """See `Moderator`.

        Raises:
            DataError: A conversation has no message before its answer.
            ModelError: One is longer than the context, or the chat template does not take its turns.
        """
        with self._reading:
            return self._scores(encode_all(conversations, self._encoder, self.base), conversations)

    def _scores(self, texts: Sequence[ReadText], conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        found: dict[int, Scores] = {}
        for batch in read_states(self.base, texts, (layer_count(self.base),), role=self.role):
            for at, states in batch.items():
                heads = self.heads[kind_of(conversations[at])]
                mean = states.mean(0) if len(states) else torch.zeros(states.shape[1])
                score = heads.log_odds(mean) if len(states) else torch.zeros(len(self.categories))
                found[at] = dict(zip(self.categories, heads.probability(score).tolist(), strict=True))
        return [found[at] for at in range(len(conversations))]

    def watch(self, messages: Sequence[Message]) -> Watch:
        """See `Moderator`. Its scores are of the text as it was after the last full `window` of tokens."""
        return _LoraWatch(self, messages)


class _LoraWatch:
    """See `rlaif.moderation.base.Watch`: the text so far is read anew after each window of tokens, and at its
    end. In between it is undecided (`rlaif.moderation.deciding`)."""

    def __init__(self, moderator: LoraModerator, messages: Sequence[Message]) -> None:
        self._moderator = moderator
        open_turn = bool(messages) and messages[-1].role == "assistant"
        self._messages = tuple(messages) if open_turn else (*messages, Message("assistant", ""))
        self._tokens = 0
        self._unread = 0
        self._scores: Scores | None = None

    @property
    def undecided(self) -> bool:
        """Whether tokens have come since the text was read."""
        return self._unread > 0

    def push(self, text: str, states: torch.Tensor | None) -> Scores:
        """See `Watch`; `states` are not read."""
        last = self._messages[-1]
        self._messages = (*self._messages[:-1], replace(last, content=last.content + text))
        self._tokens += 1
        self._unread += 1
        if self._scores is None or self._tokens % self._moderator.window == 0:
            return self.close()
        return self._scores

    def close(self) -> Scores:
        """Read the text as it is."""
        (self._scores,) = self._moderator.scores([self._messages])
        self._unread = 0
        return self._scores
