"""Scores of many conversations, of which some cannot be scored."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.errors import DataError, ModelError
from rlaif.moderation.base import Moderator, Scores
from rlaif.types import Message

__all__ = ["score_each"]


def score_each(moderator: Moderator, conversations: Sequence[Sequence[Message]]) -> list[Scores | str]:
    """The scores of each conversation, or why it has none; one that is too long does not stop the others."""
    if not conversations:
        return []
    try:
        return list(moderator.scores(conversations))
    except (ModelError, DataError) as error:
        if len(conversations) == 1:
            return [error.what]
        half = len(conversations) // 2
        return [*score_each(moderator, conversations[:half]), *score_each(moderator, conversations[half:])]
