"""A moderator that is a few linear heads on states that the resident base computes anyway.

At every token a head gives the log-odds that its principle is being broken; over a window of tokens they are
averaged (`rlaif.moderation.windows`), and the mean is calibrated to a probability. Prompts and exchanges have
heads of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.base import Scores, Watch
from rlaif.moderation.states import Encoder, ReadText, read_states
from rlaif.moderation.windows import WINDOW, Readout, RunningScore, of_text, token_path
from rlaif.types import Message

__all__ = ["READS", "Heads", "ProbeModerator", "Reads", "digest_of", "encode_all", "kind_of"]

Reads = Literal["prompt", "exchange"]
READS: tuple[Reads, ...] = ("prompt", "exchange")


def kind_of(messages: Sequence[Message]) -> Reads:
    """Whether a conversation ends with an answer."""
    return "exchange" if messages and messages[-1].role == "assistant" else "prompt"


@dataclass(frozen=True)
class Heads:
    """C heads on the F states of a token, and their calibration.

    Attributes:
        direction: (C, F), fp32.
        bias: (C,), fp32; the log-odds of an average token are 0.
        slope, offset: (C,), fp32: a text of score s breaks the principle with probability σ(slope · s +
            offset) (Platt 1999).
        readout: How the tokens' log-odds become a score.
    """

    direction: Tensor
    bias: Tensor
    slope: Tensor
    offset: Tensor
    readout: Readout = "windows"

    def log_odds(self, states: Tensor) -> Tensor:
        """Of tokens, (..., F) -> (..., C), fp32."""
        return states.float() @ self.direction.t() + self.bias

    def probability(self, score: Tensor) -> Tensor:
        """(..., C) -> (..., C), fp64."""
        return torch.sigmoid(self.slope.double() * score + self.offset.double())


@dataclass(frozen=True)
class ProbeModerator:
    """See `rlaif.moderation.base.Moderator`. It reads the base with every adapter off; `watch` reads the
    states that it is given, and so a policy's, which it was not trained on.

    Attributes:
        heads: Of prompts and of exchanges.
        window: Tokens of a window.
    """

    base: SharedBase
    categories: tuple[str, ...]
    thresholds: Mapping[str, float]
    layers: tuple[int, ...]
    heads: Mapping[Reads, Heads]
    window: int = WINDOW

    @property
    def digest(self) -> str:
        """16 hex digits of the heads, thresholds and layers."""
        return digest_of(self.heads, self.categories, self.thresholds, (self.layers, self.window))

    @cached_property
    def encoder(self) -> Encoder:
        """Puts conversations into tokens."""
        return Encoder(self.base)

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        """See `Moderator`.

        Raises:
            DataError: A conversation has no message before its answer.
            ModelError: One is longer than the context, or the chat template does not take its turns.
        """
        texts = encode_all(conversations, self.encoder, self.base)
        found: dict[int, Scores] = {}
        for batch in read_states(self.base, texts, self.layers):
            for at, states in batch.items():
                heads = self.heads[kind_of(conversations[at])]
                path = token_path(heads.log_odds(states), window=self.window, readout=heads.readout)
                found[at] = self._named(heads.probability(of_text(path, heads.readout)))
        return [found[at] for at in range(len(conversations))]

    def watch(self, messages: Sequence[Message]) -> Watch:
        """See `Moderator`."""
        return _ProbeWatch(self)

    def _named(self, probability: Tensor) -> Scores:
        return dict(zip(self.categories, probability.tolist(), strict=True))


class _ProbeWatch:
    """See `rlaif.moderation.base.Watch`."""

    def __init__(self, moderator: ProbeModerator) -> None:
        self._moderator = moderator
        self._heads = moderator.heads["exchange"]
        self._score = RunningScore(window=moderator.window, readout=self._heads.readout)

    def push(self, text: str, states: Tensor | None) -> Scores:
        """See `Watch`.

        Raises:
            ModelError: The states are not those of the moderator's layers.
        """
        wanted = (len(self._moderator.layers), self._moderator.base.hidden_size)
        if states is None or tuple(states.shape) != wanted:
            given = "none" if states is None else f"shape {tuple(states.shape)}"
            raise ModelError(
                f"a probe reads states of shape {wanted} at each token, and was given {given}",
                remedy="give the states of the layers in `layers`, in their order",
            )
        score = self._score.push(self._heads.log_odds(states.detach().flatten().float().cpu()))
        return self._moderator._named(self._heads.probability(score))


def digest_of(
    heads: Mapping[Reads, Heads], categories: Sequence[str], thresholds: Mapping[str, float], about: object
) -> str:
    """16 hex digits of heads, thresholds and what else a moderator is about."""
    found = hashlib.sha256(repr((tuple(categories), sorted(thresholds.items()), about)).encode())
    for reads in READS:
        own = heads[reads]
        found.update(own.readout.encode())
        for tensor in (own.direction, own.bias, own.slope, own.offset):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def encode_all(
    conversations: Sequence[Sequence[Message]], encoder: Encoder, base: SharedBase
) -> list[ReadText]:
    """Every conversation in tokens.

    Raises:
        DataError: A conversation has no message before its answer.
        ModelError: One is longer than the context of `base`, or its turns are refused.
    """
    texts = [encoder.encode(messages) for messages in conversations]
    for number, text in enumerate(texts):
        if len(text.ids) > base.context:
            raise ModelError(
                f"conversation {number} has {len(text.ids)} tokens, and {base.name} reads {base.context}",
                where=base.name,
                remedy="shorten it, or use a moderator on a base that reads more",
            )
    return texts
