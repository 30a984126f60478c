"""How often a judge prefers a policy's completions to the start policy's, of the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rlaif.judging.aggregate import TIE, LabelStatistics
from rlaif.judging.judge import Judge, Judged
from rlaif.labels import sigmoid
from rlaif.progress import Progress
from rlaif.results.evaluation import WinRate
from rlaif.stats import length_controlled_win_rate
from rlaif.text import count_of
from rlaif.types import Comparison, Completion, Prompt

__all__ = ["PolicyPair", "Judging", "Outcomes", "judge_duels", "judge_note", "telling", "win_rate"]

Judging = Callable[[Sequence[Comparison]], Iterable[Judged]]
"""Judges comparisons, in their order; `Judge.judge` is one. Both orders or none: the protocol sees to it."""


def telling(judge: Judge, progress: Progress) -> Judging:
    """`judge.judge` that begins a piece of work of its own, of as many questions as it may ask."""

    def judging(comparisons: Sequence[Comparison]) -> Iterable[Judged]:
        if comparisons:
            total = sum(map(judge.questions_about, comparisons))
            progress.begin(f"judging {count_of(len(comparisons), 'comparison')}", total)
        return judge.judge(comparisons)

    return judging


MANY = 0.05
"""Share of invalid pairs above which the reader is told."""


class PolicyPair(NamedTuple):
    """A policy's completion and the start policy's, of one prompt and with one number."""

    prompt: Prompt
    ours: Completion
    start: Completion


@dataclass(frozen=True)
class Outcomes:
    """What became of each duel.

    Attributes:
        values: 1 where the policy won, ½ for a tie, 0; `None` where no verdict was valid or nobody was asked.
        identical: Duels of one and the same text: ties without a question.
        statistics: Of the others' verdicts.
    """

    values: tuple[float | None, ...]
    identical: int
    statistics: LabelStatistics


def judge_duels(duels: Sequence[PolicyPair], judge: Judging, *, limit: int | None = None) -> Outcomes:
    """Ask `judge` about the duels whose number is below `limit`; the policy's completion is `a`."""
    values: list[float | None] = [None] * len(duels)
    places = [row for row, duel in enumerate(duels) if limit is None or duel.ours.index < limit]
    asked = [row for row in places if duels[row].ours.text.strip() != duels[row].start.text.strip()]
    for row in set(places) - set(asked):
        values[row] = 0.5
    statistics, beyond = LabelStatistics(), 1 + max((duel.start.index for duel in duels), default=0)
    comparisons = [_comparison(duels[row], beyond) for row in asked]
    for row, each in zip(asked, judge(comparisons), strict=True):
        statistics.add(each.verdicts, each.logit_a)
        values[row] = _outcome(each.logit_a)
    return Outcomes(values=tuple(values), identical=len(places) - len(asked), statistics=statistics)


def win_rate(duels: Sequence[PolicyPair], outcomes: Outcomes, *, resamples: int, seed: int) -> WinRate:
    """The rates, with intervals by prompt; invalid verdicts are counted and left out."""
    valid = [(duel, value) for duel, value in zip(duels, outcomes.values, strict=True) if value is not None]
    wins, found = [value for _, value in valid], None
    if len({duel.prompt.id for duel, _ in valid}) > 1:
        found = length_controlled_win_rate(
            wins,
            [len(duel.ours.text) for duel, _ in valid],
            [len(duel.start.text) for duel, _ in valid],
            [duel.prompt.id for duel, _ in valid],
            resamples=resamples,
            seed=seed,
        )
    total = outcomes.statistics.total
    return WinRate(
        compared=outcomes.statistics.comparisons + outcomes.identical,
        wins=wins.count(1.0),
        losses=wins.count(0.0),
        ties=wins.count(0.5),
        identical=outcomes.identical,
        invalid=outcomes.statistics.unlabelled,
        invalid_reasons=dict(sorted(total.reasons.items())),
        flip_rate=total.flips / total.both_orders if total.both_orders else None,
        rate=found.raw if found else None,
        length_controlled=found.win_rate if found else None,
        length_effect=found.length_effect if found else None,
    )


def judge_note(name: str, win: WinRate) -> list[str]:
    """A line, if the reader should know that many pairs are missing from policy `name`'s rates."""
    if win.invalid <= MANY * win.compared:
        return []
    reasons = ", ".join(f"{reason} {count}" for reason, count in win.invalid_reasons.items())
    return [
        f"{win.invalid} of {win.compared} pairs of {name} have no valid verdict ({reasons}) and are left out "
        "of its win rate"
    ]


def _comparison(duel: PolicyPair, beyond: int) -> Comparison:
    """The policy's number goes on after the start policy's, so that no two completions have one id."""
    index = duel.ours.index + beyond
    return Comparison(
        prompt=duel.prompt, a=replace(duel.ours, index=index, id=f"{duel.prompt.id}/{index}"), b=duel.start
    )


def _outcome(logit: float | None) -> float | None:
    if logit is None:
        return None
    p = sigmoid(logit)
    return 0.5 if abs(p - 0.5) < TIE else float(p > 0.5)
