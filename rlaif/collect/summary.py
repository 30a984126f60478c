"""What a session came to: counts, agreement with the judge, and agreement between annotators."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlaif import stats
from rlaif.audit.agreement import agreement
from rlaif.collect.labels_file import Click
from rlaif.collect.session import Session
from rlaif.labels import log_odds_of
from rlaif.text import count_of, one_line

__all__ = ["JudgeAgreement", "between_annotators", "summary", "with_judge"]

LEAST_CONVERSATIONS = 10
"""For an interval of κ: of fewer, most draws lack one side, and what is left looks certain."""
VALUES = {"first": 1.0, "equal": 0.5, "second": 0.0}


class JudgeAgreement(NamedTuple):
    """An annotator against the judge of the file, on the pairs that both have decided.

    Attributes:
        rows: Decided pairs with a label of the judge's; ties of either are in no figure.
        same: Share on which both chose the same completion, with its 95 % Wilson interval.
        kappa: Cohen's, with its 95 % bootstrap interval over conversations; NaN where it is undefined. A
            rating is left or right, as the annotator saw them.
        longer: Base rate: on how many of these pairs the annotator chose the longer completion.
    """

    rows: int
    same: stats.Estimate
    kappa: stats.Estimate
    longer: stats.Estimate


def with_judge(session: Session) -> JudgeAgreement | None:
    """Agreement of the session's annotator with the judge; `None` where no pair is decided by both."""
    pairs = {pair.key: pair for pair in session.pairs}
    judge: list[bool] = []  # that the left one is better
    person: list[bool] = []
    prompts: list[str] = []
    longer: list[float] = []
    for click in session.clicks:
        pair = pairs[click.key]
        if click.answer not in ("first", "second") or pair.p_first in (None, 0.5):
            continue
        left = session.first_is_left(pair)
        chose_first = click.answer == "first"
        judge.append((pair.p_first is not None and pair.p_first > 0.5) == left)
        person.append(chose_first == left)
        prompts.append(repr(pair.prompt))
        more = len(pair.first) - len(pair.second)
        longer.append(0.5 if not more else float((more > 0) == chose_first))
    if not judge:
        return None
    # Only the side of a label counts here, so that one strength stands for all.
    found = agreement(
        [log_odds_of(0.75 if each else 0.25) for each in judge], [float(each) for each in person]
    )
    assert found is not None
    return JudgeAgreement(
        rows=len(judge),
        same=found.accuracy,
        kappa=_kappa_interval(judge, person, prompts, value=found.kappa, seed=session.seed),
        longer=stats.wilson(math.fsum(longer), len(longer)),
    )


def between_annotators(clicks: Sequence[Click]) -> tuple[float, int, int]:
    """Krippendorff's α (nominal: one, the other, a tie) over all that was labelled, the number of pairs that
    several annotators labelled, and of annotators. NaN where α is undefined."""
    rated = [click for click in clicks if click.answer != "skip"]
    names = sorted({click.annotator for click in rated})
    units: dict[str, dict[str, float]] = defaultdict(dict)
    for click in rated:
        units[click.key][click.annotator] = VALUES[click.answer]
    shared = sum(len(unit) > 1 for unit in units.values())
    alpha = stats.krippendorff_alpha([[unit.get(name) for name in names] for unit in units.values()])
    return alpha, shared, len(names)


def summary(session: Session) -> list[str]:
    """The session in a few lines, of what lies on the disk."""
    counts = Counter(click.answer for click in session.clicks)
    labelled = counts["first"] + counts["second"] + counts["equal"]
    ties = f"{counts['equal']} of them {'a tie' if counts['equal'] == 1 else 'ties'}"
    lines = [
        f"{one_line(session.annotator)}: {count_of(labelled, 'pair')} labelled, {ties}; "
        f"{counts['skip']} skipped; {len(session.pairs) - labelled - counts['skip']} left"
    ]
    if found := with_judge(session):
        lines.append(
            f"agreement with the judge on {count_of(found.rows, 'pair')} that both decided: "
            f"{_share(found.same)}; Cohen's κ {_figure(found.kappa)}; "
            f"you chose the longer one in {_share(found.longer)}"
        )
    elif labelled:
        lines.append("agreement with the judge: no pair that both have decided")
    alpha, shared, annotators = between_annotators(session.labels.clicks)
    if annotators > 1:
        said = "undefined" if math.isnan(alpha) else f"{alpha:.2f}"
        lines.append(
            f"agreement of {annotators} annotators: Krippendorff's α {said}, on "
            f"{count_of(shared, 'pair')} that several labelled"
        )
    return lines


def _kappa_interval(
    judge: Sequence[bool], person: Sequence[bool], prompts: Sequence[str], *, value: float, seed: int
) -> stats.Estimate:
    """κ with its interval, conversations drawn whole; without one where there are too few of them for a
    bootstrap to say anything."""
    if len(set(prompts)) < LEAST_CONVERSATIONS or math.isnan(value):
        return stats.Estimate(value, math.nan, math.nan)
    rows = np.array([judge, person])

    def kappa(weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
        drawn = np.repeat(rows, weights.astype(int), axis=1)
        return stats.cohen_kappa(drawn[0].tolist(), drawn[1].tolist())

    return stats.bootstrap(kappa, prompts, seed=seed)


def _share(value: stats.Estimate) -> str:
    return f"{value.value:.0%} ({value.low:.0%} to {value.high:.0%})"


def _figure(value: stats.Estimate) -> str:
    if math.isnan(value.value):
        return "undefined (one of you always chose one side)"
    if math.isnan(value.low):
        return f"{value.value:.2f} (too few pairs for an interval)"
    return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"
