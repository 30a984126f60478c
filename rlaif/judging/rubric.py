"""The protocol `rubric`: a prompt's own criteria, each a question about one completion (Gunjal et al. 2025,
Rubrics as Rewards, arXiv 2507.17746, §2.2, "explicit aggregation"; Arora et al. 2025, HealthBench, arXiv
2505.08775).

The judge is asked whether a criterion is true of a completion. Where the papers add up yes and no, the
*score* of a completion takes the probability p of yes:

- `mean`: Σ points·p over the sum of the points above 0, as HealthBench has it: points below 0 are taken away,
  and a score can be below 0 (HealthBench clips the mean over all prompts, not each score, and so do we not).
  Where no criterion has points above 0, nothing can be won: 1 − Σ |points|·p / Σ |points|;
- `min`: the least probability of any criterion to be as wanted (true for a must or points above 0, not true
  for points below 0);
- `all-pass`: the probability that all are as wanted, taken as independent: the product.

A `must` that is not true makes the score 0: what was won is multiplied by the product of the musts' p (points
taken away stay so). A rubric of musts alone scores that product.

For a *label*, the score is told as log-odds. The points at stake are those of all criteria; kept are those of
wanted criteria that are true and of unwanted ones that are not. The share T that a completion keeps is the
`mean` score, moved and stretched to lie between 0 and 1, and P(a is better) = σ(logit T_a − logit T_b), as in
a Bradley–Terry model. So a rubric of one criterion labels as its pointwise question would, no scale has to be
chosen, and exchanging the completions turns the sign. Everything is computed on logarithms of p and of 1 − p,
so that a judge that is sure of much still tells two completions apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

from rlaif.engines.base import LEAST_SHARE, LabelReading, LabelRequest
from rlaif.errors import DataError
from rlaif.judging.aggregate import combine
from rlaif.judging.protocols import WAYS, ByWays, Pointwise, Ways, log_odds
from rlaif.labels import sigmoid
from rlaif.prompts import PromptLibrary
from rlaif.types import Comparison, Completion, Criterion, Principle, Prompt, Verdict

__all__ = ["Aggregate", "Rubric", "held_of", "no_rubric", "rubric_log_odds", "rubric_request", "rubric_score"]

Aggregate = Literal["mean", "min", "all-pass"]


class _Log(NamedTuple):
    """log p and log(1 − p) of a probability: neither is lost where the other is near 1."""

    p: float
    rest: float

    @classmethod
    def of(cls, log_odds: float) -> _Log:
        return cls(-_softplus(-log_odds), -_softplus(log_odds))

    def both(self, other: _Log) -> _Log:
        """Of the product of two probabilities: 1 − pq = (1 − p) + p(1 − q)."""
        return _Log(self.p + other.p, _log_sum([self.rest, self.p + other.rest]))

    @property
    def log_odds(self) -> float:
        return self.p - self.rest


CERTAIN = _Log(0.0, -math.inf)
"""Probability 1: what nothing was multiplied into yet."""


def rubric_score(
    rubric: Sequence[Criterion], held: Mapping[str, float], aggregate: Aggregate = "mean"
) -> float | None:
    """The score of a completion, at most 1; see the module.

    Args:
        rubric: The criteria.
        held: Log-odds (nats) that a criterion is true of the completion, by its id; one that is missing is
            left out, and its points with it.

    Returns:
        `None` where a must is missing, or everything is.
    """
    known = _known(rubric, held)
    if known is None:
        return None
    gate = math.exp(_all([_Log.of(held[each.id]) for each in known if each.must]).p)
    rated = [each for each in known if not each.must]
    if aggregate != "mean" or not rated:
        return sigmoid(_share(known, held, aggregate).log_odds)
    possible = math.fsum(each.points for each in rated if each.wanted)
    won = math.fsum(each.points * sigmoid(held[each.id]) for each in rated)
    score = won / possible if possible else 1.0 + won / math.fsum(-each.points for each in rated)
    return gate * max(score, 0.0) + min(score, 0.0)


def rubric_log_odds(
    rubric: Sequence[Criterion], held: Mapping[str, float], aggregate: Aggregate = "mean"
) -> float | None:
    """Log-odds (nats) of the share of the points at stake that a completion keeps; arguments and `None` as
    for `rubric_score`."""
    known = _known(rubric, held)
    return None if known is None else _share(known, held, aggregate).log_odds


def _known(rubric: Sequence[Criterion], held: Mapping[str, float]) -> list[Criterion] | None:
    """The criteria that were answered; `None` where that is too little."""
    known = [each for each in rubric if each.id in held]
    return known if known and all(each.id in held for each in rubric if each.must) else None


def _share(known: Sequence[Criterion], held: Mapping[str, float], aggregate: Aggregate) -> _Log:
    good = [_Log.of(held[each.id] if each.wanted else -held[each.id]) for each in known]
    if aggregate == "all-pass":
        return _all(good)
    if aggregate == "min":
        return min(good, key=lambda each: each.log_odds)
    musts = _all([each for each, criterion in zip(good, known, strict=True) if criterion.must])
    rated = [
        (each, abs(criterion.points))
        for each, criterion in zip(good, known, strict=True)
        if not criterion.must
    ]
    if not rated:
        return musts
    whole = math.log(math.fsum(points for _, points in rated))
    kept = _Log(
        _log_sum([math.log(points) + each.p for each, points in rated]) - whole,
        _log_sum([math.log(points) + each.rest for each, points in rated]) - whole,
    )
    return kept.both(musts)


def _all(shares: Sequence[_Log]) -> _Log:
    product = CERTAIN
    for each in shares:
        product = product.both(each)
    return product


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    if most == -math.inf:
        return most
    return most + math.log(math.fsum(math.exp(value - most) for value in values))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def rubric_request(
    library: PromptLibrary, prompt: Prompt, completion: Completion, criterion: Criterion
) -> LabelRequest:
    """Asks whether `criterion` is true of `completion`; labels: it is, it is not."""
    asked = library.judge_rubric(prompt, completion, criterion)
    return LabelRequest(messages=asked.messages, labels=asked.labels)


class Rubric(ByWays):
    """The criteria of the prompt, each completion alone; beside them the constitution's questions, where they
    have a weight.

    Args:
        ways: How scores are made of criteria, how much the constitution weighs beside a rubric (that weighs
            1), and whether a prompt without a rubric is asked the constitution's questions alone.
    """

    name = "rubric"
    half = None
    template = "judge_rubric"
    also: ClassVar[tuple[str, ...]] = (Pointwise.template,)
    needs = "rubric"

    def __init__(
        self, library: PromptLibrary, *, ways: Ways = WAYS, least_share: float = LEAST_SHARE
    ) -> None:
        self._library = library
        self._ways = ways
        self._least_share = least_share
        self._pointwise = Pointwise(library, least_share=least_share)
        self.beside = ways.constitution_weight > 0
        if self.beside or ways.plain:
            self.half = "question"

    def criteria(self, prompt: Prompt) -> tuple[Principle, ...]:
        """See `JudgingProtocol`.

        Raises:
            DataError: The prompt has no rubric, and must have one.
        """
        if not prompt.rubric and not self._ways.plain:
            raise no_rubric(prompt)
        return tuple(
            Principle(id=each.id, question=each.text, weight=abs(each.points) or 1.0, tags=each.tags)
            for each in prompt.rubric
        )

    def questions(self, comparison: Comparison, principle: Principle) -> tuple[LabelRequest, ...]:
        """The criterion about `a`, and about `b`; the question of a principle of the constitution."""
        criterion = _by_id(comparison.prompt).get(principle.id)
        if criterion is None:
            return self._pointwise.questions(comparison, principle)
        return tuple(
            rubric_request(self._library, comparison.prompt, each, criterion)
            for each in (comparison.a, comparison.b)
        )

    def verdicts(
        self, comparison: Comparison, principle: Principle, readings: Sequence[LabelReading]
    ) -> tuple[Verdict, ...]:
        """One verdict: the difference of the two log-odds that the criterion is as wanted."""
        (found,) = self._pointwise.verdicts(comparison, principle, readings)
        criterion = _by_id(comparison.prompt).get(principle.id)
        return (found,) if criterion is None else (_told(found, criterion),)

    def label(
        self, comparison: Comparison, verdicts: Sequence[Verdict], weights: Mapping[str, float]
    ) -> float | None:
        """The difference of what both completions keep of the points; with the constitution beside it, the
        weighted mean of both labels, or the one that there is."""
        rubric = comparison.prompt.rubric
        own = [each for each in verdicts if each.principle_id in _by_id(comparison.prompt)]
        others = [each for each in verdicts if each.principle_id in weights]
        ruled = combine(others, weights) if others else None
        kept = [rubric_log_odds(rubric, _held(own, side), self._ways.aggregate) for side in ("a_", "b_")]
        if not rubric:
            return ruled
        if kept[0] is None or kept[1] is None:
            return None
        scored, weight = kept[0] - kept[1], self._ways.constitution_weight
        return scored if ruled is None else (scored + weight * ruled) / (1.0 + weight)


def no_rubric(prompt: Prompt) -> DataError:
    """The error about a prompt that a rubric was to be read of."""
    return DataError(
        "the prompt has no rubric to judge its completions by",
        where=f"prompt {prompt.id}",
        remedy="give its row a `rubric` (`rlaif rubric generate` drafts them), or choose another protocol",
    )


def _by_id(prompt: Prompt) -> dict[str, Criterion]:
    return {each.id: each for each in prompt.rubric}


def _told(verdict: Verdict, criterion: Criterion) -> Verdict:
    """The verdict with the sign of its criterion, counted by kind and by tag."""
    kind = "must" if criterion.must else "points" if criterion.wanted else "points below 0"
    groups = (f"rubric: {kind}", *(f"tag: {tag}" for tag in dict.fromkeys(criterion.tags)))
    logit = verdict.logit_a
    return Verdict(
        comparison_id=verdict.comparison_id,
        principle_id=verdict.principle_id,
        order=verdict.order,
        logit_a=logit if logit is None or criterion.wanted else -logit,
        reason=verdict.reason,
        evidence=verdict.evidence,
        groups=groups,
    )


def _held(verdicts: Sequence[Verdict], side: str) -> dict[str, float]:
    """Log-odds that each criterion is true of the completion of one side, where the verdict on both is
    valid."""
    return {
        each.principle_id: each.evidence[f"{side}first"] - each.evidence[f"{side}second"]
        for each in verdicts
        if each.valid
    }


def held_of(
    rubric: Sequence[Criterion], readings: Sequence[LabelReading], least_share: float = LEAST_SHARE
) -> dict[str, float]:
    """Log-odds that each criterion is true, by its id, of those with a valid reading."""
    found = {
        criterion.id: log_odds(reading, least_share)
        for criterion, reading in zip(rubric, readings, strict=True)
    }
    return {id: value for id, value in found.items() if value is not None}
