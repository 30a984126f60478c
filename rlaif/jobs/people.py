"""Labels of people on an evaluation's pairs, and the pairs for them to label."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rlaif.errors import DataError
from rlaif.io.rows import each_row, refuse_bad_rows
from rlaif.io.tables import Row, read_table
from rlaif.io.training_rows import preference_of
from rlaif.prompts import PromptLibrary
from rlaif.results.evaluation import WIN, Evaluation, pair_id
from rlaif.stages.people import PeopleLabel
from rlaif.types import Prompt

__all__ = ["PAIRS", "pair_rows", "read_people"]

PAIRS = "pairs.jsonl"
"""Of an evaluation: what the judge was asked, for people to label some of it."""


def pair_rows(
    found: Evaluation, prompts: Sequence[Prompt], library: PromptLibrary, judge: str
) -> Iterator[dict[str, Any]]:
    """Every pair that the judge decided, as a row of preferences under its `pair_id`."""
    asked, start = {prompt.id: prompt for prompt in prompts}, found.policy(found.start)
    for policy in found.policies:
        numbers: dict[str, int] = {}
        wins = policy.rows.measures.get(WIN, ())
        for prompt, ours, base, win in zip(
            policy.rows.prompts, policy.rows.texts, start.rows.texts, wins, strict=False
        ):
            number = numbers[prompt] = numbers.get(prompt, -1) + 1
            if policy.name == found.start or win is None or ours.strip() == base.strip():
                continue
            chosen, rejected = (ours, base) if win >= 0.5 else (base, ours)
            yield {
                "id": pair_id(policy.name, prompt, number),
                "prompt": [turn.as_dict() for turn in library.policy(asked[prompt])],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "p_chosen": max(win, 1 - win),
                "policy": policy.name,
                "judge": judge,
            }


def read_people(source: str) -> dict[str, PeopleLabel]:
    """The labels in a file that `rlaif collect labels` wrote, by the id of the pair; several annotators of
    one pair are averaged.

    Raises:
        DataError: It cannot be read, or holds other rows.
    """
    table, found = read_table(source), defaultdict[str, list[dict[str, float]]](list)

    def add(row: Row) -> None:
        id = row.values.get("source_id")
        if not isinstance(id, str):
            raise DataError("the label does not say of which pair it is (source_id)")
        values = preference_of(row.values)
        chosen, rejected = (str(values[name][-1]["content"]) for name in ("chosen", "rejected"))
        p = 1.0 if values.get("p_chosen") in (None, "") else float(values["p_chosen"])
        if not 0 <= p <= 1:
            raise DataError(f"p_chosen is {p}")
        found[id].append({chosen: p, rejected: 1 - p})

    problems = each_row(table, add)
    refuse_bad_rows(problems, rows=len(table.rows) + len(table.problems), source=source, skip=None)
    return {id: PeopleLabel(_mean(labels, id, source)) for id, labels in found.items()}


def _mean(labels: Sequence[dict[str, float]], id: str, source: str) -> dict[str, float]:
    if any(label.keys() != labels[0].keys() for label in labels):
        raise DataError(
            "two labels of one pair are of different texts", where=f"{source}, {id}", remedy="remove one"
        )
    return {text: math.fsum(label[text] for label in labels) / len(labels) for text in labels[0]}
