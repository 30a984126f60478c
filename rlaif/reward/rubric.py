"""The reward `rubric`: what a completion wins of its prompt's points (Gunjal et al. 2025, Rubrics as Rewards,
arXiv 2507.17746)."""

from __future__ import annotations

from collections.abc import Sequence

from rlaif.engines.base import LEAST_SHARE, Engine, LabelReading
from rlaif.errors import DataError
from rlaif.judging.rubric import Aggregate, held_of, no_rubric, rubric_request, rubric_score
from rlaif.prompts import PromptLibrary
from rlaif.reward.functions import Scores
from rlaif.types import Completion, Prompt

__all__ = ["RubricReward"]


class RubricReward:
    """The expected score of each completion under the rubric of its prompt; see `judging.rubric`.

    Args:
        aggregate: How criteria become a score.
        without: Score under a prompt without a rubric; `None` refuses it.
        least_share: Least probability that the two answers must hold together to be valid.
    """

    def __init__(
        self,
        engine: Engine,
        library: PromptLibrary,
        *,
        aggregate: Aggregate = "mean",
        without: float | None = None,
        name: str = "rubric",
        least_share: float = LEAST_SHARE,
    ) -> None:
        self.name = name
        self._engine, self._library = engine, library
        self._aggregate, self._without, self._least_share = aggregate, without, least_share

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """One score each, at most 1.

        Raises:
            DataError: A prompt has no rubric, or a completion no valid answer (to all criteria that it must
                meet, and to one at least).
        """
        pairs = list(zip(prompts, completions, strict=True))
        requests = [
            rubric_request(self._library, prompt, completion, criterion)
            for prompt, completion in pairs
            for criterion in prompt.rubric
        ]
        found: dict[int, LabelReading] = {}
        for batch in self._engine.label_logprobs(requests):
            found.update(batch)
        scores: list[float] = []
        first = 0
        for prompt, completion in pairs:
            count = len(prompt.rubric)
            readings = [found[first + place] for place in range(count)]
            scores.append(self._score(prompt, completion, readings))
            first += count
        return Scores(total=tuple(scores), parts={self.name: tuple(scores)})

    def _score(self, prompt: Prompt, completion: Completion, readings: Sequence[LabelReading]) -> float:
        if not prompt.rubric:
            if self._without is None:
                raise no_rubric(prompt)
            return self._without
        held = held_of(prompt.rubric, readings, self._least_share)
        score = rubric_score(prompt.rubric, held, self._aggregate)
        if score is None:
            why = next((each.reason for each in readings if each.reason), "labels_unlikely")
            raise DataError(
                f"the judge has no valid answer to the rubric ({why})",
                where=f"completion {completion.id}",
                remedy="see `rlaif audit --protocol rubric`",
            )
        return score
