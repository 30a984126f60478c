"""The judge's win rates of an evaluation, corrected by people's labels of some of its pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from rlaif.errors import DataError
from rlaif.prediction_powered import Labelled, powered_mean
from rlaif.results.evaluation import WIN, Evaluation, PolicyResult, pair_id
from rlaif.results.people import PeopleRate
from rlaif.text import count_of

__all__ = ["PeopleLabel", "people_rates", "unused"]


class PeopleLabel(NamedTuple):
    """What people said of a pair: a share from 0 to 1 for each of its two texts (½ each for a tie)."""

    texts: Mapping[str, float]


def people_rates(found: Evaluation, labels: Mapping[str, PeopleLabel]) -> tuple[PeopleRate, ...]:
    """A rate for every policy with labels of people on pairs of two prompts at least.

    Args:
        labels: By the id of the pair (`pair_id`).

    Raises:
        DataError: No label is of a pair of this evaluation, or one is of other texts.
    """
    start = found.policy(found.start)
    used, rates = 0, []
    for policy in found.policies:
        if policy.name == found.start or policy.win is None:
            continue
        items = list(_items(policy, start, labels))
        told = {item.prompt for item in items if item.people is not None}
        used += sum(item.people is not None for item in items)
        if len(told) > 1:
            rates.append(PeopleRate(policy.name, found.start, powered_mean(items)))
    if not used:
        raise DataError(
            "no label is of a pair of these evaluations",
            remedy="label their pairs: rlaif collect labels EVALUATE/pairs.jsonl",
        )
    return tuple(rates)


def unused(labels: Mapping[str, PeopleLabel], rates: Sequence[PeopleRate]) -> list[str]:
    """A line on the pairs with labels that are in none of `rates`, if there are such."""
    left = len(labels) - sum(each.rate.labels for each in rates)
    if not left:
        return []
    said = "is" if left == 1 else "are"
    return [
        f"{left} of {count_of(len(labels), 'pair')} with labels of people {said} in no figure: of no pair "
        "that the judge decided here, or of a policy with labels on a single prompt."
    ]


def _items(
    policy: PolicyResult, start: PolicyResult, labels: Mapping[str, PeopleLabel]
) -> Iterator[Labelled]:
    """The pairs that the judge was asked about, which are those whose texts differ."""
    numbers: dict[str, int] = {}
    wins = policy.rows.measures.get(WIN, ())
    for prompt, ours, base, win in zip(
        policy.rows.prompts, policy.rows.texts, start.rows.texts, wins, strict=True
    ):
        number = numbers[prompt] = numbers.get(prompt, -1) + 1
        if win is None or ours.strip() == base.strip():
            continue
        people = None
        if label := labels.get(id := pair_id(policy.name, prompt, number)):
            if set(label.texts) != {ours, base}:
                raise DataError(
                    "the label is of other completions than those of the evaluation",
                    where=id,
                    remedy="give the labels that were collected for this evaluation",
                )
            people = label.texts[ours]
        yield Labelled(judge=win, people=people, prompt=prompt)
