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
BESIDE = ("input", "context")
"""Columns that change what is asked, and that are read here only where their form is known: else the row is refused."""


def preference_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A preference with `prompt`, `chosen` and `rejected` as lists of messages; its other columns stay.

    Raises:
        DataError: The two completions answer different conversations, or a cell cannot be read.
    """
    values = dict(row)
    if not {"chosen", "rejected"} <= values.keys() or _is_native(values, ("chosen", "rejected")):
        return values
    sides = {name: completion_of(values[name], name) for name in ("chosen", "rejected")}
    question = _only(values, QUESTIONS)
    told = [] if question is None else [_question(values, question)]
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
    """A demonstration with `prompt` and `completion` as lists of messages; its other columns stay.

    Raises:
        DataError: There is no answer to learn, it is that of another conversation, or a cell cannot be read.
    """
    values = dict(row)
    if _is_native(values, ("completion",)):
        return values
    question, answer, conversation = (_only(values, names) for names in (QUESTIONS, ANSWERS, CONVERSATIONS))
    if conversation is not None and question is None and answer is None:
        _refuse_beside(values, conversation)
        *turns, last = with_system(messages_of(values[conversation], conversation), values)
        if last.role != "assistant":
            raise DataError(f"`{conversation}` does not end with an answer to learn", remedy="end it with the assistant's turn")
        return values | {"prompt": _dicts(tuple(turns)), "completion": _dicts((last,))}
    if question is None or answer is None:
        return values  # the stage says what it needs
    asked = _question(values, question)
    before, text = completion_of(values[answer], answer)
    if before and with_system(before, values) != asked:
        raise DataError(f"`{answer}` does not answer `{question}`: the turns before it differ", remedy="give only the last turn")
    return values | {"prompt": _dicts(asked), "completion": _dicts((Message("assistant", text),))}


def _only(values: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The one column among `names` that the row fills; `None` when it fills none.

    Raises:
        DataError: It fills several, which say different things.
    """
    filled = [name for name in names if values.get(name)]
    if any(values[name] != values[filled[0]] for name in filled[1:]):
        raise DataError(f"the columns {', '.join(filled)} are filled and differ", remedy="keep the one that is meant")
    return filled[0] if filled else None


def _question(values: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    """The prompt in `column`, with Alpaca's `input` and the `system` message."""
    _refuse_beside(values, column)
    return question_of(values, column)


def _refuse_beside(values: Mapping[str, Any], column: str) -> None:
    read = ("input",) if column == "instruction" else ()
    if beside := [name for name in BESIDE if name not in read and values.get(name)]:
        raise DataError(
            f"the column `{beside[0]}` may be part of what is asked, and is not read beside `{column}`",
            remedy=f"write it into `{column}`, or remove the column",
        )


def _is_native(values: Mapping[str, Any], completions: tuple[str, ...]) -> bool:
    """Whether a prompt and one message for each completion stand there as lists of messages."""
    return _is_chat(values.get("prompt")) and "system" not in values and all(
        _is_chat(values.get(name)) and len(values[name]) == 1 for name in completions
    )


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        and not turn.get("tool_calls") for turn in value
    )


def _dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message.as_dict() for message in messages]
