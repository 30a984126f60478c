"""Moderators for tests: an oracle that knows one word, and one that notes the states it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from rlaif.moderation.base import Scores
from rlaif.types import Message

__all__ = ["Oracle", "StateReader"]


@dataclass
class Oracle:
    """Flags the answer at the token that completes a word, and prompts that hold it."""

    word: str
    name: str = "oracle"
    layers: tuple[int, ...] = ()
    digest: str = "oracle"

    @property
    def categories(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def thresholds(self) -> Scores:
        return {self.name: 0.5}

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        return [
            {self.name: 0.9 if any(self.word in turn.content for turn in turns) else 0.1}
            for turns in conversations
        ]

    def watch(self, messages: Sequence[Message]) -> _OracleWatch:
        return _OracleWatch(self)


class _OracleWatch:
    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._text = ""

    def push(self, text: str, states: torch.Tensor | None) -> Scores:
        assert (states is None) == (not self._oracle.layers)
        before = self._oracle.word in self._text
        self._text += text
        found = self._oracle.word in self._text and not before
        return {self._oracle.name: 0.9 if found else 0.1}


@dataclass
class StateReader:
    """Notes what it reads of every answer; flags where `flags` says so of the number of tokens read."""

    layers: tuple[int, ...]
    flags: Callable[[int], bool] = lambda count: False
    seen: list[list[tuple[str, torch.Tensor]]] = field(default_factory=list)
    categories: tuple[str, ...] = ("states",)
    digest: str = "reader"

    @property
    def thresholds(self) -> Scores:
        return {self.categories[0]: 0.5}

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        return [{self.categories[0]: 0.0} for _ in conversations]

    def watch(self, messages: Sequence[Message]) -> _StateWatch:
        self.seen.append([])
        return _StateWatch(self, self.seen[-1])


class _StateWatch:
    def __init__(self, reader: StateReader, seen: list[tuple[str, torch.Tensor]]) -> None:
        self._reader, self._seen = reader, seen

    def push(self, text: str, states: torch.Tensor | None) -> Scores:
        assert states is not None
        self._seen.append((text, states.clone()))
        return {self._reader.categories[0]: float(self._reader.flags(len(self._seen)))}
