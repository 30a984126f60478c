"""Rows to learn from, in the forms that people have."""

from __future__ import annotations

from typing import Any

import pytest

from rlaif.errors import DataError
from rlaif.io.training_rows import demonstration_of, preference_of


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


OURS = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
HH = "\n\nHuman: q\n\nAssistant: "
PREFERENCES: dict[str, dict[str, Any]] = {
    "ours": OURS,
    "plain text": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "implicit prompt": {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
    "UltraFeedback": {
        "prompt": "q",
        "chosen": [user("q"), assistant("a")],
        "rejected": [user("q"), assistant("b")],
    },
    "HH": {"chosen": f"{HH}a", "rejected": f"{HH}b"},
}


@pytest.mark.parametrize("row", PREFERENCES.values(), ids=PREFERENCES)
def test_preferences_of_every_form(row: dict[str, Any]) -> None:
    found = preference_of({**row, "p_chosen": 0.7})
    assert {name: found[name] for name in OURS} == OURS
    assert found["p_chosen"] == 0.7


def test_a_system_column_is_the_system_message() -> None:
    found = preference_of({"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"})
    assert found["prompt"] == [{"role": "system", "content": "s"}, user("q")]


def test_our_own_rows_may_hold_empty_completions() -> None:
    row = {**OURS, "rejected": [assistant("")]}
    assert preference_of(row) == row
    assert demonstration_of({"prompt": [user("q")], "completion": [assistant("")]})["completion"] == [
        assistant("")
    ]


def test_completions_of_different_conversations_are_refused() -> None:
    with pytest.raises(DataError, match="do not answer the same conversation"):
        preference_of({"chosen": [user("q"), assistant("a")], "rejected": [user("other"), assistant("b")]})
    with pytest.raises(DataError, match="do not answer the same conversation"):
        preference_of(
            {"prompt": "p", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
        )
    with pytest.raises(DataError, match="has no prompt"):
        preference_of({"chosen": "a", "rejected": "b"})


PAIR = {"prompt": [user("q")], "completion": [assistant("a")]}
DEMONSTRATIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ours": (PAIR, PAIR),
    "plain text": ({"prompt": "q", "completion": "a"}, PAIR),
    "Alpaca": ({"instruction": "q", "input": "", "output": "a"}, PAIR),
    "Alpaca with input": (
        {"instruction": "q", "input": "x", "output": "a"},
        {"prompt": [user("q\n\nx")], "completion": [assistant("a")]},
    ),
    "messages": ({"messages": [user("q"), assistant("a")]}, PAIR),
    "messages with a system column": (
        {"system": "s", "messages": [user("q"), assistant("a")]},
        {"prompt": [{"role": "system", "content": "s"}, user("q")], "completion": [assistant("a")]},
    ),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, PAIR),
}


@pytest.mark.parametrize(("row", "expected"), DEMONSTRATIONS.values(), ids=DEMONSTRATIONS)
def test_demonstrations_of_every_form(row: dict[str, Any], expected: dict[str, Any]) -> None:
    found = demonstration_of(row)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "input": "i", "completion": "a"},
        {"question": "q", "context": "c", "answer": "a"},
        {"messages": [user("q"), assistant("a")], "context": ["c"]},
        {"prompt": "p", "instruction": "other", "completion": "a"},
        {"instruction": "p", "output": "a", "response": "other"},
        {"prompt": "p", "completion": [user("other"), assistant("a")]},
        {"prompt": [user("p")], "completion": [assistant("a") | {"tool_calls": [{"id": "1"}]}]},
    ],
)
def test_what_would_be_left_out_or_mixed_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        demonstration_of(row)


def test_tool_calls_of_a_preference_are_refused() -> None:
    with pytest.raises(DataError, match="tool"):
        preference_of({**OURS, "chosen": [assistant("a") | {"tool_calls": [{"id": "1"}]}]})


def test_a_conversation_without_an_answer_teaches_nothing() -> None:
    with pytest.raises(DataError, match="does not end with an answer"):
        demonstration_of({"conversations": [{"from": "human", "value": "q"}]})
