"""A jury: several judges asked about the same comparisons, and their labels made one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

from rlaif.errors import DataError
from rlaif.judging.aggregate import TIE, LabelStatistics
from rlaif.judging.judge import Judge, Judged
from rlaif.labels import sigmoid
from rlaif.stats import cohen_kappa, krippendorff_alpha
from rlaif.types import Comparison

__all__ = ["Juror", "Jury", "JuryStatistics", "audit_weight", "contention", "jury_logit"]


def jury_logit(
    labels: Mapping[str, float | None], weights: Mapping[str, float], *, quorum: float
) -> float | None:
    """The log-odds of a jury's label: Σ w_j l_j / Σ w_j over the judges that have one.

    A mean of log-odds is the geometric mean of the odds (a logarithmic opinion pool; Genest & Zidek 1986): a
    judge that is sure counts for more than one that is not, and two that are sure of opposites cancel.

    Args:
        labels: Log-odds by judge (nats), `None` where it gave no valid label; a judge that was not asked is
            missing.
        weights: By judge, at least 0.
        quorum: Least share of the weight of those asked that must have a label.

    Returns:
        `None` where too few judges have one.
    """
    asked = math.fsum(weights[name] for name in labels)
    valid = {name: logit for name, logit in labels.items() if logit is not None and weights[name] > 0}
    total = math.fsum(weights[name] for name in valid)
    if not valid or total < quorum * asked:
        return None
    return math.fsum(weights[name] * logit for name, logit in valid.items()) / total


def contention(labels: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """How much a person's look at a comparison would tell, nats, 0 to ln 2: H(p̄) − mean H(p_j).

    The mutual information between the label and the judge that gives it (BALD: Houlsby et al. 2011,
    1112.5745, eq. 2): 0 where all judges say the same, even when they are all undecided, and most where each
    is sure of another side.
    """
    valid = {
        name: sigmoid(logit) for name, logit in labels.items() if logit is not None and weights[name] > 0
    }
    total = math.fsum(weights[name] for name in valid)
    if total <= 0:
        return 0.0
    mean = math.fsum(weights[name] * p for name, p in valid.items()) / total
    each = math.fsum(weights[name] * _entropy(p) for name, p in valid.items()) / total
    return max(0.0, _entropy(mean) - each)


def audit_weight(correct: float, rows: int) -> float:
    """The weight of a judge that an audit found right on `correct` of `rows` comparisons: log p / (1 − p)
    with p = (correct + 1) / (rows + 2), and 0 for one that is no better than a coin.

    Independent voters of known accuracy decide best with these weights (Nitzan & Paroush 1982); the added
    right and wrong answer (Laplace) keep a short audit without errors finite. Judges are not independent, and
    are already weighed by how sure they are: it is a rule of thumb.
    """
    p = (correct + 1) / (rows + 2)
    return max(0.0, math.log(p / (1 - p)))


def _entropy(p: float) -> float:
    return -math.fsum(x * math.log(x) for x in (p, 1 - p) if x > 0)


@dataclass(frozen=True)
class Juror:
    """One judge of a jury.

    Attributes:
        calibrate: What the log-odds of its labels go through.
        may_judge: Whether it is asked about a comparison; one that may not is recused.
    """

    name: str
    judge: Judge
    weight: float = 1.0
    calibrate: Callable[[float], float] = lambda logit: logit
    may_judge: Callable[[Comparison], bool] = lambda comparison: True


class Jury:
    """Asks every judge about every comparison that it may judge; `judge` is as that of `Judge`.

    The judges are asked by turns, a chunk of comparisons each, so that memory is bounded and all of them are
    in it at once.

    Args:
        quorum: See `jury_logit`.

    Raises:
        DataError: No judge has a weight above 0.
    """

    def __init__(self, jurors: Sequence[Juror], *, quorum: float) -> None:
        self._jurors = tuple(jurors)
        self._quorum = quorum
        self.weights = {each.name: each.weight for each in jurors}
        if not any(weight > 0 for weight in self.weights.values()):
            raise DataError("no judge of the jury has a weight above 0", remedy="give one of them a weight")

    def questions_about(self, comparison: Comparison) -> int:
        """How many questions `comparison` needs, of all judges together."""
        asked = [each for each in self._jurors if each.may_judge(comparison)]
        return sum(each.judge.questions_about(comparison) for each in asked)

    def judge(self, comparisons: Sequence[Comparison]) -> Iterator[Judged]:
        """Judge `comparisons`, in their order."""
        streams = [(each, each.judge.judge(filter(each.may_judge, comparisons))) for each in self._jurors]
        for comparison in comparisons:
            yield self._together(
                comparison,
                [(juror, next(stream)) for juror, stream in streams if juror.may_judge(comparison)],
            )

    def _together(self, comparison: Comparison, found: Sequence[tuple[Juror, Judged]]) -> Judged:
        labels = {
            juror.name: None if each.logit_a is None else juror.calibrate(each.logit_a)
            for juror, each in found
        }
        return Judged(
            comparison=comparison,
            verdicts=tuple(
                replace(verdict, judge=juror.name) for juror, each in found for verdict in each.verdicts
            ),
            logit_a=jury_logit(labels, self.weights, quorum=self._quorum) if labels else None,
            by_judge=labels,
        )


class PairOfJudges(NamedTuple):
    """How two judges agree on the comparisons that both decided.

    Attributes:
        agreement: Share on which they name the same side.
        chance: The same, if each kept its shares of sides but answered at random: the base rate.
        kappa: (agreement − chance) / (1 − chance); `None` where both only ever said one thing.
    """

    judges: tuple[str, str]
    rows: int
    agreement: float | None
    chance: float | None
    kappa: float | None


class JuryStatistics:
    """Counts each judge's labels, and how they agree."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = dict(weights)
        self.by_judge = {name: LabelStatistics() for name in weights}
        self.recused = dict.fromkeys(weights, 0)
        self.disagreed = 0
        self._labels: list[tuple[float | None, ...]] = []

    def add(self, judged: Judged) -> bool:
        """Count one comparison; whether the judges disagree on it: two of them decided for different
        sides."""
        for name, statistics in self.by_judge.items():
            if name not in judged.by_judge:
                self.recused[name] += 1
                continue
            own = [verdict for verdict in judged.verdicts if verdict.judge == name]
            statistics.add(own, judged.by_judge[name])
        self._labels.append(tuple(_probability(judged.by_judge.get(name)) for name in self.by_judge))
        sides = {side for p in self._labels[-1] if (side := _side(p)) is not None}
        self.disagreed += len(sides) > 1
        return len(sides) > 1

    def pairs(self) -> list[PairOfJudges]:
        """Agreement of every two judges."""
        return [
            self._pair(one, other, names)
            for (one, other), names in zip(
                combinations(range(len(self.by_judge)), 2), combinations(self.by_judge, 2), strict=True
            )
        ]

    def _pair(self, one: int, other: int, names: tuple[str, str]) -> PairOfJudges:
        sides = [(_side(row[one]), _side(row[other])) for row in self._labels]
        both = [(x, y) for x, y in sides if x is not None and y is not None]
        if not both:
            return PairOfJudges(names, 0, None, None, None)
        agreement = sum(x == y for x, y in both) / len(both)
        first, second = (sum(pair[i] for pair in both) / len(both) for i in (0, 1))
        kappa = cohen_kappa([x for x, _ in both], [y for _, y in both])
        return PairOfJudges(
            judges=names,
            rows=len(both),
            agreement=agreement,
            chance=first * second + (1 - first) * (1 - second),
            kappa=None if math.isnan(kappa) else kappa,
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        sides = [[_side(p) for p in row] for row in self._labels]
        alpha = krippendorff_alpha([[None if s is None else float(s) for s in row] for row in sides])
        return {
            "judges": {
                name: {
                    "weight": self.weights[name],
                    "recused": self.recused[name],
                    **{key: value for key, value in each.as_dict().items() if key != "principles"},
                }
                for name, each in self.by_judge.items()
            },
            "alpha": None if math.isnan(alpha) else alpha,
            "disagreed": self.disagreed,
            "pairs": [each._asdict() for each in self.pairs()],
        }


def _probability(logit: float | None) -> float | None:
    return None if logit is None else sigmoid(logit)


def _side(p: float | None) -> bool | None:
    """Whether `a` is preferred; `None` for a tie, and without a label."""
    return None if p is None or abs(p - 0.5) < TIE else p > 0.5
