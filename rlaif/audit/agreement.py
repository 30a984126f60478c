"""How far a judge agrees with people: accuracy, kappa and calibration, next to rules that read nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rlaif import stats
from rlaif.audit.cases import Case, Pair
from rlaif.labels import sigmoid

__all__ = ["Agreement", "Baselines", "agreement", "baselines", "one_order_accuracy", "one_principle_accuracy"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge against people, on the pairs that both have decided.

    Attributes:
        rows: Pairs with a label.
        unlabelled: Pairs without one, as no verdict was valid: they are in no figure.
        accuracy: Share of labels on people's side, a tie counted half, with its 95 % Wilson interval.
        kappa: Cohen's, ties left out; 0 is chance. NaN where it is undefined.
        ece: Expected calibration error of P(a is better), 0 to 1.
        nll: Mean negative log-likelihood of human labels, nats; 0.693 says nothing.
        reliability: Confidence against accuracy, a bin each.
    """

    rows: int
    unlabelled: int
    accuracy: stats.Estimate
    kappa: float
    ece: float
    nll: float
    reliability: tuple[stats.ReliabilityBin, ...]


class Baselines(NamedTuple):
    """Accuracy of rules that do not read what is written."""

    longer: stats.Estimate
    shorter: stats.Estimate
    first: stats.Estimate
    """About a half by construction: half of the pairs are turned (`turn_half`)."""

    def best(self) -> tuple[str, stats.Estimate]:
        """The name and the accuracy of the best of them."""
        name = max(self._fields, key=lambda each: getattr(self, each).value)
        return f"always-{name}", getattr(self, name)


def agreement(logits: Sequence[float | None], a_wins: Sequence[float]) -> Agreement | None:
    """Compare log-odds of `a` with human labels; `None` when no row has a label."""
    rows = [(logit, won) for logit, won in zip(logits, a_wins, strict=True) if logit is not None]
    if not rows:
        return None
    calibration = stats.calibration([sigmoid(logit) for logit, _ in rows], [won for _, won in rows])
    decided = [(logit > 0, won > 0.5) for logit, won in rows if logit]
    return Agreement(
        rows=len(rows),
        unlabelled=len(logits) - len(rows),
        accuracy=stats.wilson(math.fsum(credit(logit, won) for logit, won in rows), len(rows)),
        kappa=stats.cohen_kappa([ours for ours, _ in decided], [theirs for _, theirs in decided])
        if decided
        else math.nan,
        ece=calibration.ece,
        nll=math.fsum(loss(logit, won) for logit, won in rows) / len(rows),
        reliability=calibration.bins,
    )


def credit(logit: float, a_won: float) -> float:
    """1 for the human label, 0 for the other, ½ for neither."""
    if logit == 0:
        return 0.5
    return a_won if logit > 0 else 1 - a_won


def loss(logit: float, a_won: float) -> float:
    """Negative log-likelihood of the human label under P(a) = sigmoid(logit), nats: log(1 + e^logit) − a_won
    · logit."""
    return max(logit, 0.0) + math.log1p(math.exp(-abs(logit))) - a_won * logit


def baselines(pairs: Sequence[Pair]) -> Baselines:
    """Always the longer, always the shorter, always the first; equal lengths count half. All pairs carry
    human labels."""
    rows = [(pair.length_difference, pair.a_wins) for pair in pairs if pair.a_wins is not None]
    longer = math.fsum(credit(difference, won) for difference, won in rows)
    return Baselines(
        longer=stats.wilson(longer, len(rows)),
        shorter=stats.wilson(len(rows) - longer, len(rows)),
        first=stats.wilson(math.fsum(won for _, won in rows), len(rows)),
    )


def one_order_accuracy(cases: Sequence[Case]) -> float | None:
    """Mean accuracy of the single verdicts: what asking in one order alone would give (pairwise)."""
    credits = [
        credit(verdict.logit_a, case.pair.a_wins)
        for case in cases
        for verdict in case.verdicts
        if verdict.logit_a is not None and case.pair.a_wins is not None
    ]
    return math.fsum(credits) / len(credits) if credits else None


def one_principle_accuracy(cases: Sequence[Case]) -> float | None:
    """Mean accuracy of single principles: what drawing one per comparison would give (`principles: sample`,
    equal weights)."""
    credits = [
        credit(logit, case.pair.a_wins)
        for case in cases
        for logit in case.by_principle.values()
        if logit is not None and case.pair.a_wins is not None
    ]
    return math.fsum(credits) / len(credits) if credits else None
