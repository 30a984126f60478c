"""What PPO is rewarded for: a reward model, a function of one's own, the judge itself, rules, or a weighted
sum of them.

A reward takes prompts and completions and returns a number for each, with the numbers that it was added up
from, so that each part is logged apart. No torch here: a reward model brings its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from rlaif.engines.base import LEAST_SHARE, Engine, LabelReading, LabelRequest
from rlaif.errors import ConfigError, DataError
from rlaif.judging.protocols import log_odds
from rlaif.labels import sigmoid
from rlaif.metrics import Metric, load_metric, measure
from rlaif.prompts import PromptLibrary
from rlaif.types import Completion, Constitution, Prompt

__all__ = [
    "FormatReward",
    "FunctionReward",
    "JudgeReward",
    "LengthReward",
    "PatternReward",
    "RewardFunction",
    "RewardSum",
    "ScoredReward",
    "Scores",
]

MOST_SCORE = 1e15
"""Scores are squared and added up in single precision, which ends at 3e38."""


class Scores(NamedTuple):
    """One number a completion."""

    total: tuple[float, ...]
    parts: Mapping[str, tuple[float, ...]]
    """What `total` was added up from, by name, before the weights."""
    weights: Mapping[str, float] = {}
    """What each part was multiplied by; 1 where nothing is said."""


class RewardFunction(Protocol):
    """Scores completions; the same input gives the same scores."""

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """The scores of `completions`, each of the prompt at its place."""
        ...


class ScoredReward:
    """A function that scores a whole batch, such as a reward model's `score`."""

    def __init__(
        self, name: str, score: Callable[[Sequence[Prompt], Sequence[Completion]], Sequence[float]]
    ) -> None:
        self.name = name
        self._score = score

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """One score each.

        Raises:
            DataError: A score is no finite number or beyond `MOST_SCORE`, or their count is not that of the
                completions.
        """
        values = tuple(float(value) for value in self._score(prompts, completions))
        if len(values) != len(completions):
            raise DataError(
                f"the reward {self.name!r} gave {len(values)} scores for {len(completions)} completions"
            )
        _refuse_unlearnable(f"the reward {self.name!r} gave", values, completions)
        return Scores(total=values, parts={self.name: values})


def _refuse_unlearnable(
    said: str, values: Sequence[float], completions: Sequence[Completion], remedy: str | None = None
) -> None:
    """Raises:
    DataError: A value is no finite number, or too large to train on.
    """
    for value, completion in zip(values, completions, strict=True):
        if not math.isfinite(value):
            why, usual = "", "make it return a finite number for every text, the empty one too"
        elif abs(value) > MOST_SCORE:
            why, usual = f", and scores end at {MOST_SCORE:g}", "make it return a number of the order of 1"
        else:
            continue
        raise DataError(f"{said} {value}{why}", where=f"completion {completion.id}", remedy=remedy or usual)


class _OneByOne(ScoredReward):
    def __init__(self, name: str, metric: Metric) -> None:
        super().__init__(
            name,
            lambda prompts, completions: [
                measure(name, metric, prompt, completion, what="reward")
                for prompt, completion in zip(prompts, completions, strict=True)
            ],
        )


class FunctionReward(_OneByOne):
    """A function of your own, as metrics are (`rlaif.metrics`), or where it can be imported from
    (`package.module:name`)."""

    def __init__(self, function: Metric | str, *, name: str = "function") -> None:
        super().__init__(
            name, load_metric(function, what="reward function") if isinstance(function, str) else function
        )


class LengthReward(_OneByOne):
    """-1 for a completion outside a length in words, else 0."""

    def __init__(self, *, min_words: int = 0, max_words: int | None = None, name: str = "length") -> None:
        most = math.inf if max_words is None else max_words
        super().__init__(
            name, lambda prompt, given: 0.0 if min_words <= len(given.text.split()) <= most else -1.0
        )


class PatternReward(_OneByOne):
    """-1 for a completion in which a banned pattern is found, else 0 (a rule in the manner of Sparrow, Glaese
    et al. 2022)."""

    def __init__(self, pattern: str, *, name: str = "pattern") -> None:
        banned = re.compile(pattern)
        super().__init__(name, lambda prompt, given: -1.0 if banned.search(given.text) else 0.0)


class FormatReward(_OneByOne):
    """-1 for a completion that a pattern does not match as a whole, else 0."""

    def __init__(self, pattern: str, *, name: str = "format") -> None:
        wanted = re.compile(pattern)
        super().__init__(name, lambda prompt, given: 0.0 if wanted.fullmatch(given.text) else -1.0)


class JudgeReward:
    """The judge itself (direct RLAIF, Lee et al. 2023, 2309.00267, §2.2.2): the good answer's share of each
    pointwise question, averaged over the principles by weight. A question without a reading leaves its
    principle out for that completion.

    Args:
        scale: `probability` of the good answer, 0 to 1 (the expected score of an answer worth 1 or 0), or its
            `log-odds`.
        least_share: Least probability that the two answers must hold together to be valid.

    Raises:
        ConfigError: The constitution has a principle without a pointwise question.
    """

    def __init__(
        self,
        engine: Engine,
        library: PromptLibrary,
        constitution: Constitution,
        *,
        scale: Literal["probability", "log-odds"] = "probability",
        name: str = "judge",
        least_share: float = LEAST_SHARE,
    ) -> None:
        self.name = name
        self._least_share = least_share
        self._engine, self._library, self._principles, self._scale = (
            engine,
            library,
            constitution.principles,
            scale,
        )
        if lacking := [principle.id for principle in self._principles if principle.question is None]:
            remedy = "write its `question`, or reward with a model trained on pairwise labels"
            raise ConfigError(
                f"principle {lacking[0]!r} has no `question` for the judge to score a completion by",
                remedy=remedy,
            )

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """One score each.

        Raises:
            DataError: A completion got no valid answer at all.
        """
        requests = [
            self._request(prompt, completion, at)
            for prompt, completion in zip(prompts, completions, strict=True)
            for at in range(len(self._principles))
        ]
        found: dict[int, LabelReading] = {}
        for batch in self._engine.label_logprobs(requests):
            found.update(batch)
        count = len(self._principles)
        scores = tuple(
            self._mean([found[row * count + at] for at in range(count)], completion)
            for row, completion in enumerate(completions)
        )
        return Scores(total=scores, parts={self.name: scores})

    def _request(self, prompt: Prompt, completion: Completion, at: int) -> LabelRequest:
        question = self._library.judge_pointwise(prompt, completion, self._principles[at])
        return LabelRequest(messages=question.messages, labels=question.labels)

    def _mean(self, readings: Sequence[LabelReading], completion: Completion) -> float:
        pairs = [
            (log_odds(reading, self._least_share), principle.weight)
            for reading, principle in zip(readings, self._principles, strict=True)
        ]
        valid = [(self._scaled(value), weight) for value, weight in pairs if value is not None]
        if not valid:
            why = readings[0].reason or "no finite reading"
            raise DataError(
                f"the judge has no valid answer ({why})",
                where=f"completion {completion.id}",
                remedy="see `rlaif audit`",
            )
        return sum(value * weight for value, weight in valid) / sum(weight for _, weight in valid)

    def _scaled(self, value: float) -> float:
        return value if self._scale == "log-odds" else sigmoid(value)


class RewardSum:
    """Σ weight · part; the parts are named, and each is reported before its weight. Parts of weight 0 are
    measured only.

    Raises:
        ConfigError: There is no part, or a weight is no finite number.
    """

    def __init__(self, parts: Mapping[str, tuple[float, RewardFunction]]) -> None:
        if not parts:
            raise ConfigError("there is nothing to reward", remedy="name at least one part under `reward`")
        for name, (weight, _) in parts.items():
            if not math.isfinite(weight):
                raise ConfigError(
                    f"the weight of the reward {name!r} is {weight}", remedy="give a finite number"
                )
        self._parts = dict(parts)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Scores:
        """The weighted sums, and every part.

        Raises:
            DataError: A sum is beyond `MOST_SCORE`.
        """
        scored = {name: reward(prompts, completions).total for name, (_, reward) in self._parts.items()}
        weights = {name: weight for name, (weight, _) in self._parts.items()}
        total = tuple(
            # What has no weight stays out, so that not even its rounding acts.
            sum(weights[name] * values[row] for name, values in scored.items() if weights[name])
            for row in range(len(completions))
        )
        _refuse_unlearnable("the weighted sum of the rewards is", total, completions, "use smaller weights")
        return Scores(total=total, parts=scored, weights=weights)
