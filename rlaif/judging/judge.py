"""The judge: an engine and a protocol that turn comparisons into verdicts, a chunk at a time, in bounded
memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Literal, NamedTuple

from rlaif.digest import unit_from
from rlaif.engines.base import Engine, LabelReading, LabelRequest
from rlaif.engines.ranked import undivided
from rlaif.judging.protocols import JudgingProtocol
from rlaif.progress import NoProgress, Progress
from rlaif.ranks import in_shares
from rlaif.types import Comparison, Constitution, Principle, Verdict

__all__ = ["CHUNK", "Judge", "Judged", "PrincipleMode", "draw_principle"]

PrincipleMode = Literal["sample", "all"]

CHUNK = 512
"""Questions that are asked of the engine at once: enough to sort by length, few enough to hold in memory."""

BUSY = 16
"""So many times as many as the engine answers side by side: a server idles while the last of a chunk come
in."""


class Judged(NamedTuple):
    """A comparison with its verdicts and the log-odds of its label (`None`: no valid principle).

    Attributes:
        by_judge: Of a jury, the log-odds of each judge's own label; judges that were recused are missing.
    """

    comparison: Comparison
    verdicts: tuple[Verdict, ...]
    logit_a: float | None
    by_judge: Mapping[str, float | None] = {}  # never changed


class Judge:
    """Asks an engine about comparisons under a constitution.

    Args:
        engine: Who answers.
        protocol: Which questions are asked.
        constitution: The principles; each must have the half that the protocol reads.
        principles: `sample` draws one principle per comparison by weight (Bai et al. 2022); `all` asks all,
            averaged by weight.
        seed: Fixes the draw of principles.
        progress: Hears of every question answered.
    """

    def __init__(
        self,
        engine: Engine,
        protocol: JudgingProtocol,
        constitution: Constitution,
        *,
        principles: PrincipleMode,
        seed: int,
        progress: Progress | None = None,
    ) -> None:
        self._engine, self._ranks = undivided(engine)
        self._protocol = protocol
        self._constitution = constitution
        self._mode = principles
        self._seed = seed
        self._progress = progress or NoProgress()
        self._weights = {principle.id: principle.weight for principle in constitution.principles}

    def principles_for(self, comparison: Comparison) -> tuple[Principle, ...]:
        """What `comparison` is judged by, criteria of its prompt first; the same for a comparison and its
        swap."""
        own = self._protocol.criteria(comparison.prompt)
        return own if own and not self._protocol.beside else (*own, *self._drawn(comparison))

    def _drawn(self, comparison: Comparison) -> tuple[Principle, ...]:
        if self._mode == "all":
            return self._constitution.principles
        names = sorted(each.id for each in self._protocol.shown(comparison))
        return (
            draw_principle(self._constitution.principles, self._seed, comparison.prompt.fingerprint(), names),
        )

    def questions_about(self, comparison: Comparison) -> int:
        """How many questions `comparison` needs."""
        own = len(self._protocol.criteria(comparison.prompt))
        ruled = len(self._constitution.principles) if self._mode == "all" else 1
        return self._protocol.asks_about(comparison) * (
            own if own and not self._protocol.beside else own + ruled
        )

    def requests(self, comparison: Comparison) -> list[LabelRequest]:
        """Every question that `judge` would ask about `comparison`."""
        return [
            request
            for principle in self.principles_for(comparison)
            for request in self._protocol.questions(comparison, principle)
        ]

    def judge(self, comparisons: Iterable[Comparison]) -> Iterator[Judged]:
        """Judge `comparisons`, in their order."""
        # Ranks share the work by chunks, as one would make them: what is asked together is answered together.
        for chunks in in_shares(self._chunks(comparisons), self._ranks):
            mine = chunks[self._ranks.index] if self._ranks.index < len(chunks) else []
            for chunk, readings in zip(chunks, self._ranks.gather(self._readings(mine)), strict=False):
                yield from self._judged(chunk, readings)

    def _chunks(self, comparisons: Iterable[Comparison]) -> Iterator[list[Comparison]]:
        most = max(CHUNK, BUSY * self._engine.at_once)
        chunk: list[Comparison] = []
        questions = 0
        for comparison in comparisons:
            needed = self.questions_about(comparison)
            if chunk and questions + needed > most:
                yield chunk
                chunk, questions = [], 0
            chunk.append(comparison)
            questions += needed
        if chunk:
            yield chunk

    def _asked(self, comparisons: Sequence[Comparison]) -> list[tuple[Comparison, Principle]]:
        return [
            (comparison, principle)
            for comparison in comparisons
            for principle in self.principles_for(comparison)
        ]

    def _readings(self, comparisons: Sequence[Comparison]) -> list[LabelReading]:
        """The answers to all questions about `comparisons`, in their order."""
        return self._read([request for comparison in comparisons for request in self.requests(comparison)])

    def _judged(
        self, comparisons: Sequence[Comparison], answered: Sequence[LabelReading]
    ) -> Iterator[Judged]:
        """The verdicts on `comparisons`, from the answers to their questions."""
        asked, readings = self._asked(comparisons), iter(answered)
        verdicts: dict[str, list[Verdict]] = {comparison.id: [] for comparison in comparisons}
        for comparison, principle in asked:
            answers = list(islice(readings, self._protocol.asks_about(comparison)))
            verdicts[comparison.id] += self._protocol.verdicts(comparison, principle, answers)
        for comparison in comparisons:
            found = tuple(verdicts[comparison.id])
            logit = self._protocol.label(comparison, found, self._weights)
            yield Judged(comparison=comparison, verdicts=found, logit_a=logit)

    def _read(self, requests: Sequence[LabelRequest], *, together: int = 1) -> list[LabelReading]:
        """The answers to `requests`, of which so many `together` are one question."""
        readings: dict[int, LabelReading] = {}
        for batch in self._engine.label_logprobs(requests):
            before = len(readings)
            readings.update(batch)
            self._progress.advance(len(readings) // together - before // together)
        return [readings[index] for index in range(len(requests))]


def draw_principle(principles: Sequence[Principle], *key: object) -> Principle:
    """One principle, drawn in proportion to its weight; `key` fixes the draw.

    Each principle draws an exponential waiting time of its own and the first wins, so that adding or editing
    one principle changes only the draws that it wins: what the others won stays, and is not asked again.
    """
    return min(principles, key=lambda each: -math.log1p(-unit_from(*key, each.id)) / each.weight)
