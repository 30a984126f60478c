"""Several moderators as one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from rlaif.digest import digest
from rlaif.errors import ConfigError
from rlaif.moderation.base import Moderator, Scores, Watch
from rlaif.moderation.deciding import Deciding
from rlaif.types import Message

if TYPE_CHECKING:
    import torch

__all__ = ["United"]


class United:
    """Flags what one of its moderators flags.

    Raises:
        ConfigError: There is no moderator, or two have a category of the same name.
    """

    def __init__(self, moderators: Sequence[Moderator]) -> None:
        self.moderators = tuple(moderators)
        if not self.moderators:
            raise ConfigError("there is no moderator", remedy="name one with --moderation")
        names = [name for each in self.moderators for name in each.categories]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ConfigError(
                f"two moderators have a category {twice[0]!r}",
                where="--moderation",
                remedy="give the block list another `name`, or leave one of the two out",
            )
        self.categories = tuple(names)
        self.layers = tuple(sorted({layer for each in self.moderators for layer in each.layers}))

    @property
    def thresholds(self) -> Scores:
        """Those of all."""
        return _merged([each.thresholds for each in self.moderators])

    @cached_property
    def digest(self) -> str:
        """16 hex digits of those of all."""
        return digest([each.digest for each in self.moderators])[:16]

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        """The scores of all."""
        found = [each.scores(conversations) for each in self.moderators]
        return [_merged(scores) for scores in zip(*found, strict=True)]

    def watch(self, messages: Sequence[Message]) -> _UnitedWatch:
        """Have all read one answer."""
        places = [[self.layers.index(layer) for layer in each.layers] or None for each in self.moderators]
        return _UnitedWatch([each.watch(messages) for each in self.moderators], places)


class _UnitedWatch:
    """Several watches of one answer.

    Args:
        places: For each watch where its layers are among those of all; None where it reads none.
    """

    def __init__(self, watches: Sequence[Watch], places: Sequence[list[int] | None]) -> None:
        self._watches = tuple(zip(watches, places, strict=True))
        self._deciding = [watch for watch in watches if isinstance(watch, Deciding)]

    @property
    def undecided(self) -> bool:
        """Whether one of them is."""
        return any(watch.undecided for watch in self._deciding)

    def push(self, text: str, states: torch.Tensor | None) -> Scores:
        """The scores of all."""
        return _merged(
            [
                watch.push(text, None if places is None or states is None else states[places])
                for watch, places in self._watches
            ]
        )

    def close(self) -> Scores:
        """The scores of those that were undecided."""
        return _merged([watch.close() for watch in self._deciding if watch.undecided])


def _merged(scores: Sequence[Scores]) -> Scores:
    return {name: score for each in scores for name, score in each.items()}
