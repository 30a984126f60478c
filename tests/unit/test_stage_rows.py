"""Rows: told from the chosen side, the same columns in every row, and back again where a later stage reads
them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.labels import sigmoid
from rlaif.prompts import PromptLibrary
from rlaif.results.rows import completion_from_row, completion_row, preference_row, verdict_row
from rlaif.types import Comparison, Completion, Message, Order, Preference, Prompt, Verdict

LIBRARY = PromptLibrary()
PROMPT = Prompt(
    id="q",
    messages=(Message("system", "Be kind."), Message("user", "What?")),
    context=("A document.",),
    tags=("t", "u"),
)


def completion(index: int, text: str = "") -> Completion:
    said = text or f"text {index}"
    return Completion(
        id=f"q/{index}", prompt_id="q", index=index, text=said, finish="length", model="m@1", tokens=7
    )


def preference(logit: float) -> Preference:
    verdicts = (
        Verdict("q/0-1", "p", Order.AB, logit + 1, evidence={"first": -0.1234567, "second": -2.0}),
        Verdict("q/0-1", "p", Order.BA, logit - 1),
        Verdict("q/0-1", "p2", Order.ALONE, None, reason="not_finite"),
    )
    return Preference(Comparison(PROMPT, completion(0), completion(1)), verdicts, logit)


def test_a_completion_comes_back_as_it_was() -> None:
    row = completion_row(completion(3), PROMPT)
    assert completion_from_row(json.loads(json.dumps(row))) == (PROMPT, completion(3))
    assert row["completion"] == [{"role": "assistant", "content": "text 3"}]


@given(st.text(), st.integers(0, 99))
def test_any_text_comes_back(text: str, index: int) -> None:
    assert completion_from_row(completion_row(completion(index, text), PROMPT)) == (
        PROMPT,
        completion(index, text),
    )


def test_a_preference_is_told_from_the_chosen_side() -> None:
    row = preference_row(preference(-0.7), LIBRARY, {"seed": 3})
    assert (row["chosen_id"], row["rejected_id"], row["id"], row["seed"]) == ("q/1", "q/0", "q/0-1", 3)
    assert row["chosen"] == [{"role": "assistant", "content": "text 1"}]
    assert row["log_odds"] == pytest.approx(0.7)
    assert row["p_chosen"] == pytest.approx(sigmoid(0.7), abs=1e-6)
    first, second, third = row["verdicts"]
    assert (first["order"], second["order"], third["order"]) == ("rejected_first", "chosen_first", "alone")
    assert first["p_chosen"] == pytest.approx(sigmoid(-0.3), abs=1e-6)
    assert (third["valid"], third["reason"], third["p_chosen"]) == (False, "not_finite", None)


def test_the_prompt_is_what_the_policy_read() -> None:
    row = preference_row(preference(1.0), LIBRARY, {})
    assert row["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert "A document." in row["prompt"][-1]["content"]
    assert row["prompt"][-1]["content"].endswith("What?")


@given(st.floats(-40, 40))
def test_swapping_the_comparison_changes_no_row_but_its_name(logit: float) -> None:
    straight = preference(logit)
    swapped = Preference(
        straight.comparison.swap(), tuple(verdict.swap() for verdict in straight.verdicts), -logit
    )
    one, other = (preference_row(each, LIBRARY, {}) for each in (straight, swapped))
    if logit != 0:
        assert {**one, "id": ""} == {**other, "id": ""}
    assert one["p_chosen"] >= 0.5


def test_every_row_has_the_same_columns() -> None:
    rows = [preference_row(preference(logit), LIBRARY, {"seed": 0}) for logit in (-3.0, 0.0, 2.0)]
    assert len({tuple(row) for row in rows}) == 1
    assert len({tuple(verdict) for row in rows for verdict in row["verdicts"]}) == 1


def test_a_verdict_is_recorded_as_it_was_given() -> None:
    good, _, bad = preference(0.5).verdicts
    row = verdict_row(good)
    assert (row["p_a"], row["logit_a"], row["order"]) == (pytest.approx(sigmoid(1.5), abs=1e-6), 1.5, "ab")
    assert row["logprobs"] == {"first": -0.123457, "second": -2.0}
    assert (verdict_row(bad)["valid"], verdict_row(bad)["p_a"], verdict_row(bad)["reason"]) == (
        False,
        None,
        "not_finite",
    )
