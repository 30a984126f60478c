"""Suggest a protocol and a subset of principles: chosen on one half of the pairs, confirmed on the other.

The best of many candidates looks better on the pairs that it was chosen on than it is. So the pairs are
divided in two by a hash of their prompt; the candidates compete on one half, and only the winner's figure on
the other half is told as its accuracy. Candidates are few on purpose: for each protocol, the principles in
the order of their own accuracy, the first one, the first two, and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif import stats
from rlaif.audit.agreement import Agreement, agreement, baselines
from rlaif.audit.cases import Case
from rlaif.audit.grade import COIN, SOLID, share
from rlaif.digest import unit_from

__all__ = ["Suggestion", "halves", "mean_logit", "suggest"]

FEWEST = 20
"""Labelled pairs below which nothing is suggested."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A protocol and principles to label with.

    Attributes:
        pairs: What it was chosen and confirmed on, in words.
        chosen_on: Accuracy on the half that it was chosen on: too good by selection.
        confirmed_on: Accuracy on the other half.
        all_principles: Accuracy, on that other half, of all principles under the same protocol.
        confirmed: Whether the other half shows it to be better than a coin, above always-longer and
            always-shorter, and no worse than all principles.
        words: The advice, a sentence.
    """

    protocol: str
    principles: tuple[str, ...]
    pairs: str
    chosen_on: stats.Estimate
    confirmed_on: stats.Estimate
    all_principles: stats.Estimate
    confirmed: bool
    words: str


def halves(cases: Sequence[Case], *, seed: int) -> tuple[list[Case], list[Case]]:
    """The cases divided in two by prompt; the same pairs fall the same way under every protocol."""
    first: list[Case] = []
    second: list[Case] = []
    for case in cases:
        drawn = unit_from(seed, "half", case.pair.comparison.prompt.fingerprint())
        (first if drawn < 0.5 else second).append(case)
    return first, second


def suggest(
    by_protocol: Mapping[str, Sequence[Case]], *, weights: Mapping[str, float], pairs: str, seed: int
) -> Suggestion | None:
    """The best protocol and principles; `None` with fewer than `FEWEST` labelled pairs, or nothing judged.

    Args:
        by_protocol: Cases whose pairs carry human labels, judged by all principles.
        pairs: What they are, in words.
    """
    best: tuple[float, str, tuple[str, ...], Agreement] | None = None
    for protocol, cases in by_protocol.items():
        if len(cases) < FEWEST:
            return None
        choosing, _ = halves(cases, seed=seed)
        for principles in _candidates(choosing):
            found = _subset_agreement(choosing, principles, weights)
            if found and (best is None or found.accuracy.value > best[0]):
                best = (found.accuracy.value, protocol, principles, found)
    if best is None:
        return None
    _, protocol, principles, chosen_on = best
    return _confirm(
        by_protocol[protocol], protocol, principles, chosen_on, weights=weights, pairs=pairs, seed=seed
    )


def _confirm(
    cases: Sequence[Case],
    protocol: str,
    principles: tuple[str, ...],
    chosen_on: Agreement,
    *,
    weights: Mapping[str, float],
    pairs: str,
    seed: int,
) -> Suggestion | None:
    _, confirming = halves(cases, seed=seed)
    everything = tuple(dict.fromkeys(name for case in cases for name in case.by_principle))
    found, whole = (_subset_agreement(confirming, names, weights) for names in (principles, everything))
    if found is None or whole is None:
        return None
    rules = baselines([case.pair for case in confirming])
    length = max(rules.longer.value, rules.shorter.value)
    confirmed = found.accuracy.low > COIN and length < found.accuracy.value >= whole.accuracy.value
    kept = (
        "all principles"
        if set(principles) == set(everything)
        else f"{len(principles)} of {len(everything)} principles"
    )
    told = f"{share(found.accuracy)} on the half it was not chosen on"
    if confirmed:
        how = "use" if found.accuracy.low >= SOLID else "if at all, and with care,"
        words = f"{how} {protocol} with {kept} ({', '.join(principles)}): {told}"
    else:
        words = (
            f"no choice of protocol and principles is confirmed; the best on one half, {protocol} with "
            f"{kept}, has {told}"
        )
    return Suggestion(
        protocol=protocol,
        principles=principles,
        pairs=pairs,
        chosen_on=chosen_on.accuracy,
        confirmed_on=found.accuracy,
        all_principles=whole.accuracy,
        confirmed=confirmed,
        words=words,
    )


def mean_logit(case: Case, principles: Sequence[str], weights: Mapping[str, float]) -> float | None:
    """Log-odds of the label that `principles` alone give; `None` when none of them is valid."""
    valid = [
        (weights[name], logit) for name in principles if (logit := case.by_principle.get(name)) is not None
    ]
    total = math.fsum(weight for weight, _ in valid)
    return math.fsum(weight * logit for weight, logit in valid) / total if total > 0 else None


def _candidates(cases: Sequence[Case]) -> list[tuple[str, ...]]:
    """All principles first, so that a tie keeps them; then the best one, the best two, and so on, by accuracy
    alone."""
    names = list(dict.fromkeys(name for case in cases for name in case.by_principle))
    alone = {name: _subset_agreement(cases, (name,), dict.fromkeys(names, 1.0)) for name in names}
    scores = {name: found.accuracy.value for name, found in alone.items() if found}
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    return [tuple(ranked[:size]) for size in (len(ranked), *range(1, len(ranked)))] if ranked else []


def _subset_agreement(
    cases: Sequence[Case], principles: Sequence[str], weights: Mapping[str, float]
) -> Agreement | None:
    rows = [
        (mean_logit(case, principles, weights), case.pair.a_wins)
        for case in cases
        if case.pair.a_wins is not None
    ]
    return agreement([logit for logit, _ in rows], [won for _, won in rows])
