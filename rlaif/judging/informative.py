"""Labels that say nothing: one definition, for the sentence under the table of a label stage, for the notes
of a run, and for the stages that refuse to learn from such labels.

Three shares are looked at.

*Ties*, labels within `aggregate.TIE` of one half. A reward model that learns ties learns ln 2, whatever its
accuracy on them; where 95 % are ties, what is left is less than the errors of any judge.

*Flips*, among the questions that were asked in both orders and answered in both: a judge that does not read
the texts flips in half of them when it draws lots, and in all of them when it always names one position.
Above half, position decides more often than the text does. That alone is no verdict: the mean of the two
orders cancels the position, and Lee et al. (2023, arXiv 2309.00267) report 56 % for PaLM 2 XS. Above three
quarters the labels count as saying nothing, unless an audit has found the judge better than that: accuracy on
pairs with a known answer goes before flips, as in `rlaif.audit.grade`.

*Invalid verdicts*: where more than half of them are, the labels are about the questions that the judge
happened to answer.
"""

from __future__ import annotations

from typing import NamedTuple

from rlaif.judging.aggregate import TIE

__all__ = ["ADVICE", "Doubt", "LabelFacts", "doubts"]

MOST_TIES = 0.95
HALF_FLIP = 0.5
MOST_FLIPS = 0.75
MOST_INVALID = 0.5
PROVEN = ("trust", "use with care")
"""Grades of an audit that go before flips."""
ADVICE = "do not train on these"
"""What the words of a grave doubt end with."""


class LabelFacts(NamedTuple):
    """What is counted of a set of labels; `None` where nothing was to be counted.

    Attributes:
        tie_rate: Of the labels.
        flip_rate: Of the questions with a valid answer in both orders.
        invalid_rate: Of the verdicts.
        grade: Of the judge, by its audit; empty where that is not known, or not the same for all.
    """

    tie_rate: float | None = None
    flip_rate: float | None = None
    invalid_rate: float | None = None
    grade: str = ""


class Doubt(NamedTuple):
    """A sentence about labels; `grave` where they say nothing."""

    words: str
    grave: bool


def doubts(facts: LabelFacts) -> list[Doubt]:
    """What must be known of labels before one trains on them, the grave first; nothing where all is well."""
    found = []
    ties, flips, invalid = facts.tie_rate or 0.0, facts.flip_rate or 0.0, facts.invalid_rate or 0.0
    if ties >= MOST_TIES:
        words = f"{_percent(ties)} of the labels are ties (within {TIE:g} of one half)"
        found.append(Doubt(f"{words}: they prefer neither side; {ADVICE}", True))
    if flips > HALF_FLIP:
        found.append(_flips(flips, proven=facts.grade in PROVEN))
    if invalid > MOST_INVALID:
        words = f"{_percent(invalid)} of the verdicts are invalid"
        found.append(Doubt(f"{words}: the judge did not answer what it was asked; {ADVICE}", True))
    return sorted(found, key=lambda doubt: not doubt.grave)


def _flips(rate: float, *, proven: bool) -> Doubt:
    told = f"the two orders disagree on {_percent(rate)} of questions"
    if rate > MOST_FLIPS and not proven:
        return Doubt(f"{told}: position decides, not the text; {ADVICE}", True)
    return Doubt(f"{told}: position decides more often than the text (see `rlaif audit`)", False)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
