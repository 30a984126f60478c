"""Rows that a training stage learns from, in the forms that people have, brought into our own: lists of chat
messages.

`docs/reference/data-forms.md` lists the forms. Rows that are in our form already are left as they are, empty
completions included. Each function raises `DataError` about one row, which names the nearest form and what to
do; the caller adds its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlaif.errors import DataError
from rlaif.io.fields import (
    SYSTEM_COLUMNS,
    assistant_answer,
    id_of,
    messages_of,
    number_of,
    question_of,
    refuse_tools,
    refuse_unread,
    with_system,
)
from rlaif.labels import MOST_LOG_ODDS
from rlaif.types import Message

__all__ = ["demonstration_of", "preference_of"]

QUESTIONS = ("prompt", "instruction", "question")
ANSWERS = ("completion", "output", "response", "answer")
CONVERSATIONS = ("messages", "conversations")
MOST_WEIGHT = 1e6
"""Of a row; as of a file."""
"""Nats, about the largest that a probability can be computed from."""
BESIDE = ("input", "context")
"""Columns that change what is asked, and that are read here only where their form is known: else the row is
refused."""


def preference_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A preference with `prompt`, `chosen` and `rejected` as lists of messages; its other columns stay.

    Raises:
        DataError: The two completions answer different conversations, or a cell cannot be read.
    """
    if not {"chosen", "rejected"} <= row.keys():
        raise _no_preference(row)
    values = _with_numbers(row)
    if _is_native(values, ("chosen", "rejected")):
        return values
    question = _only(values, QUESTIONS)
    asked = None if question is None else values[question]
    sides = {name: assistant_answer(values[name], name, asked=asked) for name in ("chosen", "rejected")}
    told = [] if question is None else [_question(values, question)]
    told += [with_system(turns, values) for turns, _ in sides.values() if turns]
    if question is None:
        told = told or [_asked_beside(values)]
        _refuse_beside(values, "chosen")
    if any(turns != told[0] for turns in told[1:]):
        raise DataError(
            "`chosen` and `rejected` do not answer the same conversation",
            remedy="give both the same turns before the last one",
        )
    return (
        values
        | {"prompt": _dicts(told[0])}
        | {name: _dicts((Message("assistant", text),)) for name, (_, text) in sides.items()}
    )


def demonstration_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A demonstration with `prompt` and `completion` as lists of messages; its other columns stay.

    Raises:
        DataError: There is no answer to learn, it is that of another conversation, or a cell cannot be read.
    """
    values = _with_numbers(row)
    if values.get("label") is False and "chosen" not in values:
        raise DataError(
            "this row is of TRL's unpaired form (KTO), and its `label` says that the answer is bad",
            remedy="remove it: sft imitates answers",
        )
    if _is_native(values, ("completion",)):
        return values
    question, answer, conversation = (_only(values, names) for names in (QUESTIONS, ANSWERS, CONVERSATIONS))
    if conversation is not None and answer is None:
        return values | _taught(values, conversation, question)
    if question is None or answer is None:
        raise _no_demonstration(values)
    asked = _question(values, question)
    before, text = assistant_answer(values[answer], answer, asked=values[question])
    if before and with_system(before, values) != asked:
        raise DataError(
            f"`{answer}` does not answer `{question}`: the turns before it differ",
            remedy="give only the last turn",
        )
    return values | {"prompt": _dicts(asked), "completion": _dicts((Message("assistant", text),))}


def _taught(values: Mapping[str, Any], conversation: str, question: str | None) -> dict[str, Any]:
    """Prompt and completion of a conversation that ends with the answer; `question`, as in UltraChat, repeats
    its first turn."""
    _refuse_beside(values, conversation)
    *turns, last = with_system(messages_of(values[conversation], conversation), values)
    if last.role != "assistant":
        raise DataError(
            f"`{conversation}` does not end with an answer to learn",
            remedy="end it with the assistant's turn",
        )
    if not turns or turns[-1].role != "user":
        raise DataError(
            f"in `{conversation}` no turn of the user's stands before the answer",
            remedy="give what is answered, too",
        )
    if question is not None:
        asked = messages_of(values[question], question)
        said = [turn for turn in turns if turn.role != "system"]
        if list(asked) not in (said[:1], said, turns):
            raise DataError(
                f"the columns {question} and {conversation} are filled and differ",
                remedy="keep the one that is meant",
            )
    return {"prompt": _dicts(tuple(turns)), "completion": _dicts((last,))}


def _asked_beside(values: Mapping[str, Any]) -> tuple[Message, ...]:
    """The prompt of a preference whose sides are one turn each and that has no column for it: ShareGPT's, in
    `conversations`."""
    conversation = _only(values, CONVERSATIONS)
    if conversation is None:
        raise DataError(
            "the row has no prompt", remedy="add a column `prompt`, or begin both conversations with it"
        )
    turns = messages_of(values[conversation], conversation)
    if turns[-1].role != "user":
        raise DataError(
            f"`{conversation}` beside `chosen` and `rejected` ends with an answer, so it is not a prompt",
            remedy=f"let `{conversation}` end with the user's turn, or add a column `prompt`",
        )
    return with_system(turns, values)


def _no_preference(values: Mapping[str, Any]) -> DataError:
    """What a row without `chosen` and `rejected` looks like, and what to do with it."""
    refuse_tools(values)
    if any(isinstance(values.get(name), list) for name in ("completions", "responses")):
        listed = "completions" if isinstance(values.get("completions"), list) else "responses"
        return DataError(
            f"this row looks like raw UltraFeedback: `{listed}` holds answers, which nobody has compared yet",
            remedy="label them first: rlaif label --responses FILE; then learn from its preferences.jsonl",
        )
    if {"a", "b"} <= values.keys():
        return DataError(
            "this row is a pair without a choice (`a` and `b`)",
            remedy="label it first: rlaif label --responses FILE; then learn from its preferences.jsonl",
        )
    if _only(values, (*ANSWERS, *CONVERSATIONS)) is not None:
        return DataError(
            "this row looks like a demonstration (one answer), not a preference",
            remedy="learn from it with: rlaif sft --data FILE",
        )
    return _lacking(values, "`chosen` and `rejected`")


def _no_demonstration(values: Mapping[str, Any]) -> DataError:
    """What a row without a prompt or an answer looks like, and what to do with it."""
    refuse_tools(values)
    if {"chosen", "rejected"} <= values.keys():
        return DataError(
            "this row looks like a preference (`chosen` and `rejected`), not a demonstration",
            remedy="learn from it with: rlaif dpo --preferences FILE, or rlaif reward",
        )
    if isinstance(values.get("completions"), list):
        return DataError(
            "this row looks like raw UltraFeedback: `completions` holds several answers",
            remedy="label them first: rlaif label --responses FILE; or write a row for each answer to "
            "imitate",
        )
    if values.get("text") and _only(values, ANSWERS) is None:
        return DataError(
            "this row looks like TRL's language-modelling form (`text`): it does not say what is prompt and "
            "what is answer",
            remedy="write the two as `prompt` and `completion`, or as `messages`",
        )
    return _lacking(values, "`prompt` and `completion` (or `messages`)")


def _lacking(values: Mapping[str, Any], needed: str) -> DataError:
    return DataError(
        f"the row has no {needed}; its columns are {', '.join(map(str, values)) or 'none'}",
        remedy=f"give {needed}",
    )


def _with_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with numbers that a CSV file holds as text, and with its label under `log_odds` where it is
    called `margin`.

    `margin` is the log-odds in our own files up to version 0.1.0; anywhere else it is a rating (Llama 2's),
    and no label.
    """
    values = dict(row)
    refuse_unread(values)
    if isinstance(values.get("id"), str):
        id_of(values["id"])
    for name, most in (("p_chosen", 1.0), ("weight", MOST_WEIGHT)):
        number = number_of(values.get(name), name, default=1.0, most=most)
        if isinstance(values.get(name), str):
            values[name] = number
    if not {"chosen", "rejected"} <= values.keys():
        return values
    ours = "constitution_digest" in values and values.get("p_chosen") is None
    names = ("log_odds", "margin") if ours else ("log_odds",)
    if found := next((name for name in names if values.get(name) not in (None, "")), None):
        values["log_odds"] = number_of(
            values[found], found, default=0.0, least=-MOST_LOG_ODDS, most=MOST_LOG_ODDS
        )
    return values


def _only(values: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The one column among `names` that the row fills; `None` when it fills none.

    Raises:
        DataError: It fills several, which say different things.
    """
    filled = [name for name in names if values.get(name)]
    if any(values[name] != values[filled[0]] for name in filled[1:]):
        raise DataError(
            f"the columns {', '.join(filled)} are filled and differ", remedy="keep the one that is meant"
        )
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
    """Whether a prompt and one message for each completion stand there as lists of messages, and nothing else
    is asked."""
    return (
        _is_chat(values.get("prompt"), last="user")
        and not any(values.get(name) for name in (*SYSTEM_COLUMNS, *BESIDE))
        and all(
            _is_chat(values.get(name), last="assistant") and len(values[name]) == 1 for name in completions
        )
    )


def _is_chat(value: object, *, last: str) -> bool:
    """Whether `value` is a list of plain messages, the last of them `last`'s."""
    turns = value if isinstance(value, list) else []
    return (
        all(
            isinstance(turn, Mapping)
            and turn.get("role") in ("system", "user", "assistant")
            and isinstance(turn.get("content"), str)
            and not turn.get("tool_calls")
            and not turn.get("function_call")
            for turn in turns
        )
        and bool(turns)
        and turns[-1]["role"] == last
    )


def _dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message.as_dict() for message in messages]
