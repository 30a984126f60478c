"""A certain judge is read as certain, a judge that says something else as invalid, and nothing in between is
invented."""

from __future__ import annotations

import math

import pytest

from rlaif.engines.api.label_reading import LOWEST, from_top, from_votes
from rlaif.engines.api.wire import Top
from rlaif.engines.base import LabelReading
from rlaif.engines.journaled import READING
from rlaif.judging.aggregate import LabelStatistics, label_shares
from rlaif.judging.protocols import log_odds
from rlaif.types import Order, Verdict

AB = ("A", "B")


def top(*pairs: tuple[str, float]) -> tuple[Top, ...]:
    return tuple(Top(token.encode(), value) for token, value in pairs)


@pytest.mark.parametrize("impossible", [-9999.0, -1e9, -math.inf])
def test_a_label_told_as_impossible_leaves_the_other_certain(impossible: float) -> None:
    reading = from_top(top(("A", 0.0), ("B", impossible)), AB, tokens=1)
    assert reading.logprobs == (0.0, LOWEST)
    assert reading.bounded == ("told", "mass")
    assert log_odds(reading) == -LOWEST


def test_a_server_that_tells_only_the_drawn_token_bounds_the_other_by_what_is_left() -> None:
    reading = from_top(top(("A", -0.001)), AB, tokens=1)
    assert reading.logprobs[1] == pytest.approx(math.log(1 - math.exp(-0.001)))
    assert reading.bounded == ("told", "mass")


def test_the_lower_of_the_two_bounds_holds() -> None:
    by_least = from_top(top(("A", -0.1), ("x", -8.0)), AB, tokens=1)
    assert by_least.logprobs == (-0.1, -8.0)
    assert by_least.bounded == ("told", "least")
    by_mass = from_top(top(("A", -0.01), ("x", -4.7)), AB, tokens=1)
    assert by_mass.logprobs[1] == pytest.approx(math.log(1 - math.exp(-0.01) - math.exp(-4.7)))


def test_a_bound_that_is_no_lower_than_the_label_found_says_nothing() -> None:
    assert from_top(top(("x", -0.5), ("A", -2.5)), AB, tokens=1).reason == "labels_not_in_top"


def test_labels_that_hold_next_to_nothing_are_no_verdict() -> None:
    thinking = top(("<think>", -0.001), ("A", -9.0), ("B", -9.5))
    assert from_top(thinking, AB, tokens=1).reason == "labels_unlikely"
    kept = from_top(thinking, AB, tokens=1, least_share=0.0)
    assert kept.share == pytest.approx(math.exp(-9) + math.exp(-9.5))
    assert log_odds(kept) is None
    assert log_odds(kept, 0.0) == pytest.approx(0.5)


def test_the_spellings_of_a_label_are_added_up() -> None:
    reading = from_top(top(("B", -1.0), ("A", -1.2), (" A", -1.3)), AB, tokens=1)
    assert reading.logprobs == pytest.approx((math.log(math.exp(-1.2) + math.exp(-1.3)), -1.0))
    twice = from_top(top(("A", -0.5), ("A", -0.5), ("B", -2.0)), AB, tokens=1)
    assert twice.logprobs == (-0.5, -2.0)


def test_the_longest_beginning_of_a_label_stands_for_it() -> None:
    told = top((" friendly", -0.54), (" un", -2.77), (" unf", -3.48))
    assert from_top(told, (" friendly", " unfriendly"), tokens=1).logprobs == (-0.54, -3.48)


@pytest.mark.parametrize("value", [math.nan, 3.0, math.inf])
def test_what_is_told_of_another_token_never_decides(value: float) -> None:
    assert from_top(top(("A", -0.3), ("B", -1.5), ("zebra", value)), AB, tokens=1).logprobs == (-0.3, -1.5)
    assert from_top(top(("A", value), ("B", -1.5)), AB, tokens=1).reason == "not_finite"


def test_probabilities_that_exceed_one_are_no_distribution() -> None:
    assert from_top(top(("A", -0.1), ("B", -0.2), ("x", -0.1)), AB, tokens=1).reason == "not_finite"


@pytest.mark.parametrize("text", ["A", " A", "(A)", "A.", "**A**", "Answer: A", "Answer: (A)."])
def test_votes_are_read_with_the_labels_of_the_shipped_templates(text: str) -> None:
    reading = from_votes([text], (" A", " B"), tokens=1)
    assert math.exp(reading.logprobs[0]) == pytest.approx(0.75)


def test_a_reading_comes_back_from_the_journal_as_it_was_and_old_rows_are_read() -> None:
    bounded = LabelReading((-0.1, -8.0), 3, bounded=("told", "least"))
    plain = LabelReading((-0.1, -2.0), 3)
    assert READING.read(READING.write(bounded)) == bounded
    assert set(READING.write(plain)) == {"logprobs", "tokens", "reason"}
    assert READING.read({"logprobs": [-0.1, -2.0], "tokens": 3, "reason": ""}) == plain


def test_the_share_of_the_labels_is_counted_for_the_tables() -> None:
    def verdict(order: Order, **evidence: float) -> Verdict:
        return Verdict(comparison_id="c", principle_id="p", order=order, logit_a=0.5, evidence=evidence)

    pair = [
        verdict(Order.AB, first=math.log(0.5), second=math.log(0.25)),
        verdict(Order.BA, first=math.log(0.2), second=math.log(0.05)),
    ]
    statistics = LabelStatistics()
    statistics.add(pair, 0.5)
    assert statistics.as_dict()["mean_label_share"] == pytest.approx((0.75 + 0.25) / 2)
    alone = {
        "a_first": math.log(0.1),
        "a_second": math.log(0.1),
        "b_first": math.log(0.3),
        "b_second": math.log(0.3),
    }
    assert label_shares(alone) == pytest.approx([0.2, 0.6])
