"""What swapping constitutions changes, on cases small enough to count by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from judges import case, constitution

from rlaif.audit.cases import plain
from rlaif.audit.differences import Change, Side, changes, difference
from rlaif.errors import DataError
from rlaif.labels import sigmoid
from rlaif.report.audit import difference_markdown
from rlaif.types import Constitution


def side(rules: Constitution, rows: Sequence[Mapping[str, float | None]]) -> Side:
    return Side(constitution=rules, cases=[case(number, row) for number, row in enumerate(rows)])


def opposed(count: int = 20) -> tuple[Side, Side]:
    """Both have `kind`, always for a; B has `blunt` too, which turns every fourth label."""
    ours = side(constitution("kind"), [{"kind": 1.0 + i / 100} for i in range(count)])
    theirs = side(
        constitution("kind", "blunt"),
        [{"kind": 1.0 + i / 100, "blunt": -4.0 if i % 4 == 0 else 0.5} for i in range(count)],
    )
    return ours, theirs


def test_flips_are_counted_and_the_driver_is_named() -> None:
    found = difference(*opposed(), judge="judge@1", protocol="pairwise")
    assert found.flipped.value == pytest.approx(5 / 20)
    assert found.both == found.comparisons == 20
    assert found.kappa == 0.0
    first = found.influences[0]
    assert (first.id, first.side, first.change) == ("blunt", "b", "added")
    assert first.drives == pytest.approx(0.25)
    assert first.own_flips == pytest.approx(0.25)
    both = found.influences[1]
    assert (both.id, both.side, both.change) == ("kind", "both", "same")


def test_the_movers_come_first_with_what_pulls_them() -> None:
    found = difference(*opposed(40))
    assert len(found.movers) == 20
    assert [mover.flips for mover in found.movers[:10]] == [True] * 10
    assert not found.movers[-1].flips
    assert {mover.principle for mover in found.movers[:10]} == {"blunt"}
    top = found.movers[0]
    assert top.p_a == pytest.approx(sigmoid(1.0 + int(top.comparison_id[1:].partition("/")[0]) / 100))
    moves = [abs(mover.p_a - mover.p_b) for mover in found.movers]
    assert moves == sorted(moves, reverse=True)


def test_the_same_constitution_changes_nothing() -> None:
    one = opposed()[1]
    found = difference(one, one)
    assert found.flipped.value == 0.0
    assert found.kappa == 1.0
    assert found.shift == 0.0
    assert found.correlation == pytest.approx(1.0)
    assert all(each.side == "both" and each.drives == 0.0 for each in found.influences)


def test_a_changed_principle_stands_on_both_sides() -> None:
    ours = constitution("kind")
    theirs = replace(ours, principles=(replace(ours.principles[0], weight=2.0),))
    rows = [{"kind": 1.0}] * 3
    assert changes(ours, theirs) == (Change("kind", "changed"),)
    found = difference(side(ours, rows), side(theirs, rows))
    assert {(each.id, each.side) for each in found.influences} == {("kind", "a"), ("kind", "b")}


def test_added_removed_and_same() -> None:
    found = changes(constitution("kind", "old"), constitution("new", "kind"))
    assert [(each.id, each.change) for each in found] == [
        ("kind", "same"),
        ("old", "removed"),
        ("new", "added"),
    ]


def test_redundant_principles_are_found_by_correlation() -> None:
    rules = constitution("x", "y", "z")
    rows = [{"x": float(i - 6), "y": 2.0 * (i - 6) + 1, "z": float((i * 7) % 5)} for i in range(12)]
    found = difference(side(rules, rows), side(rules, rows))
    assert [(each.side, each.first, each.second) for each in found.redundant] == [
        ("a", "x", "y"),
        ("b", "x", "y"),
    ]
    assert found.redundant[0].correlation == pytest.approx(1.0)
    few = difference(side(rules, rows[:9]), side(rules, rows[:9]))
    assert few.redundant == ()
    assert few.correlation is None


def test_comparisons_without_a_label_are_left_out() -> None:
    ours = side(constitution("kind"), [{"kind": 1.0}, {"kind": None}])
    theirs = side(constitution("kind"), [{"kind": -1.0}, {"kind": 1.0}])
    found = difference(ours, theirs)
    assert (found.comparisons, found.both, found.flipped.value) == (2, 1, 1.0)
    with pytest.raises(DataError, match="none of 1 comparisons"):
        difference(side(constitution("kind"), [{"kind": None}]), side(constitution("kind"), [{"kind": 1.0}]))


def test_other_comparisons_are_refused() -> None:
    ours, theirs = opposed()
    with pytest.raises(DataError, match="different comparisons"):
        difference(ours, theirs._replace(cases=theirs.cases[1:]))


def test_json_and_markdown() -> None:
    found = difference(*opposed(), judge="judge@1", protocol="pairwise")
    assert json.loads(json.dumps(plain(found), allow_nan=False))["flipped"]["value"] == 0.25
    text = difference_markdown(found)
    assert "flipped labels: 25 % [11, 47]" in text
    assert "| blunt | b | added | 25 % | +25.0 |" in text
    assert "principles added: blunt" in text
    assert "None found." in text
    assert text.count("### p") == 20
