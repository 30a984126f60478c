"""The rubric of a row: what a judge asks of a completion of that very prompt.

A rubric is a list of criteria, `{"text", "points"}` or `{"text", "must": true}`, with `tags` if there are
any; HealthBench's `rubrics` (Arora et al. 2025, arXiv 2505.08775), `{"criterion", "points", "tags"}`, are
read as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from rlaif.errors import DataError
from rlaif.io.fields import completion_of, number_of, strings_of, text_of
from rlaif.types import Criterion, Prompt

__all__ = [
    "MOST_CRITERIA",
    "REFERENCE_COLUMN",
    "RUBRIC_COLUMNS",
    "column_notes",
    "joined",
    "rubric_of",
    "rubric_of_row",
    "with_columns",
]

RUBRIC_COLUMNS = ("rubric", "rubrics")
REFERENCE_COLUMN = "reference"
MOST_CRITERIA = 100
"""Criteria of one rubric; each is a question for every completion (HealthBench's longest have 48)."""
LONGEST = 4000
"""Characters of one criterion."""
MOST_POINTS = 1000.0
"""Points of one criterion, in size."""
TEXTS = ("text", "criterion")
KEYS = frozenset({*TEXTS, "points", "must", "tags"})
FORM = 'write [{"text": "Names the dose", "points": 5}, {"text": "Is in English", "must": true}]'


def rubric_of_row(row: Mapping[str, Any]) -> tuple[Criterion, ...]:
    """The rubric of a row, from its column `rubric` or `rubrics`; none where both are blank.

    Raises:
        DataError: Both are filled, or it is not a rubric.
    """
    filled = [name for name in RUBRIC_COLUMNS if row.get(name) not in (None, "")]
    if len(filled) > 1:
        raise DataError(
            f"the columns {', '.join(filled)} are both filled", remedy="keep the one that is meant"
        )
    return rubric_of(row[filled[0]], filled[0]) if filled else ()


def rubric_of(value: object, column: str) -> tuple[Criterion, ...]:
    """A rubric from a cell: a list of criteria, or the JSON of one (as a CSV cell holds it).

    Raises:
        DataError: It is no list, empty or too long, or one of its criteria is malformed or there twice.
    """
    items = _items(value, column)
    if not items:
        raise DataError(f"`{column}` is empty", remedy=f"{FORM}; leave it out where there is no rubric")
    if len(items) > MOST_CRITERIA:
        raise DataError(
            f"`{column}` has {len(items)} criteria; {MOST_CRITERIA} are the most",
            remedy="keep those that matter: each is a question about every completion",
        )
    found = tuple(_criterion(item, f"{column}[{place}]") for place, item in enumerate(items))
    places: dict[str, int] = {}
    for place, each in enumerate(found):
        text = " ".join(each.text.split())
        if text in places:
            raise DataError(
                f"`{column}[{place}]` repeats `{column}[{places[text]}]`: {each.id}",
                remedy="remove one of them",
            )
        places[text] = place
    return found


def with_columns(prompt: Prompt, row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row with the row's rubric and its reference (a text, or messages that end with the
    assistant's turn), where it has them.

    Raises:
        DataError: One of them is not what it should be.
    """
    given = row.get(REFERENCE_COLUMN)
    reference = None if given in (None, "") else completion_of(given, REFERENCE_COLUMN)[1]
    return replace(prompt, rubric=rubric_of_row(row), reference=reference)


def joined(known: Prompt, again: Prompt) -> Prompt:
    """The prompt of two rows: what only one of them has of rubric and reference belongs to both.

    Raises:
        DataError: They differ: one prompt cannot have two rubrics.
    """
    for name in ("rubric", "reference"):
        one, other = getattr(known, name), getattr(again, name)
        if one and other and one != other:
            raise DataError(
                f"an earlier row has the same prompt with another {name}",
                remedy=f"give all rows of a prompt the same {name}",
            )
    return replace(known, rubric=known.rubric or again.rubric, reference=known.reference or again.reference)


def column_notes(prompts: Iterable[Prompt]) -> list[str]:
    """A line for each of the columns `rubric` and `reference` that only some of `prompts` have."""
    prompts = list(prompts)
    having = {
        "rubric": sum(bool(prompt.rubric) for prompt in prompts),
        "reference": sum(prompt.reference is not None for prompt in prompts),
    }
    return [
        f"{len(prompts) - count:,} of {len(prompts):,} prompts have no {name}"
        for name, count in having.items()
        if 0 < count < len(prompts)
    ]


def _items(value: object, column: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(text_of(value, column))
        except (ValueError, RecursionError):
            raise DataError(
                f"`{column}` is a text, not a list of criteria",
                remedy=f"{FORM}, or give the column another name",
            ) from None
    if not isinstance(value, list):
        raise DataError(f"`{column}` is {type(value).__name__}, not a list of criteria", remedy=FORM)
    return value


def _criterion(item: object, where: str) -> Criterion:
    if not isinstance(item, Mapping):
        raise DataError(f"`{where}` is {type(item).__name__}, not a criterion", remedy=FORM)
    given = {key: value for key, value in item.items() if value is not None}
    if unknown := [str(key) for key in given if key not in KEYS]:
        raise DataError(
            f"`{where}` has the unknown key {', '.join(unknown)}",
            remedy="a criterion has `text` (or `criterion`), `points` or `must`, and `tags`",
        )
    texts = [key for key in TEXTS if key in given]
    if len(texts) != 1:
        what = "has both `text` and `criterion`" if texts else "has no `text`"
        raise DataError(f"`{where}` {what}", remedy=FORM)
    text = text_of(given[texts[0]], f"{where}.{texts[0]}").strip()
    if len(text) > LONGEST:
        raise DataError(
            f"`{where}.{texts[0]}` has {len(text):,} characters; {LONGEST:,} are the most",
            remedy="ask one thing at a time",
        )
    must = _must(given, where)
    points = 0.0 if must else _points(given, where)
    return Criterion(text=text, points=points, must=must, tags=strings_of(given.get("tags"), f"{where}.tags"))


def _must(given: Mapping[str, Any], where: str) -> bool:
    must = given.get("must", False)
    if not isinstance(must, bool):
        raise DataError(f"`{where}.must` is {must!r}", remedy="write true or false")
    if must and given.get("points"):
        raise DataError(
            f"`{where}` has points and is a must: a must has none, since failing it makes the score 0",
            remedy="keep one of them",
        )
    return must


def _points(given: Mapping[str, Any], where: str) -> float:
    if "points" not in given:
        raise DataError(f"`{where}` has neither `points` nor `must`", remedy=FORM)
    points = number_of(given["points"], f"{where}.points", default=0.0, least=-MOST_POINTS, most=MOST_POINTS)
    if not points:
        raise DataError(
            f"`{where}.points` is 0: nothing would hang on it",
            remedy="give it points (below 0 for what should not be), or must: true, or remove it",
        )
    return points
