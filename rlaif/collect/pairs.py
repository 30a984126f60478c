"""Pairs to show to a person, from any file of comparisons that rlaif reads, and the order to show them in.

A pair is known by its content, so that labels are found again whatever becomes of the file that it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from rlaif.digest import digest, unit_from
from rlaif.errors import ConfigError, DataError, Problem
from rlaif.io.readers import read_responses
from rlaif.io.rows import each_row, refuse_bad_rows
from rlaif.io.rubrics import rubric_of_row
from rlaif.io.tables import DataTable, Row, read_table
from rlaif.io.training_rows import preference_of
from rlaif.labels import sigmoid
from rlaif.text import count_of, well_formed
from rlaif.types import Criterion, Message

__all__ = ["Order", "Shown", "ShownPairs", "in_order", "pair_key", "read_pairs", "shown_pair"]

Item = TypeVar("Item")
Order = Literal["random", "contested", "spread"]


@dataclass(frozen=True)
class Shown:
    """A conversation and two completions of it, in an order that depends on their texts alone.

    Attributes:
        first, second: The completions, sorted as texts.
        p_first: The judge's probability that `first` is the better one; `None` where the file has none.
        source_id: The id of its row, or its own key where the row has none.
        value: What a person's label of it would tell, as a jury's `contested.jsonl` says; `None` without.
        notes: What else the file says of the prompt, each under its name: its reference, and the criteria of
            its rubric.
    """

    prompt: tuple[Message, ...]
    first: str
    second: str
    p_first: float | None
    source_id: str
    value: float | None = None
    notes: tuple[tuple[str, str], ...] = ()

    @cached_property
    def key(self) -> str:
        """Digest of what is shown: the same for both orders of the completions."""
        return pair_key(self.prompt, self.first, self.second)


class ShownPairs(NamedTuple):
    """What a file holds to be labelled.

    Attributes:
        identical: Rows left out, as both completions are the same text.
        repeated: Rows left out, as an earlier row is the same pair.
        notes: What the reader of the file has to say, a line each.
    """

    pairs: tuple[Shown, ...]
    identical: int
    repeated: int
    notes: tuple[str, ...]


def pair_key(prompt: Sequence[Message], one: str, other: str) -> str:
    """Digest of a conversation and two completions, whichever of them comes first."""
    return digest([[[turn.role, turn.content] for turn in prompt], sorted([one, other])])


def read_pairs(source: str | Path) -> ShownPairs:
    """Pairs from a file: `chosen` and `rejected`, with the judge's `p_chosen` or `log_odds` where they are
    there, or any other form of comparisons; a list of completions gives every pair of neighbours in it.

    Raises:
        DataError: The file cannot be read, has bad rows, or holds no two different completions of one prompt.
    """
    table = read_table(source)
    labelled = {"chosen", "rejected"} <= set(table.columns)
    found, notes = _preferences(table, source) if labelled else _comparisons(source)
    different = [pair for pair in found if pair.first.strip() != pair.second.strip()]
    pairs: dict[str, Shown] = {}
    for pair in different:
        pairs.setdefault(pair.key, pair)
    if not pairs:
        raise DataError(
            "no prompt has two different completions",
            where=str(source),
            remedy="give pairs: columns chosen and rejected, or a and b",
        )
    return ShownPairs(
        pairs=tuple(pairs.values()),
        identical=len(found) - len(different),
        repeated=len(different) - len(pairs),
        notes=tuple(notes),
    )


def in_order(pairs: Sequence[Shown], order: Order, *, seed: int, limit: int | None = None) -> list[Shown]:
    """The pairs in the order in which they are shown, the first `limit` of them.

    `random` is a hash order, the same for every annotator. `contested` begins where a label would tell most:
    by the column `value` where the file has it (a jury's contested.jsonl), else where the judge's label is
    nearest to one half. `spread` goes through the strengths of the judge's labels, |p - 1/2|, and takes the
    shorter and the longer of two such pairs in turn, so that any beginning of it has weak and strong, short
    and long ones alike. Under both, pairs that the judge says nothing of come last.

    Raises:
        ConfigError: `contested` or `spread`, and no pair has a label of the judge's.
    """
    drawn = sorted(pairs, key=lambda pair: unit_from(seed, "collect", pair.key))
    if order == "random":
        return drawn[:limit]
    known = [pair for pair in drawn if pair.p_first is not None or pair.value is not None]
    if not known:
        raise ConfigError(
            "no pair has a label of a judge to go by (columns p_chosen, log_odds or value)",
            where=f"--order {order}",
            remedy="use --order random, or give the preferences.jsonl of a run",
        )
    rest = [pair for pair in drawn if pair.p_first is None and pair.value is None]
    ordered = sorted(known, key=_told, reverse=True) if order == "contested" else _spread(known)
    return (ordered + rest)[:limit]


def _told(pair: Shown) -> tuple[float, float]:
    """What a label of the pair would tell: by the jury, then by the closeness of the judge's to one half."""
    return (-math.inf if pair.value is None else pair.value, -_strength(pair))


def _spread(pairs: Sequence[Shown]) -> list[Shown]:
    """By strength in bit-reversed order of ranks (van der Corput's), two neighbours at a time, of which the
    shorter comes first in one place and the longer in the next; their others follow in the same order."""
    ranked = sorted(pairs, key=_strength)
    blocks = [sorted(ranked[at : at + 2], key=_length) for at in range(0, len(ranked), 2)]
    first, rest = [], []
    for turn, block in enumerate(_reversed_bits(blocks)):
        shown, *others = block[:: 1 if turn % 2 == 0 else -1]
        first.append(shown)
        rest += others
    return first + rest


def _length(pair: Shown) -> int:
    return len(pair.first) + len(pair.second)


def _reversed_bits(ranked: Sequence[Item]) -> list[Item]:
    bits = (len(ranked) - 1).bit_length()
    ranks = [int(f"{at:0{bits}b}"[::-1], 2) if bits else 0 for at in range(1 << bits)]
    return [ranked[rank] for rank in ranks if rank < len(ranked)]


def _strength(pair: Shown) -> float:
    return abs((0.5 if pair.p_first is None else pair.p_first) - 0.5)


def shown_pair(
    prompt: Sequence[Message],
    one: str,
    other: str,
    *,
    p_one: float | None = None,
    source_id: str = "",
    value: float | None = None,
    notes: tuple[tuple[str, str], ...] = (),
) -> Shown:
    """A pair whose completions are put in order; `p_one` is the probability of `one`."""
    first, second = sorted([one, other])
    p_first = p_one if p_one is None or first == one else 1 - p_one
    id = source_id or pair_key(prompt, one, other)
    return Shown(tuple(prompt), first, second, p_first, id, value, notes)


def _preferences(table: DataTable, source: str | Path) -> tuple[list[Shown], list[str]]:
    """The rows of a file of preferences."""
    found: list[Shown] = []

    def add(row: Row) -> None:
        values = preference_of(row.values)
        prompt = [Message(turn["role"], well_formed(turn["content"])) for turn in values["prompt"]]
        chosen, rejected = (well_formed(values[name][-1]["content"]) for name in ("chosen", "rejected"))
        id = values.get("id") or values.get("source_id")
        found.append(
            shown_pair(
                prompt,
                chosen,
                rejected,
                p_one=_p_chosen(values),
                source_id="" if id is None else str(id),
                value=_value(row.values),
                notes=_notes(rubric_of_row(row.values), row.values.get("reference")),
            )
        )

    problems: list[Problem] = each_row(table, add)
    rows = len(table.rows) + len(table.problems)
    refuse_bad_rows(problems, rows=rows, source=source, skip=None)
    return found, table.notes


def _p_chosen(values: dict[str, Any]) -> float | None:
    """The judge's label of a row of preferences; `None` where it has none, or is a person's own."""
    if values.get("annotator"):
        return None
    if values.get("p_chosen") not in (None, ""):
        return float(values["p_chosen"])
    return sigmoid(values["log_odds"]) if values.get("log_odds") is not None else None


def _value(row: Mapping[str, Any]) -> float | None:
    """The column `value` of a jury's contested.jsonl."""
    value = row.get("value")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _notes(rubric: Sequence[Criterion], reference: object) -> tuple[tuple[str, str], ...]:
    """What a person may want to know of a prompt beside its text."""
    known = [("reference", well_formed(reference))] if isinstance(reference, str) and reference else []
    criteria = [("must" if each.must else f"{each.points:+g}", well_formed(each.text)) for each in rubric]
    return (*known, *criteria)


def _comparisons(source: str | Path) -> tuple[list[Shown], list[str]]:
    """The pairs of a file of completions that nobody has compared."""
    read = read_responses(source)
    if grounded := sum(bool(item.prompt.context) for item in read.items):
        raise DataError(
            f"{count_of(grounded, 'prompt')} with retrieved documents (`context`), which are not shown",
            where=str(source),
            remedy="write the documents into the prompt, or leave the column out",
        )
    found = [
        shown_pair(
            item.prompt.messages,
            item.completions[one].text,
            item.completions[other].text,
            notes=_notes(item.prompt.rubric, item.prompt.reference),
        )
        for item in read.items
        for one, other in item.pairs or [(at, at + 1) for at in range(len(item.completions) - 1)]
    ]
    return found, list(read.notes)
