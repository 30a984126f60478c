"""Watches that may have to see what follows before they know what they read."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from rlaif.moderation.base import Scores

__all__ = ["Deciding"]


@runtime_checkable
class Deciding(Protocol):
    """What such a `Watch` has besides: `bad` is a word, or the beginning of `badge`."""

    @property
    def undecided(self) -> bool:
        """Whether it takes the next token, or the end, to score those that it has read."""

    def close(self) -> Scores:
        """The answer has ended: the scores of what was undecided."""
