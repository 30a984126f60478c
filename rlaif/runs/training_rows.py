"""Rows that a training stage learns from, in the forms that people have, brought into our own: lists of chat messages.

Preferences: TRL's plain text and implicit prompts, UltraFeedback (binarised), transcripts of Anthropic's HH data. Demonstrations:
plain text, `messages` and ShareGPT's `conversations` that end with the answer, Alpaca's `instruction`, `input`, `output`. Rows that
are in our form already are left as they are, empty completions included. Each function raises `DataError` about one row; the caller
adds its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.errors import DataError
from rlaif.runs.fields import completion_of, messages_of, question_of, with_system
from rlaif.types import Message

__all__ = ["demonstration_of", "preference_of"]

QUESTIONS = ("prompt", "instruction", "question")
ANSWERS = ("completion", "output", "response", "answer")
CONVERSATIONS = ("messages", "conversations")


def preference_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A preference with `prompt`, `chosen` and `rejected` as lists of messages; its other columns stay.

    Raises:
        DataError: The two completions answer different conversations, or a cell cannot be read.
    """
    values = dict(row)
    if not {"chosen", "rejected"} <= values.keys() or _is_native(values, ("chosen", "rejected")):
        return values
    sides = {name: completion_of(values[name], name) for name in ("chosen", "rejected")}
    told = [question_of(values, column) for column in QUESTIONS if values.get(column)][:1]
    told += [with_system(turns, values) for turns, _ in sides.values() if turns]
    if not told:
        raise DataError("the row has no prompt", remedy="add a column `prompt`, or begin both conversations with it")
    if any(turns != told[0] for turns in told[1:]):
        raise DataError(
            "`chosen` and `rejected` do not answer the same conversation", remedy="give both the same turns before the last one",
        )
    return values | {"prompt": _dicts(told[0])} | {
        name: _dicts((Message("assistant", text),)) for name, (_, text) in sides.items()
    }


def demonstration_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A demonstration with `prompt` and `completion`, or `messages`, as lists of messages; its other columns stay.

    Raises:
        DataError: There is no answer to learn, or a cell cannot be read.
    """
    values = dict(row)
    if _is_native(values, ("completion",)) or _is_chat(values.get("messages")):
        return values
    for column in CONVERSATIONS:
        if column in values:
            messages = with_system(messages_of(values[column], column), values)
            if messages[-1].role != "assistant":
                raise DataError(f"`{column}` does not end with an answer to learn", remedy="end it with the assistant's turn")
            return values | {"messages": _dicts(messages)}
    question = next((column for column in QUESTIONS if values.get(column)), None)
    answer = next((column for column in ANSWERS if column in values), None)
    if question is None or answer is None:
        return values  # the stage says what it needs
    _, text = completion_of(values[answer], answer)
    return values | {"prompt": _dicts(question_of(values, question)), "completion": _dicts((Message("assistant", text),))}


def _is_native(values: Mapping[str, Any], completions: tuple[str, ...]) -> bool:
    """Whether a prompt and one message for each completion stand there as lists of messages."""
    return _is_chat(values.get("prompt")) and "system" not in values and all(
        _is_chat(values.get(name)) and len(values[name]) == 1 for name in completions
    )


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str) for turn in value
    )


def _dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message.as_dict() for message in messages]
