"""Verdicts to labels: numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest

from rlaif.judging.aggregate import LabelStatistics, combine, principle_logit
from rlaif.labels import sigmoid
from rlaif.stats import ClusteredShare
from rlaif.types import Order, Verdict


def verdict(
    logit: float | None, *, principle: str = "p", order: Order = Order.AB, reason: str = ""
) -> Verdict:
    return Verdict(comparison_id="c", principle_id=principle, order=order, logit_a=logit, reason=reason)


def test_both_orders_are_averaged_in_log_odds() -> None:
    assert principle_logit([verdict(2.0), verdict(-1.0, order=Order.BA)]) == pytest.approx(0.5)


def test_a_constant_position_bias_cancels() -> None:
    signal, bias = 0.3, 5.0
    assert principle_logit([verdict(signal + bias), verdict(signal - bias, order=Order.BA)]) == pytest.approx(
        signal
    )


def test_one_order_alone_does_not_count() -> None:
    assert principle_logit([verdict(2.0), verdict(None, order=Order.BA, reason="prompt_too_long")]) is None
    assert principle_logit([]) is None


def test_principles_are_averaged_by_weight() -> None:
    verdicts = [
        verdict(1.0, principle="x", order=Order.ALONE),
        verdict(-2.0, principle="y", order=Order.ALONE),
    ]
    assert combine(verdicts, {"x": 3.0, "y": 1.0}) == pytest.approx((3 * 1 - 2) / 4)


def test_an_invalid_principle_is_left_out_and_its_weight_with_it() -> None:
    verdicts = [
        verdict(1.0, principle="x", order=Order.ALONE),
        verdict(None, principle="y", order=Order.ALONE, reason="not_finite"),
    ]
    assert combine(verdicts, {"x": 1.0, "y": 9.0}) == pytest.approx(1.0)


def test_no_valid_principle_gives_no_label() -> None:
    assert combine([verdict(None, reason="not_finite")], {"p": 1.0}) is None


def test_sigmoid_does_not_overflow() -> None:
    assert sigmoid(0.0) == 0.5
    assert sigmoid(1000.0) == 1.0
    assert sigmoid(-1000.0) == pytest.approx(0.0)
    assert sigmoid(math.log(3)) == pytest.approx(0.75)


def test_statistics_count_flips_ties_and_invalid_verdicts() -> None:
    statistics = LabelStatistics()
    # Says "first" twice: a flip, and a tie.
    statistics.add([verdict(1.0), verdict(-1.0, order=Order.BA)], 0.0)
    statistics.add([verdict(2.0), verdict(4.0, order=Order.BA)], 3.0)  # agrees
    statistics.add([verdict(None, reason="not_finite"), verdict(1.0, order=Order.BA)], None)
    told = statistics.as_dict()
    assert (told["comparisons"], told["labelled"], told["unlabelled"]) == (3, 2, 1)
    assert (told["verdicts"], told["invalid"], told["judged"]) == (6, 1, 2)
    assert told["flip_rate"] == pytest.approx(0.5)
    assert told["tie_rate"] == pytest.approx(0.5)
    assert told["mean_strength"] == pytest.approx((0 + sigmoid(3.0) - 0.5) / 2)
    assert told["first_rate"] == pytest.approx(3 / 5)  # ab 1.0, ba -1.0 and ab 2.0 name the first
    assert told["invalid_reasons"] == {"not_finite": 1}
    assert statistics.invalid_rate == pytest.approx(1 / 6)


def test_statistics_are_clustered_by_the_prompts_that_are_told() -> None:
    statistics = LabelStatistics()
    flip, agreed = [verdict(1.0), verdict(-1.0, order=Order.BA)], [verdict(2.0), verdict(4.0, order=Order.BA)]
    for prompt, verdicts, logit in (("p", flip, 0.0), ("p", agreed, 3.0), ("q", flip, 0.0)):
        statistics.add(verdicts, logit, prompt=prompt)
    statistics.add([verdict(None, reason="not_finite")], None, prompt="q")
    told: Any = statistics.as_dict()["clusters"]
    flips = ClusteredShare(**told["flips"])
    assert (flips.clusters, flips.trials, flips.successes) == (2, 3, 2)
    assert (flips.trials_squared, flips.products, flips.successes_squared) == (4 + 1, 2 + 1, 1 + 1)
    assert told["invalid"] == asdict(ClusteredShare(2, 7, 1, 16 + 9, 3, 1))
    assert told["ties"]["successes"] == 2
    assert statistics.as_dict()["clusters"] == told, "telling counts nothing twice"
    assert "clusters" not in LabelStatistics().as_dict()


def test_rates_of_nothing_are_none_not_zero() -> None:
    told = LabelStatistics().as_dict()
    assert told["flip_rate"] is None
    assert told["tie_rate"] is None
    assert LabelStatistics().invalid_rate == 0.0
