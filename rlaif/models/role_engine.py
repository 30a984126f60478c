"""An engine that is a role: an adapter of a base that another engine runs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import TypeVar

from rlaif.engines.base import EngineCard, Generation, GenerationRequest, LabelReading, LabelRequest
from rlaif.engines.hf import HFEngine
from rlaif.models.shared_base import SharedBase

__all__ = ["RoleEngine", "resident_base"]

Answer = TypeVar("Answer", Generation, LabelReading)


def resident_base(engine: HFEngine) -> SharedBase:
    """The model of an engine as a base with roles; one for an engine, whoever asks."""
    if not isinstance(engine.resident, SharedBase):
        engine.resident = SharedBase.from_model(
            engine.model, engine.tokenizer, name=engine.card.name, identity=engine.card.revision
        )
    return engine.resident


class RoleEngine:
    """Answers as the role `role` of the base that `engine` runs; no weights but the adapter's are its own,
    and outside of its passes the base is as it was."""

    def __init__(self, engine: HFEngine, base: SharedBase, role: str, *, card: EngineCard) -> None:
        self._engine, self._base, self._role = engine, base, role
        self._card = card

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
        yield from self._in_role(self._engine.label_logprobs(requests, done=done))

    def generate(
        self, requests: Sequence[GenerationRequest], *, done: Container[int] = ()
    ) -> Iterator[Mapping[int, Generation]]:
        """As the engine's, with the adapter on."""
        yield from self._in_role(self._engine.generate(requests, done=done))

    def _in_role(self, batches: Iterator[Mapping[int, Answer]]) -> Iterator[Mapping[int, Answer]]:
        """The role is left between batches: whoever takes them may run the base as another one."""
        while True:
            with self._base.role(self._role), self._base.held():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
