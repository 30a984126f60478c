"""A rank that does not ask a server itself cuts its requests as the first rank does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from rlaif.engines.base import EngineCard
from rlaif.engines.ranked import AskedByFirst
from rlaif.ranks import Ranks

T = TypeVar("T")


class Second(Ranks):
    """Rank 1 of two, which is told what the first made."""

    def __init__(self, told: Any) -> None:
        super().__init__(1, 2)
        self.told = told

    def from_first(self, make: Callable[[], T]) -> T:
        told: T = self.told
        return told


def test_a_rank_that_does_not_ask_knows_how_many_the_first_asks_at_once() -> None:
    card = EngineCard(name="judge", revision="1", kind="openai", dtype="", context=512, chat=True)
    engine = AskedByFirst(None, Second((card, 400)))
    assert (engine.card, engine.at_once) == (card, 400)
