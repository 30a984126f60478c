"""A judge that is an adapter: the base's own label questions, answered with the adapter switched on."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace

from rlaif.engines.base import EngineCard, LabelReading, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.models.role_engine import RoleEngine
from rlaif.models.shared_base import SharedBase

__all__ = ["LoraJudge"]


class LoraJudge(RoleEngine):
    """Answers questions as the role `role` of the base that `engine` runs.

    Args:
        scale: The log-odds of every answer are multiplied by it: a temperature, fitted on pairs that the
            adapter did not learn from.
    """

    def __init__(
        self, engine: HFEngine, base: SharedBase, role: str, *, scale: float, card: EngineCard
    ) -> None:
        super().__init__(engine, base, role, card=card)
        self._scale = scale

    def label_logprobs(
        self, requests: Sequence[LabelRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, LabelReading]]:
        """As the engine's, with the adapter on and the log-odds scaled."""
        for batch in super().label_logprobs(requests, done=done):
            yield {at: self._scaled(reading) for at, reading in batch.items()}

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
