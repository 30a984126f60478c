"""From verdicts to one soft label, and from many labels to what a reader should know of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rlaif.labels import sigmoid
from rlaif.shares import ClusteredShare
from rlaif.types import Order, Verdict

__all__ = ["TIE", "LabelStatistics", "PrincipleStatistics", "combine", "label_shares", "principle_logit"]

TIE = 0.005
"""A label within this of 0.5 says nothing in either direction: it is counted as a tie (and kept, with its
soft value)."""


def label_shares(evidence: Mapping[str, float]) -> list[float]:
    """The probability that the labels held together, for each reading behind a verdict (two where
    completions are read alone; the mean of several where they are read in a list)."""
    if "share" in evidence:
        return [evidence["share"]]
    pairs = [(evidence.get(f"{prefix}first"), evidence.get(f"{prefix}second")) for prefix in ("", "a_", "b_")]
    return [
        min(1.0, math.exp(one) + math.exp(other))
        for one, other in pairs
        if one is not None and other is not None
    ]


def principle_logit(verdicts: Sequence[Verdict]) -> float | None:
    """Mean log-odds of one principle's verdicts on one comparison; `None` when any of them is invalid.

    Both orders or none: a single order would carry the judge's position bias into the label, which the mean
    of the two cancels.
    """
    logits = [verdict.logit_a for verdict in verdicts]
    if not logits or any(logit is None for logit in logits):
        return None
    return math.fsum(logit for logit in logits if logit is not None) / len(logits)


def combine(verdicts: Sequence[Verdict], weights: Mapping[str, float]) -> float | None:
    """The label's log-odds: the mean over principles, weighted, of `principle_logit`; `None` when no
    principle is valid.

    Args:
        verdicts: All verdicts on one comparison.
        weights: Weight by principle id.
    """
    by_principle: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_principle[verdict.principle_id].append(verdict)
    logits = {name: principle_logit(group) for name, group in by_principle.items()}
    valid = {name: logit for name, logit in logits.items() if logit is not None}
    total = math.fsum(weights[name] for name in valid)
    if not valid or total <= 0:
        return None
    return math.fsum(weights[name] * logit for name, logit in valid.items()) / total


@dataclass
class PrincipleStatistics:
    """Counts of one principle's verdicts (or of all, for the total)."""

    verdicts: int = 0
    invalid: int = 0
    both_orders: int = 0
    flips: int = 0
    first: int = 0
    ordered: int = 0
    judged: int = 0
    strength: float = 0.0
    readings: int = 0
    share: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, verdicts: Sequence[Verdict]) -> None:
        """Count the verdicts of one comparison under one principle."""
        self.verdicts += len(verdicts)
        for verdict in verdicts:
            shares = label_shares(verdict.evidence)
            self.readings += len(shares)
            self.share += math.fsum(shares)
            if verdict.logit_a is None:
                self.invalid += 1
                self.reasons[verdict.reason] += 1
            elif verdict.order is not Order.ALONE:
                self.ordered += 1
                self.first += (verdict.logit_a > 0) == (verdict.order is Order.AB)
        logit = principle_logit(verdicts)
        if logit is None:
            return
        self.judged += 1
        self.strength += abs(sigmoid(logit) - 0.5)
        if len(verdicts) == 2:
            self.both_orders += 1
            self.flips += (verdicts[0].logit_a or 0.0) * (verdicts[1].logit_a or 0.0) < 0

    def as_dict(self) -> dict[str, float | int | None]:
        """Counts and rates; a rate is `None` where nothing was counted."""
        return {
            "verdicts": self.verdicts,
            "invalid": self.invalid,
            "judged": self.judged,
            "flip_rate": _rate(self.flips, self.both_orders),
            "first_rate": _rate(self.first, self.ordered),
            "mean_strength": _rate(self.strength, self.judged),
            "mean_label_share": _rate(self.share, self.readings),
        }


@dataclass
class LabelStatistics:
    """What a label run should tell: totals, and the same by principle; the criteria of rubrics, which are
    other ones for each prompt, by kind and by tag.

    `flip_rate`: share of (comparison, principle) whose two orders name different winners. `first_rate`: share
    of ordered verdicts for the completion shown first (0.5 is unbiased). `tie_rate`: share of labels within
    `TIE` of 0.5. `mean_strength`: mean of |p − 0.5| (0 says nothing, 0.5 is certain). `mean_label_share`:
    mean probability that the two labels held together (1: the judge was about to write nothing else).

    Attributes:
        clusters: Flips, ties and invalid verdicts by prompt, as sums that an interval can be made of.
    """

    comparisons: int = 0
    labelled: int = 0
    unlabelled: int = 0
    ties: int = 0
    strength: float = 0.0
    total: PrincipleStatistics = field(default_factory=PrincipleStatistics)
    principles: dict[str, PrincipleStatistics] = field(default_factory=dict)
    clusters: dict[str, ClusteredShare] = field(default_factory=dict)
    _prompt: str | None = None
    _counted: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, verdicts: Sequence[Verdict], logit_a: float | None, *, prompt: str | None = None) -> None:
        """Count one comparison's verdicts and the label they gave.

        Args:
            prompt: Id of its prompt. Comparisons of one prompt follow each other.
        """
        if prompt is not None and prompt != self._prompt:
            self._close()
            self._prompt, self._counted = prompt, self._counts()
        by_question: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
        for verdict in verdicts:
            by_question[verdict.judge, verdict.principle_id].append(verdict)
        for (_, name), group in by_question.items():
            for counted in group[0].groups or (name,):
                self.principles.setdefault(counted, PrincipleStatistics()).add(group)
            self.total.add(group)
        self.comparisons += 1
        if logit_a is None:
            self.unlabelled += 1
            return
        self.labelled += 1
        distance = abs(sigmoid(logit_a) - 0.5)
        self.ties += distance < TIE
        self.strength += distance

    def _counts(self) -> dict[str, tuple[int, int]]:
        """How many of how many, so far."""
        total = self.total
        return {
            "flips": (total.flips, total.both_orders),
            "ties": (self.ties, self.labelled),
            "invalid": (total.invalid, total.verdicts),
        }

    def _close(self) -> None:
        """The prompt that was counted last is a cluster."""
        if self._prompt is None:
            return
        for name, now in self._counts().items():
            successes, trials = (each - before for each, before in zip(now, self._counted[name], strict=True))
            self.clusters.setdefault(name, ClusteredShare()).add(successes, trials)
        self._prompt = None

    @property
    def invalid_rate(self) -> float:
        """Invalid verdicts over all verdicts; 0 when there are none."""
        return self.total.invalid / self.total.verdicts if self.total.verdicts else 0.0

    def as_dict(self) -> dict[str, object]:
        """Everything as JSON values; `clusters` where prompts were told."""
        self._close()
        clusters = {name: asdict(each) for name, each in self.clusters.items()}
        return {
            "comparisons": self.comparisons,
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            **self.total.as_dict(),
            "tie_rate": _rate(self.ties, self.labelled),
            "mean_strength": _rate(self.strength, self.labelled),
            "invalid_reasons": dict(sorted(self.total.reasons.items())),
            "principles": {name: stats.as_dict() for name, stats in sorted(self.principles.items())},
            **({"clusters": clusters} if clusters else {}),
        }


def _rate(part: float, whole: int) -> float | None:
    return part / whole if whole else None
