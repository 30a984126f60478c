"""Accuracy, calibration and habits of a judge: numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from judges import case, comparison, pairs

from rlaif.audit.agreement import agreement, baselines, one_order_accuracy, one_principle_accuracy
from rlaif.audit.biases import habits, shares
from rlaif.audit.cases import Case, Pair, plain, turn_half
from rlaif.types import Order, Verdict


def test_accuracy_counts_a_tie_half_and_leaves_out_what_has_no_label() -> None:
    found = agreement([1.0, -1.0, 0.0, None], [1.0, 1.0, 0.0, 1.0])
    assert found is not None
    assert (found.rows, found.unlabelled) == (3, 1)
    assert found.accuracy.value == pytest.approx(1.5 / 3)
    assert found.nll == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(1)) + math.log(2)) / 3)


def test_kappa_and_calibration_of_a_judge_that_is_half_right_and_sure() -> None:
    found = agreement([9.0, 9.0, -9.0, -9.0], [1.0, 0.0, 1.0, 0.0])
    assert found is not None
    assert found.kappa == pytest.approx(0.0)
    assert found.ece == pytest.approx(0.5, abs=1e-3)
    assert [(each.rows, each.accuracy) for each in found.reliability] == [(4, 0.5)]


def test_no_label_no_agreement() -> None:
    assert agreement([None], [1.0]) is None
    assert agreement([], []) is None


def test_baselines() -> None:
    rows = [
        Pair(comparison(0, "long", "s"), 1.0),
        Pair(comparison(1, "s", "long"), 1.0),
        Pair(comparison(2, "same", "size"), 0.0),
    ]
    found = baselines(rows)
    assert [found.longer.value, found.shorter.value, found.first.value] == pytest.approx([0.5, 0.5, 2 / 3])
    assert found.best()[0] == "always-first"


def test_one_order_and_one_principle() -> None:
    biased = _ordered(0, ab=3.0, ba=-1.0)
    assert one_order_accuracy([biased]) == 0.5
    assert one_principle_accuracy([case(0, {"x": 1.0, "y": -1.0, "z": None})]) == 0.5
    assert one_order_accuracy([]) is None
    assert one_principle_accuracy([case(0, {"x": None})]) is None


def test_half_of_the_pairs_are_turned() -> None:
    rows = [Pair(comparison(number, "a", "b"), 1.0) for number in range(10)]
    turned = turn_half(rows, seed=0)
    assert sum(pair.a_wins or 0 for pair in turned) == 5
    assert [pair.comparison.prompt.id for pair in turned] == [pair.comparison.prompt.id for pair in rows]
    assert {pair.a_wins: pair.comparison.a.text for pair in turned} == {1.0: "a", 0.0: "b"}


def test_flips_and_first_position() -> None:
    found = habits([_ordered(0, ab=3.0, ba=-1.0), _ordered(1, ab=2.0, ba=1.0)], own="judge")
    assert found.flip_rate is not None
    assert found.flip_rate.value == 0.5
    assert found.first_rate is not None
    # For the first: ab of both, ba of comparison 0 only (there b stands first).
    assert found.first_rate.value == 0.75
    assert found.invalid_rate == 0


def test_length_and_peoples_length() -> None:
    rows = [
        case(0, {"x": 3.0}, a="aaaa", b="b"),
        case(1, {"x": 1.0}, a="aa", b="b", won=0.0),
        case(2, {"x": -2.0}, a="a", b="bbb"),
    ]
    found = habits(rows, own="judge")
    assert found.longer_rate is not None
    assert found.longer_rate.value == 1.0
    assert found.human_longer_rate is not None
    assert found.human_longer_rate.value == pytest.approx(1 / 3)
    assert found.length_correlation == pytest.approx(1.0)


def test_self_preference_counts_only_pairs_with_one_own_completion() -> None:
    own = [("judge@rev", "other"), ("other", "judge"), ("judge", "judge"), ("other", "another")]
    rows = [
        replace(case(i, {"x": 1.0}), pair=Pair(comparison(i, "a", "b", models=models)))
        for i, models in enumerate(own)
    ]
    found = habits(rows, own="judge")
    assert found.own_rows == 2
    assert found.own_rate is not None
    assert found.own_rate.value == 0.5


def test_agreement_between_principles_and_invalid_verdicts() -> None:
    rows = [case(i, {"x": sign, "y": sign, "z": None}) for i, sign in enumerate((2.0, -2.0, 1.0, -1.0))]
    found = habits(rows, own="judge")
    assert found.agreement == pytest.approx(1.0)
    assert found.agreement_interval == pytest.approx(1.0)
    assert found.invalid_rate == pytest.approx(1 / 3)
    assert found.invalid_reasons == {"lost": 8}


def test_mass_of_the_labels() -> None:
    evidence = {"first": math.log(0.2), "second": math.log(0.1)}
    alone = {
        "a_first": math.log(0.5),
        "a_second": math.log(0.5),
        "b_first": math.log(0.1),
        "b_second": math.log(0.1),
    }
    verdicts = (
        Verdict("p0/0-1", "x", Order.AB, 1.0, evidence=evidence),
        Verdict("p0/0-1", "y", Order.ALONE, 1.0, evidence=alone),
    )
    found = habits([Case(Pair(comparison(0, "a", "b")), verdicts, 1.0)], own="")
    assert found.label_mass == pytest.approx((0.3 + 1.0 + 0.2) / 3)


def test_nothing_judged() -> None:
    found = habits([], own="judge")
    assert found.flip_rate is None
    assert found.tie_rate is None
    assert found.agreement is None
    assert found.length_correlation is None


def test_constant_labels_have_no_correlation() -> None:
    assert habits([case(i, {"x": 1.0}) for i in range(4)], own="").length_correlation is None


def test_an_interval_over_one_comparison_is_open() -> None:
    assert shares([True, False], ["c", "c"]) == (0.5, 0.0, 1.0)
    assert shares([], []) is None


def test_plain_is_json() -> None:
    found = plain(habits([case(0, {"x": 1.0})], own=""))
    assert found["flip_rate"] == {"value": 0.0, "low": 0.0, "high": 1.0}
    assert plain({"x": math.nan, "y": (1, 2.5)}) == {"x": None, "y": [1, 2.5]}
    assert plain(pairs(1)[0])["a_wins"] == 1.0


def _ordered(number: int, *, ab: float, ba: float) -> Case:
    id = f"p{number}/0-1"
    verdicts = (Verdict(id, "x", Order.AB, ab), Verdict(id, "x", Order.BA, ba))
    return Case(Pair(comparison(number, "aa", "b"), 1.0), verdicts, (ab + ba) / 2)
