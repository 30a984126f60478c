"""From a reply to the log-probability of each label: by most probable tokens, and by answers in words."""

from __future__ import annotations

import math

import pytest

from rlaif.engines.api.label_reading import from_top, from_votes, parse_label
from rlaif.engines.api.wire import Top

AB = ("A", "B")


def top(*pairs: tuple[str, float]) -> tuple[Top, ...]:
    return tuple(Top(token.encode(), value) for token, value in pairs)


def test_all_spellings_of_a_label_count() -> None:
    reading = from_top(top((" A", -0.3), ("B", -2.5), ("A", -3.0), (" B", -4.0)), AB, tokens=7)
    expected = [math.log(math.exp(-0.3) + math.exp(-3.0)), math.log(math.exp(-2.5) + math.exp(-4.0))]
    assert reading.logprobs == pytest.approx(expected)
    assert reading.tokens == 7
    assert not reading.reason


@pytest.mark.parametrize("token", ["▁A", "ĠA", "\nA", "  A", "ĊA"])
def test_leading_space_in_any_spelling_is_no_part_of_a_label(token: str) -> None:
    assert from_top(top((token, -0.1), ("B", -3.0)), AB, tokens=0).logprobs == (-0.1, -3.0)


def test_a_prefix_that_only_one_label_has_stands_for_it() -> None:
    reading = from_top(top(("Pos", -0.3), (" Neg", -1.5)), ("Positive", "Negative"), tokens=0)
    assert reading.logprobs == (-0.3, -1.5)


def test_a_prefix_that_two_labels_share_stands_for_neither() -> None:
    assert (
        from_top(top(("Un", -0.1), ("x", -3.0)), ("Unclear", "Unsafe"), tokens=0).reason
        == "labels_not_in_top"
    )


def test_a_word_that_only_begins_with_a_label_is_not_the_label() -> None:
    assert from_top(top(("An", -0.1), ("Both", -3.0)), AB, tokens=0).reason == "labels_not_in_top"


def test_case_and_empty_tokens_tell_labels_apart() -> None:
    reading = from_top(top(("", -1.5), (" ", -1.4), ("a", -1.5), ("A", -2.0), ("b", -4.0)), AB, tokens=0)
    assert reading.logprobs == (-2.0, -4.0)


def test_labels_of_several_bytes_are_found_by_their_first_bytes() -> None:
    shi, fou = "是".encode(), "否".encode()
    reading = from_top((Top(shi, -0.5), Top(fou[:2], -1.0)), ("是", "否"), tokens=0)
    assert reading.logprobs == (-0.5, -1.0)


def test_a_label_outside_the_tokens_told_gets_the_least_of_them_as_its_bound() -> None:
    reading = from_top(top(("A", -0.01), ("the", -5.0), ("an", -7.5)), AB, tokens=0)
    assert reading.logprobs == (-0.01, -7.5)


def test_the_sentinel_for_zero_probability_is_no_bound() -> None:
    reading = from_top(top(("A", -0.01), ("an", -7.5), ("B", -9999.0)), AB, tokens=0)
    assert reading.logprobs == (-0.01, -7.5)
    assert from_top(top(("A", -9999.0)), AB, tokens=0).reason == "labels_not_in_top"


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5])
def test_what_is_no_log_probability_makes_the_reading_invalid(value: float) -> None:
    reading = from_top(top(("A", -0.1), ("B", value)), AB, tokens=3)
    assert reading.logprobs == ()
    assert reading.reason == "not_finite"


def test_rounding_above_zero_is_taken_as_zero() -> None:
    assert from_top(top(("A", 1e-6), ("B", -14.0)), AB, tokens=0).logprobs == (0.0, -14.0)


def test_no_tokens_and_equal_labels_have_their_own_reasons() -> None:
    assert from_top(None, AB, tokens=0).reason == "no_logprobs"
    assert from_top(top(("A", -1.0)), ("A", "A"), tokens=0).reason == "labels_alike"
    assert from_votes(["A"], ("A", "A"), tokens=0).reason == "labels_alike"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A", "A"),
        (" B.", "B"),
        ("**A**", "A"),
        ("(B)", "B"),
        ("Answer: A", "A"),
        ("The answer is B.", "B"),
        ("A: it is kinder", "A"),
        ('"A"', "A"),
        ("答案：B", "B"),
        ("<think>B, surely B.</think>\nA", "A"),
        ("B\nbecause", "B"),
        ("final answer: **B**", "B"),
    ],
)
def test_an_answer_in_words_names_its_label(text: str, label: str) -> None:
    assert parse_label(text, AB) == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A better answer is B",
        "Both",
        "a",
        "C",
        "I prefer response A",
        "<think>A is",
        "<think>A</think>",
        "AB",
        "Answer:",
    ],
)
def test_an_answer_that_names_no_label_plainly_is_not_guessed(text: str) -> None:
    assert parse_label(text, AB) is None


def test_the_longer_of_two_labels_is_meant_when_both_fit() -> None:
    assert parse_label("Yes, but.", ("Yes", "Yes, but")) == "Yes, but"


def test_votes_become_the_jeffreys_estimate_times_the_share_of_valid_ones() -> None:
    reading = from_votes(["A", "A", "A", "B", "hm"], AB, tokens=0)
    expected = [math.log(3.5 / 5 * 4 / 5), math.log(1.5 / 5 * 4 / 5)]
    assert reading.logprobs == pytest.approx(expected)


def test_one_parsed_letter_counts_as_three_to_one() -> None:
    a, b = from_votes(["A"], AB, tokens=0).logprobs
    assert math.exp(a) == pytest.approx(0.75)
    assert math.exp(b) == pytest.approx(0.25)


def test_answers_without_any_label_are_invalid() -> None:
    assert from_votes(["hm", "well"], AB, tokens=0).reason == "no_label_in_answer"
