"""A judge that is an adapter: the base's own label questions, answered with the adapter switched on."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.models.shared_base import SharedBase

__all__ = ["LoraJudge", "resident_base"]


def resident_base(engine: HFEngine) -> SharedBase:
    """The model of an engine as a base with roles; one for an engine, whoever asks."""
    if not isinstance(engine.resident, SharedBase):
        engine.resident = SharedBase.from_model(
            engine.model, engine.tokenizer, name=engine.card.name, identity=engine.card.revision
        )
    return engine.resident


class LoraJudge:
    """Answers questions as the role `role` of the base that `engine` runs; no weights but the adapter's are
    its own, and outside of its passes the base is as it was.

    Args:
        scale: The log-odds of every answer are multiplied by it: a temperature, fitted on pairs that the
            adapter did not learn from.
    """

    def __init__(
        self, engine: HFEngine, base: SharedBase, role: str, *, scale: float, card: EngineCard
    ) -> None:
        self._engine, self._base, self._role = engine, base, role
        self._scale, self._card = scale, card

    @property
    def card(self) -> EngineCard:
        """Who answers."""
        return self._card

    @property
    def at_once(self) -> int:
        """1: requests are put into batches of its own."""
        return 1

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """As the engine's, with the adapter on."""
        batches = self._engine.label_logprobs(requests, done=done)
        while (batch := self._next(batches)) is not None:
            yield {at: self._scaled(reading) for at, reading in batch.items()}

    def _next(self, batches: Iterator[Mapping[int, LabelReading]]) -> Mapping[int, LabelReading] | None:
        # The role is left between batches: whoever takes them may run the base as another one.
        with self._base.role(self._role), self._base.held():
            return next(batches, None)

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """As the engine's, with the adapter on."""
        batches = self._engine.generate(requests, done=done)
        while True:
            with self._base.role(self._role), self._base.held():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _scaled(self, reading: LabelReading) -> LabelReading:
        """The same share of the probability, divided by the scaled log-odds."""
        if reading.reason or len(reading.logprobs) != 2:
            return reading
        one, other = reading.logprobs
        both = max(one, other) + math.log1p(math.exp(-abs(one - other)))
        gap = self._scale * (one - other)
        return replace(reading, logprobs=(both + _log_sigmoid(gap), both + _log_sigmoid(-gap)))


def _log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))
