"""What can be known of a judge without a single human label: its habits."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from rlaif import stats
from rlaif.audit.cases import Case
from rlaif.judging.aggregate import LabelStatistics
from rlaif.labels import sigmoid
from rlaif.types import Completion, Order, Verdict

__all__ = ["Bias", "habits", "shares"]

RESAMPLES = 500
"""Bootstrap resamples of a rate; comparisons are drawn whole."""


@dataclass(frozen=True, slots=True)
class Bias:
    """Habits of a judge on a set of comparisons. A rate carries its 95 % interval; `None` where nothing was
    counted.

    Attributes:
        flip_rate: Share of (comparison, principle) whose two orders name different winners (pairwise).
        first_rate: Share of verdicts for the completion shown first; ½ is unbiased (pairwise).
        longer_rate: Share of labels for the longer completion; set it against people's in
            `human_longer_rate`.
        length_correlation: Spearman's, between the label's log-odds and the difference in length.
        own_rate: Share of labels for the judge's own completion against another policy's; ½ is unbiased if
            both are as good.
        agreement: Krippendorff's alpha between principles on the winner; 1 is full agreement, 0 chance.
        agreement_interval: The same on P(a), squared distance.
        label_mass: Mean probability of the two labels together: low means that the judge wants to say
            something else.
        invalid_rate: Invalid verdicts over all.
        tie_rate: Share of labels that say nothing in either direction.
    """

    flip_rate: stats.Estimate | None
    first_rate: stats.Estimate | None
    longer_rate: stats.Estimate | None
    human_longer_rate: stats.Estimate | None
    length_correlation: float | None
    own_rate: stats.Estimate | None
    own_rows: int
    agreement: float | None
    agreement_interval: float | None
    label_mass: float | None
    invalid_rate: float
    invalid_reasons: dict[str, int]
    tie_rate: float | None


def habits(cases: Sequence[Case], *, own: str) -> Bias:
    """Measure the habits of a judge.

    Args:
        own: Name of the policy that is the judge's own model, for self-preference.
    """
    counted = LabelStatistics()
    for case in cases:
        counted.add(case.verdicts, case.logit_a)
    own_choices = [chosen for case in cases if (chosen := _chose_own(case, own)) is not None]
    return Bias(
        flip_rate=shares(*_flips(cases)),
        first_rate=shares(*_firsts(cases)),
        longer_rate=_proportion(
            [choice for case in cases if (choice := _chose_longer(case, case.logit_a)) is not None]
        ),
        human_longer_rate=_proportion(
            [choice for case in cases if (choice := _people_chose_longer(case)) is not None]
        ),
        length_correlation=_length_correlation(cases),
        own_rate=_proportion(own_choices),
        own_rows=len(own_choices),
        agreement=_alpha(cases, nominal=True),
        agreement_interval=_alpha(cases, nominal=False),
        label_mass=_label_mass(cases),
        invalid_rate=counted.invalid_rate,
        invalid_reasons=dict(sorted(counted.total.reasons.items())),
        tie_rate=counted.ties / counted.labelled if counted.labelled else None,
    )


def shares(
    values: Sequence[bool], groups: Sequence[Hashable], *, resamples: int = RESAMPLES
) -> stats.Estimate | None:
    """The share of True with a bootstrap interval over whole groups; one group alone leaves it open from 0 to
    1."""
    if not values:
        return None
    if len(set(groups)) < 2:
        return stats.Estimate(value=sum(values) / len(values), low=0.0, high=1.0)
    return stats.bootstrap_mean([float(value) for value in values], groups, resamples=resamples)


def _proportion(choices: Sequence[float]) -> stats.Estimate | None:
    return stats.wilson(math.fsum(choices), len(choices)) if choices else None


def _flips(cases: Sequence[Case]) -> tuple[list[bool], list[str]]:
    """Of each comparison and principle judged in both orders, whether the winner changed; and which
    comparison it was."""
    flips, comparisons = [], []
    for case in cases:
        orders: dict[str, list[float]] = {}
        for verdict in case.verdicts:
            if verdict.logit_a is not None and verdict.order is not Order.ALONE:
                orders.setdefault(verdict.principle_id, []).append(verdict.logit_a)
        for logits in orders.values():
            if len(logits) == 2:
                flips.append(logits[0] * logits[1] < 0)
                comparisons.append(case.pair.comparison.id)
    return flips, comparisons


def _firsts(cases: Sequence[Case]) -> tuple[list[bool], list[str]]:
    ordered = [
        (verdict, case.pair.comparison.id)
        for case in cases
        for verdict in case.verdicts
        if verdict.logit_a and verdict.order is not Order.ALONE
    ]
    return [_for_first(verdict) for verdict, _ in ordered], [id for _, id in ordered]


def _for_first(verdict: Verdict) -> bool:
    assert verdict.logit_a is not None
    return (verdict.logit_a > 0) == (verdict.order is Order.AB)


def _chose_longer(case: Case, logit: float | None) -> float | None:
    """Whether the label is for the longer completion; `None` where there is no label or no longer one."""
    difference = case.pair.length_difference
    return None if not logit or not difference else float((logit > 0) == (difference > 0))


def _people_chose_longer(case: Case) -> float | None:
    won, difference = case.pair.a_wins, case.pair.length_difference
    return None if won is None or not difference else won if difference > 0 else 1 - won


def _chose_own(case: Case, own: str) -> float | None:
    """Whether the label is for the completion of `own`; `None` unless exactly one of the two is its."""
    a, b = (_model(each) == own for each in (case.pair.comparison.a, case.pair.comparison.b))
    return None if a == b or not case.logit_a else float((case.logit_a > 0) == a)


def _model(completion: Completion) -> str:
    return completion.model.partition("@")[0]


def _length_correlation(cases: Sequence[Case]) -> float | None:
    rows = [(case.logit_a, case.pair.length_difference) for case in cases if case.logit_a is not None]
    if len(rows) < 3:
        return None
    logits, lengths = (_ranks(column) for column in zip(*rows, strict=True))
    if not (logits.std() and lengths.std()):
        return None
    return float(np.corrcoef(logits, lengths)[0, 1])


def _ranks(values: Sequence[float]) -> stats.Floats:
    """Ranks, those of equal values averaged."""
    _, place, counts = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], dtype=np.float64)


def _alpha(cases: Sequence[Case], *, nominal: bool) -> float | None:
    units = [[_rating(logit, nominal) for logit in case.by_principle.values()] for case in cases]
    alpha = stats.krippendorff_alpha(units, level="nominal" if nominal else "interval")
    return None if math.isnan(alpha) else alpha


def _rating(logit: float | None, nominal: bool) -> float | None:
    if logit is None:
        return None
    return float(logit > 0) if nominal else sigmoid(logit)


def _label_mass(cases: Sequence[Case]) -> float | None:
    """Mean over questions of P(first label) + P(second label), from the evidence of the verdicts."""
    masses = []
    for case in cases:
        for verdict in case.verdicts:
            for prefix in ("", "a_", "b_"):
                pair = [verdict.evidence.get(f"{prefix}{name}") for name in ("first", "second")]
                if None not in pair:
                    masses.append(math.fsum(math.exp(value) for value in pair if value is not None))
    return math.fsum(masses) / len(masses) if masses else None
