"""Engines that several ranks (see `rlaif.ranks`) ask together: all ask the same, and all get every answer."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from rlaif.engines.base import Engine, EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.ranks import Ranks

__all__ = ["AskedByFirst", "DividedEngine", "undivided"]

Request = TypeVar("Request", GenerationRequest, LabelRequest)
Answer = TypeVar("Answer", Generation, LabelReading)


class DividedEngine:
    """An engine that each rank has a copy of: a rank answers its share of the requests.

    Args:
        own: This rank's copy.
    """

    def __init__(self, own: Engine, ranks: Ranks) -> None:
        self.own = own
        self.ranks = ranks

    @property
    def card(self) -> EngineCard:
        """Its own copy's card."""
        return self.own.card

    @property
    def at_once(self) -> int:
        """As its own copy."""
        return self.own.at_once

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """As `Engine.generate`: its share first, then what the others answered."""
        return self._answer(requests, done, self.own.generate)

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """As `Engine.label_logprobs`, likewise."""
        return self._answer(requests, done, self.own.label_logprobs)

    def _answer(
        self,
        requests: Sequence[Request],
        done: Container[int],
        ask: Callable[..., Iterator[Mapping[int, Answer]]],
    ) -> Iterator[Mapping[int, Answer]]:
        share = self.ranks.share(len(requests))
        mine: dict[int, Answer] = {}
        settled = {at for at, index in enumerate(share) if index in done}
        for batch in ask([requests[index] for index in share], done=settled):
            found = {share[at]: answer for at, answer in batch.items()}
            mine |= found
            yield found
        others = [answers for rank, answers in enumerate(self.ranks.gather(mine)) if rank != self.ranks.index]
        yield from (answers for answers in others if answers)


class AskedByFirst:
    """An engine that the first rank asks for all: a server, which answers many at once anyway and has its
    price.

    Args:
        own: The first rank's; the others have none.
    """

    def __init__(self, own: Engine | None, ranks: Ranks) -> None:
        self._own = own
        self._ranks = ranks
        # By this number all cut what they ask: with numbers of their own they would not ask equally often.
        self._card, self._at_once = ranks.from_first(lambda: (self._there.card, self._there.at_once))

    @property
    def card(self) -> EngineCard:
        """The first rank's."""
        return self._card

    @property
    def at_once(self) -> int:
        """The first rank's."""
        return self._at_once

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """As `Engine.generate`, all at once."""
        yield self._ranks.from_first(lambda: _all(partial(self._there.generate, requests, done=done)))

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """As `Engine.label_logprobs`, all at once."""
        yield self._ranks.from_first(lambda: _all(partial(self._there.label_logprobs, requests, done=done)))

    @property
    def _there(self) -> Engine:
        assert self._own is not None, "only the first rank asks"
        return self._own


def undivided(engine: Engine) -> tuple[Engine, Ranks]:
    """What one rank asks by itself, and among which ranks a list of requests may be divided otherwise."""
    return (engine.own, engine.ranks) if isinstance(engine, DividedEngine) else (engine, Ranks())


def _all(ask: Callable[[], Iterator[Mapping[int, Answer]]]) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    for batch in ask():
        found |= batch
    return found
