"""Label: judge pairs of completions under a constitution and aggregate the verdicts into preferences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Literal

from rlaif.config import LabelConfig
from rlaif.digest import unit_from
from rlaif.errors import DataError, JudgingError
from rlaif.judging.aggregate import LabelStatistics
from rlaif.judging.cohort import Meeting, bradley_terry, meetings
from rlaif.judging.judge import Judge, Judged
from rlaif.judging.jury import Jury
from rlaif.judging.protocols import Need
from rlaif.progress import NoProgress, Progress
from rlaif.text import count_of
from rlaif.types import Comparison, Completion, Preference, Prompt

__all__ = ["Pairing", "askable", "check_invalid_rate", "fitted", "label", "lacks", "make_pairs"]

SHOWN = 5
"""Prompts that an error names."""


@dataclass
class Pairing:
    """The comparisons of a label run, and what was left out of them: counts that add up to all the pairs
    there are."""

    comparisons: list[Comparison] = field(default_factory=list)
    identical: int = 0
    repeated: int = 0
    """Pairs that the data set against each other once more: they are judged once."""
    not_drawn: int = 0
    lone: int = 0
    """Prompts with a single completion: there is nothing to compare."""


def lacks(prompt: Prompt, need: Need) -> bool:
    """Whether `prompt` is without what a protocol needs of it."""
    return not (prompt.rubric if need == "rubric" else prompt.reference)


def askable(
    prompts: Sequence[Prompt],
    need: Need | None,
    *,
    lacking: Literal["refuse", "skip", "plain"] = "refuse",
    where: str = "",
    remedy: str = "",
) -> list[Prompt]:
    """The prompts that a protocol can ask about, in their order.

    Args:
        need: What it reads of a prompt.
        lacking: What becomes of prompts without that: an error, left out, or asked all the same.
        remedy: What the error advises, where `lacking` is no setting.

    Raises:
        DataError: Some lack it, and may not; or all do.
    """
    if need is None or lacking == "plain":
        return list(prompts)
    kept = [prompt for prompt in prompts if not lacks(prompt, need)]
    if len(kept) == len(prompts) or (kept and lacking == "skip"):
        return kept
    ids = [prompt.id for prompt in prompts if lacks(prompt, need)]
    shown = ", ".join(ids[:SHOWN]) + (", …" if len(ids) > SHOWN else "")
    advice = f"give them a column `{need}`"
    others = "leave them out (lacking: skip), or ask about them without (lacking: plain)"
    raise DataError(
        f"{len(ids)} of {len(prompts)} prompts have no {need}: {shown}",
        where=where,
        remedy=remedy or f"{advice}, or {others if kept else 'choose another protocol'}",
    )


def make_pairs(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    *,
    pairs: Literal["all", "best-worst", "cohort"] | int,
    seed: int,
    given: Mapping[str, Sequence[tuple[int, int]]] | None = None,
) -> Pairing:
    """Comparisons among the completions of each prompt, in the order of the prompts.

    Pairs with the same text are left out and counted: there is nothing to prefer. Which of two completions is
    `a` is drawn by hash, so that neither side collects the earlier samples. A number draws that many pairs a
    prompt; `cohort` takes those that `rlaif.judging.cohort.meetings` names, where the data gives no pairs.

    Args:
        given: Pairs that the data itself set against each other, by prompt id, as indices of completions;
            only these are compared.
    """
    by_prompt: dict[str, list[Completion]] = defaultdict(list)
    for completion in completions:
        by_prompt[completion.prompt_id].append(completion)
    result = Pairing()
    for prompt in prompts:
        own = by_prompt.get(prompt.id, [])
        result.lone += len(own) == 1
        met = list(given.get(prompt.id, ())) if given else []
        distinct = dict.fromkeys((min(pair), max(pair)) for pair in met)
        result.repeated += len(met) - len(distinct)
        possible = [(own[i], own[j]) for i, j in distinct] or list(combinations(own, 2))
        different = [(a, b) for a, b in possible if a.text.strip() != b.text.strip()]
        result.identical += len(possible) - len(different)
        drawn = different
        if isinstance(pairs, int):
            ranked = sorted(
                different,
                key=lambda pair: unit_from(seed, "pair", prompt.fingerprint(), pair[0].id, pair[1].id),
            )
            keep = {(a.id, b.id) for a, b in ranked[:pairs]}
            drawn = [(a, b) for a, b in different if (a.id, b.id) in keep]
        elif pairs == "cohort" and not distinct:
            meet = {(own[i].id, own[j].id) for i, j in meetings(len(own), seed, prompt.fingerprint())}
            drawn = [(a, b) for a, b in different if (a.id, b.id) in meet]
        result.not_drawn += len(different) - len(drawn)
        cohort = tuple({each.text.strip(): each for each in reversed(own)}.values())
        for a, b in drawn:
            comparison = Comparison(prompt=prompt, a=a, b=b, cohort=() if distinct else cohort)
            swap = unit_from(seed, "side", prompt.fingerprint(), a.id, b.id) < 0.5
            result.comparisons.append(comparison.swap() if swap else comparison)
    return result


def label(
    comparisons: Sequence[Comparison],
    *,
    judge: Judge | Jury,
    config: LabelConfig,
    statistics: LabelStatistics,
    calibrate: Callable[[float], float] = lambda logit: logit,
    progress: Progress | None = None,
) -> Iterator[tuple[Judged, Preference | None]]:
    """Judge `comparisons` in order; yields each with its preference.

    The preference is `None` where no principle gave a valid verdict, and, under `pairs: best-worst`, for all
    pairs of a prompt but the one between its best and its worst completion. Under `pairs: cohort` the labels
    of a prompt are fitted together, see `fitted`. `statistics` counts every comparison as it passes.
    `calibrate` maps the log-odds of labels, not of verdicts: those stay as the judge gave them.
    """
    progress = progress or NoProgress()
    progress.begin(
        f"judging {count_of(len(comparisons), 'comparison')}", sum(map(judge.questions_about, comparisons))
    )
    found: Iterable[Judged] = (_calibrated(each, calibrate) for each in judge.judge(comparisons))
    if config.pairs == "cohort":
        found = (each for group in _by_prompt(found) for each in fitted(group))
    judged = _counted(found, statistics)
    if config.pairs != "best-worst":
        yield from ((each, _preference(each)) for each in judged)
        return
    for members in _by_prompt(judged):
        best = best_worst(members)
        yield from ((each, _preference(each) if each is best else None) for each in members)


def _by_prompt(judged: Iterable[Judged]) -> Iterator[list[Judged]]:
    """The comparisons of each prompt together."""
    for _, group in groupby(judged, key=lambda each: each.comparison.prompt.id):
        yield list(group)


def fitted(members: Sequence[Judged]) -> list[Judged]:
    """The comparisons of one prompt, each labelled by the difference of its completions' strengths
    (`rlaif.judging.cohort.bradley_terry`); one without a label stays without.

    Only pairs that were judged are kept: the others would say again what these say.
    """
    places: dict[str, int] = {}
    for each in members:
        for completion in (each.comparison.a, each.comparison.b):
            places.setdefault(completion.id, len(places))
    sides = [(places[each.comparison.a.id], places[each.comparison.b.id]) for each in members]
    met = [
        Meeting(a, b, each.logit_a)
        for (a, b), each in zip(sides, members, strict=True)
        if each.logit_a is not None
    ]
    strengths = bradley_terry(met, len(places))
    return [
        each if each.logit_a is None else each._replace(logit_a=strengths[a] - strengths[b])
        for (a, b), each in zip(sides, members, strict=True)
    ]


def best_worst(members: Sequence[Judged]) -> Judged | None:
    """Among all judged pairs of one prompt, the pair of the best and the worst completion.

    A completion's rank is its mean log-odds against the others (the row mean of a Bradley–Terry comparison
    matrix); `None` when no pair has a label or the two never met validly.
    """
    against: dict[str, list[float]] = defaultdict(list)
    for each in members:
        if each.logit_a is not None:
            against[each.comparison.a.id].append(each.logit_a)
            against[each.comparison.b.id].append(-each.logit_a)
    if not against:
        return None
    means = {id: math.fsum(logits) / len(logits) for id, logits in against.items()}
    ends = {max(means, key=lambda id: (means[id], id)), min(means, key=lambda id: (means[id], id))}
    return next(
        (
            each
            for each in members
            if {each.comparison.a.id, each.comparison.b.id} == ends and each.logit_a is not None
        ),
        None,
    )


def check_invalid_rate(statistics: LabelStatistics, limit: float) -> None:
    """Refuse labels that rest on too many invalid verdicts.

    Raises:
        JudgingError: The share of invalid verdicts exceeds `limit`, or no comparison has a label; the message
            counts the reasons.
    """
    if limit == 1 or (
        statistics.invalid_rate <= limit and (statistics.labelled or not statistics.comparisons)
    ):
        return
    total = statistics.total
    if not total.verdicts:
        raise JudgingError(
            f"every judge is recused from {count_of(statistics.comparisons, 'comparison')}: none has a label",
            remedy="recuse fewer judges (`recuse`), or name others",
        )
    few = "" if statistics.invalid_rate > limit else "no comparison has a label: "
    reasons = ", ".join(f"{reason} {count}" for reason, count in total.reasons.most_common())
    raise JudgingError(
        f"{few}{total.invalid} of {total.verdicts} verdicts are invalid "
        f"({statistics.invalid_rate:.0%}, limit {limit:.0%}): {reasons}",
        remedy="--max-invalid 1 writes verdicts.jsonl all the same; see which, then use another judge, "
        "shorter texts or other labels",
    )


def _counted(judged: Iterable[Judged], statistics: LabelStatistics) -> Iterator[Judged]:
    for each in judged:
        statistics.add(each.verdicts, each.logit_a, prompt=each.comparison.prompt.id)
        yield each


def _calibrated(judged: Judged, calibrate: Callable[[float], float]) -> Judged:
    return judged if judged.logit_a is None else judged._replace(logit_a=calibrate(judged.logit_a))


def _preference(judged: Judged) -> Preference | None:
    if judged.logit_a is None:
        return None
    return Preference(comparison=judged.comparison, verdicts=judged.verdicts, logit_a=judged.logit_a)
