"""Labels that say nothing: the one definition, on counts of a label stage and on rows that were read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlaif.errors import DataError
from rlaif.judging.informative import LabelFacts, doubts
from rlaif.results.informative import check_informative, facts_of
from rlaif.results.preferences import PreferencePair, pairs_from_rows


@pytest.mark.parametrize(
    ("facts", "grave"),
    [
        (LabelFacts(), []),
        (LabelFacts(tie_rate=0.64, flip_rate=0.5, invalid_rate=0.5), []),
        (LabelFacts(tie_rate=0.94), []),
        (LabelFacts(tie_rate=0.95), [True]),
        (LabelFacts(flip_rate=0.51), [False]),
        (LabelFacts(flip_rate=0.75), [False]),
        (LabelFacts(flip_rate=0.76), [True]),
        (LabelFacts(flip_rate=0.76, grade="do not use"), [True]),
        (LabelFacts(flip_rate=0.76, grade="not audited"), [True]),
        (LabelFacts(flip_rate=0.76, grade="use with care"), [False]),
        (LabelFacts(flip_rate=0.99, grade="trust"), [False]),
        (LabelFacts(tie_rate=1.0, grade="trust"), [True]),
        (LabelFacts(invalid_rate=0.51), [True]),
        (LabelFacts(tie_rate=1.0, flip_rate=0.6, invalid_rate=0.9), [True, True, False]),
    ],
)
def test_thresholds(facts: LabelFacts, grave: list[bool]) -> None:
    found = doubts(facts)
    assert [doubt.grave for doubt in found] == grave
    assert all(doubt.words.endswith("do not train on these") == doubt.grave for doubt in found)


def test_the_sentences() -> None:
    ties, flips, invalid = doubts(LabelFacts(tie_rate=1.0, flip_rate=0.92, invalid_rate=0.6))
    assert ties.words.startswith("100 % of the labels are ties (within 0.005 of one half)")
    assert flips.words.startswith(
        "the two orders disagree on 92 % of questions: position decides, not the text"
    )
    assert invalid.words.startswith("60 % of the verdicts are invalid")


def row(number: int, first: float, second: float, **columns: Any) -> dict[str, Any]:
    """A row whose two orders gave the chosen one these probabilities."""
    turns = {name: [{"role": "assistant", "content": f"{name} {number}"}] for name in ("chosen", "rejected")}
    both = {"chosen_first": first, "rejected_first": second}
    return {
        "prompt": [{"role": "user", "content": f"Say {number}."}],
        **turns,
        "p_chosen": (first + second) / 2,
        "verdicts": [
            {"principle": "kind", "order": order, "valid": True, "p_chosen": p} for order, p in both.items()
        ],
        **columns,
    }


def read(rows: Sequence[dict[str, Any]], **options: Any) -> list[PreferencePair]:
    return pairs_from_rows(rows, source="labels.jsonl", **options)


def check(pairs: Sequence[PreferencePair], uninformative: Any = "refuse") -> list[str]:
    heard: list[str] = []
    check_informative(pairs, uninformative=uninformative, note=heard.append)
    return heard


def test_rows_are_counted() -> None:
    alone = {"principle": "kind", "order": "alone", "valid": True, "p_chosen": 0.9}
    invalid = {"principle": "kind", "order": "chosen_first", "valid": False, "p_chosen": None}
    rows = [
        row(0, 0.9, 0.2, audit="trust"),  # disagree
        row(1, 0.9, 0.8, audit="trust"),
        row(2, 0.5, 0.502, audit="trust"),  # a tie, and no flip: one of them says nothing
        row(3, 0.9, 0.9, audit="trust", verdicts=[alone]),
        row(4, 0.9, 0.9, audit="trust", verdicts=[invalid, invalid]),
    ]
    assert facts_of(read(rows)) == LabelFacts(
        tie_rate=0.2, flip_rate=1 / 3, invalid_rate=2 / 9, grade="trust"
    )
    assert facts_of(read(rows, hard=True)).tie_rate == 0.2, "a tie that is read as certain is a tie"
    assert facts_of(read([*rows, row(5, 0.9, 0.8)])).grade == ""
    assert facts_of([]) == LabelFacts()
    only = [{name: value for name, value in row(6, 0.5, 0.5).items() if name not in ("p_chosen", "verdicts")}]
    assert facts_of(read(only)) == LabelFacts(tie_rate=0.0)
    assert facts_of(read([only[0] | {"log_odds": 0.01}])).tie_rate == 1.0


def test_rows_without_weight_do_not_count() -> None:
    good, bad = [row(n, 0.9, 0.8) for n in range(4)], [row(n, 0.501, 0.5, weight=0) for n in range(4, 90)]
    assert check(read([*good, *bad])) == []


def test_labels_that_say_nothing_are_refused_unless_they_are_allowed() -> None:
    ties, flips = ([row(n, *both) for n in range(5)] for both in ((0.502, 0.5), (0.9, 0.2)))
    for rows, words in ((ties, "100 % of the labels are ties"), (flips, "position decides, not the text")):
        with pytest.raises(DataError, match=words) as refused:
            check(read(rows))
        assert refused.value.where == "labels.jsonl"
        assert "--uninformative allow" in str(refused.value.remedy)
        (line,) = check(read(rows), "allow")
        assert line.startswith("warning: labels.jsonl: ")
        assert words in line


def test_good_labels_beside_them_do_not_mend_them() -> None:
    human = [row(n, 1.0, 1.0) for n in range(10, 100)]
    mixed = [*pairs_from_rows(human, source="human.jsonl"), *read([row(n, 0.502, 0.5) for n in range(5)])]
    with pytest.raises(DataError, match="ties") as refused:
        check(mixed)
    assert refused.value.where == "labels.jsonl"


def test_a_bad_grade_is_told_and_a_good_one_goes_before_flips() -> None:
    flips = (0.9, 0.2)
    assert "position decides more often" in check(read([row(0, *flips, audit="use with care")]))[0]
    (line,) = check(read([row(0, 0.9, 0.8, audit="do not use")]))
    assert line == "warning: labels.jsonl: an audit graded the judge of these labels: do not use"
