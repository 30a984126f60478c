"""What a moderator is: it scores a conversation for each of its categories, whole or while it is written.

A category is a principle of a constitution, or the name of a block list. Scores are in [0, 1], greater where
the category is broken more surely; a moderator that is trained gives calibrated probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from rlaif.types import Message

if TYPE_CHECKING:
    import torch

__all__ = ["Moderator", "Scores", "Watch", "flagged"]

Scores = Mapping[str, float]
"""A score in [0, 1] for each category."""


class Watch(Protocol):
    """One answer while it is written. Not shared between answers; used by one thread at a time."""

    def push(self, text: str, states: torch.Tensor | None) -> Scores:
        """Read one more token.

        Args:
            text: What the token added to the text; empty while its bytes are no whole character yet.
            states: The base's hidden states at this token, (L, H) for the L layers of `Moderator.layers`;
                None where that is empty.

        Returns:
            The scores of the window that ends with this token. They rest on this token and those before it.
        """


class Moderator(Protocol):
    """Scores prompts (the last message is the user's) and exchanges (the last is the assistant's)."""

    @property
    def categories(self) -> tuple[str, ...]:
        """What it scores."""

    @property
    def thresholds(self) -> Scores:
        """For each category, the score from which on it is flagged."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the resident base whose states `Watch.push` reads, as indices of `hidden_states`; empty
        for a moderator that reads the text alone."""

    @property
    def digest(self) -> str:
        """What it is, in a few characters that change with it."""

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        """Score whole conversations.

        Raises:
            ModelError: One is longer than the model reads.
        """

    def watch(self, messages: Sequence[Message]) -> Watch:
        """Begin to read an answer to `messages`."""


def flagged(scores: Scores, thresholds: Scores) -> tuple[str, ...]:
    """The categories whose score reaches their threshold."""
    return tuple(name for name, score in scores.items() if score >= thresholds[name])
