"""Labels of several judges made one, and how the judges agree: by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from judges import comparison

from rlaif.config import LabelConfig
from rlaif.config.jury import JudgeSeat
from rlaif.judging.judge import Judged
from rlaif.judging.jury import JuryStatistics, audit_weight, contention, jury_logit
from rlaif.labels import sigmoid
from rlaif.types import Order, Verdict

logits = st.floats(-20, 20)


def judged(number: int, labels: Mapping[str, float | None]) -> Judged:
    asked = comparison(number, "a", "b")
    verdicts = tuple(Verdict(asked.id, "p", Order.ALONE, logit, judge=name) for name, logit in labels.items())
    return Judged(asked, verdicts, None, labels)


def test_the_label_is_the_weighted_mean_of_log_odds() -> None:
    weights = {"one": 1.0, "two": 3.0}
    assert jury_logit({"one": 4.0, "two": -2.0}, weights, quorum=0.5) == pytest.approx(-0.5)


def test_judges_without_a_label_are_left_out_while_enough_weight_is_there() -> None:
    weights = {"one": 1.0, "two": 1.0, "three": 2.0}
    labels = {"one": None, "two": 1.0, "three": 3.0}
    assert jury_logit(labels, weights, quorum=0.75) == pytest.approx(7 / 3)
    assert jury_logit(labels, weights, quorum=0.8) is None
    assert jury_logit({"one": 1.0, "two": None}, weights, quorum=0.5) == 1.0  # three was not asked
    assert jury_logit({"one": None}, weights, quorum=0.01) is None


def test_a_judge_without_weight_decides_nothing() -> None:
    assert jury_logit({"one": 9.0, "two": -1.0}, {"one": 0.0, "two": 1.0}, quorum=1.0) == -1.0


@given(st.lists(logits, min_size=1, max_size=5))
def test_contention_is_between_nothing_and_ln_2(values: list[float]) -> None:
    labels = {str(i): value for i, value in enumerate(values)}
    weights = dict.fromkeys(labels, 1.0)
    assert 0 <= contention(labels, weights) <= math.log(2) + 1e-12
    assert contention(dict.fromkeys(labels, values[0]), weights) == pytest.approx(0, abs=1e-12)


def test_contention_is_most_where_sure_judges_disagree() -> None:
    weights = {"one": 1.0, "two": 1.0}
    sure, mild = (contention({"one": x, "two": -x}, weights) for x in (8.0, 1.0))
    undecided = contention({"one": 0.01, "two": -0.01}, weights)
    assert sure > mild > undecided
    p = sigmoid(1.0)
    mutual = math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p)
    assert mild == pytest.approx(mutual)


def test_weights_of_audits_grow_with_accuracy_and_end_at_a_coin() -> None:
    assert audit_weight(50, 100) == 0
    assert audit_weight(10, 100) == 0
    assert audit_weight(79, 98) == pytest.approx(math.log(4))
    assert math.isfinite(audit_weight(10, 10))


def test_agreement_against_hand_counts() -> None:
    found = JuryStatistics({"one": 1.0, "two": 1.0})
    disagreed = [
        found.add(judged(i, dict(zip(("one", "two"), labels, strict=True))))
        for i, labels in enumerate(
            [(2.0, 1.0), (2.0, -1.0), (-2.0, -1.0), (2.0, 1.0), (0.0, 1.0), (None, 1.0)]
        )
    ]
    assert disagreed == [False, True, False, False, False, False]
    (pair,) = found.pairs()
    assert pair.rows == 4
    assert pair.agreement == 0.75
    assert pair.chance == pytest.approx(0.75 * 0.5 + 0.25 * 0.5)
    assert pair.kappa == pytest.approx((0.75 - 0.5) / 0.5)
    told = found.as_dict()
    assert told["disagreed"] == 1
    assert told["judges"]["one"]["unlabelled"] == 1
    assert told["judges"]["one"]["tie_rate"] == pytest.approx(1 / 5)


def test_a_recused_judge_is_counted() -> None:
    found = JuryStatistics({"one": 1.0, "two": 1.0})
    found.add(judged(0, {"two": 1.0}))
    assert found.recused == {"one": 1, "two": 0}
    assert found.as_dict()["judges"]["one"]["comparisons"] == 0


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (["a", "a"], "named twice"),
        ([], "is empty"),
        ([{"model": "a", "weight": 0}, {"model": "b", "weight": 0}], "weight above 0"),
        ([{"model": "a", "weight": -1}], "greater than or equal"),
        ([{"model": "a", "wait": 1}, "b"], "Extra inputs"),
    ],
)
def test_a_jury_that_cannot_be_is_refused(judge: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LabelConfig(judge=judge)


def test_what_only_a_jury_has_is_refused_for_one_judge() -> None:
    with pytest.raises(ValueError, match="quorum acts with"):
        LabelConfig(judge="a", quorum=0.9)
    with pytest.raises(ValueError, match="calibration is of one judge"):
        LabelConfig(judge=("a", "b"), calibration="c.json")


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("cot", {"reasonings": 3, "reasoning_tokens": 9, "clamp": 0.7}),
        ("commit", {"reasoning_tokens": 9}),
        ("rubric", {"rubric_aggregate": "min", "constitution_weight": 1.0, "lacking": "skip"}),
        ("reference", {"lacking": "plain"}),
    ],
)
def test_settings_of_a_protocol_act_where_one_judge_is_asked_by_it(
    protocol: str, settings: dict[str, Any]
) -> None:
    assert LabelConfig(judge=("a", JudgeSeat(model="b", protocol=protocol)), **settings).quorum == 0.5
    with pytest.raises(ValueError, match="with `protocol: "):
        LabelConfig(judge=("a", "b"), **settings)
