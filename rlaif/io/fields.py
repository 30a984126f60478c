"""What the cells of a row may be: text, chat messages, documents, completions. Each function takes a cell and
says what is wrong.

They raise `DataError` about one cell; the readers add the row's place and go on to the next.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from rlaif.errors import DataError
from rlaif.text import one_line, well_formed
from rlaif.types import Message, Prompt, Role

__all__ = [
    "SYSTEM_COLUMNS",
    "BadCell",
    "assistant_answer",
    "completion_of",
    "conversation_of",
    "id_of",
    "is_transcript",
    "messages_of",
    "number_of",
    "prompt_of",
    "question_of",
    "refuse_tools",
    "refuse_unread",
    "strings_of",
    "text_of",
    "with_system",
]

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT: dict[str, Role] = {**ROLES, "human": "user", "gpt": "assistant"}
SYSTEM_COLUMNS = ("system", "system_prompt")
TOOL_ROLES = frozenset(
    {"tool", "function", "ipython", "observation", "function_call", "tool_call", "function_response"}
)
"""What the turns of a tool are called: in OpenAI's and TRL's chats, in Llama's, in ShareGPT's."""
TOOL_REMEDY = "write the call and its result as text in the turns of user and assistant, or remove the row"
TOOL_KEYS = ("tool_calls", "function_call")
LONGEST_ID = 1000
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
"""Where a turn begins in the transcripts of Anthropic's HH data."""


class BadCell(str):
    """A cell of a CSV file that cannot be used: wrong only where its column is read, since others may hold
    what they like."""

    __slots__ = ("remedy", "what")

    what: str
    remedy: str

    @classmethod
    def of(cls, text: str, what: str, *, remedy: str) -> BadCell:
        """The cell's `text`, with what is wrong about it."""
        cell = cls(text)
        cell.what, cell.remedy = what, remedy
        return cell


def text_of(value: object, column: str) -> str:
    """A text that is there, not blank, and can be written as UTF-8."""
    _refuse_bad(value, column)
    if value is None:
        raise DataError(f"`{column}` is missing", remedy="fill it in")
    if not isinstance(value, str):
        raise DataError(f"`{column}` is {_shown(value)}, not text", remedy=_text_remedy(value))
    if not value.strip():
        raise DataError(f"`{column}` is empty", remedy="fill it in, or remove the row")
    return well_formed(value)


def messages_of(value: object, column: str) -> tuple[Message, ...]:
    """A conversation: text is one user turn, or a transcript of HH; a list holds `{"role", "content"}`
    objects, or ShareGPT's."""
    _refuse_bad(value, column)
    if is_transcript(value):
        return _transcript(str(value), column)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return (Message("user", text_of(value, column)),)
    if not value:
        raise DataError(f"`{column}` is an empty list", remedy="write at least one message")
    return tuple(_message(item, f"{column}[{position}]") for position, item in enumerate(value))


def conversation_of(value: object, column: str) -> tuple[Message, ...]:
    """A prompt's messages: they end with the user's turn."""
    messages = messages_of(value, column)
    if messages[-1].role != "user":
        raise DataError(
            f"the last turn of `{column}` is the {messages[-1].role}'s; a prompt ends with the user's",
            remedy="drop the turns after it",
        )
    return messages


def question_of(row: Mapping[str, Any], column: str, *, answered: bool = False) -> tuple[Message, ...]:
    """The prompt of a row with what other columns add to it: Alpaca's `input` and a `system` message.

    Args:
        answered: The conversation may end with the answer (which is left out).
    """
    refuse_unread(row)
    messages = messages_of(row[column], column)
    if answered and len(messages) > 1 and messages[-1].role == "assistant":
        messages = messages[:-1]
    more = row.get("input") if column == "instruction" else None
    if isinstance(more, str) and more.strip():
        last = messages[-1]
        messages = (*messages[:-1], Message(last.role, f"{last.content}\n\n{text_of(more, 'input')}"))
    return with_system(conversation_of([message.as_dict() for message in messages], column), row)


def refuse_unread(row: Mapping[str, Any]) -> None:
    """Refuse a row with a column that is part of what is asked in every form that has it, and that is not
    read."""
    if row.get("history"):
        raise DataError(
            "the column `history` holds earlier turns (LLaMA-Factory's form), which are not read",
            remedy="write the whole conversation as `messages`, or remove the column",
        )
    if row.get("tools"):
        raise DataError("the column `tools` offers tools; tool turns are not read", remedy=TOOL_REMEDY)


def with_system(messages: tuple[Message, ...], row: Mapping[str, Any]) -> tuple[Message, ...]:
    """`messages` after the system message of the row's column `system` or `system_prompt`, if it has one."""
    filled = [name for name in SYSTEM_COLUMNS if row.get(name) not in (None, "")]
    if not filled:
        return messages
    if any(row[name] != row[filled[0]] for name in filled):
        raise DataError(
            f"the columns {', '.join(filled)} are filled and differ", remedy="keep the one that is meant"
        )
    system = Message("system", text_of(row[filled[0]], filled[0]))
    if messages[0] == system:
        return messages
    if messages[0].role == "system":
        raise DataError(
            f"the column `{filled[0]}` and the prompt's own system message differ", remedy="keep one of them"
        )
    return (system, *messages)


def completion_of(value: object, column: str) -> tuple[tuple[Message, ...], str]:
    """A completion: text, or messages that end with the assistant's turn (the turns before it come first in
    the result)."""
    if not isinstance(value, list | dict) and not is_transcript(value):
        return (), text_of(value, column)
    messages = messages_of(value, column)
    if messages[-1].role != "assistant":
        raise DataError(
            f"the last turn of `{column}` is the {messages[-1].role}'s",
            remedy="end it with the assistant's turn",
        )
    return messages[:-1], messages[-1].content


def assistant_answer(value: object, column: str, *, asked: object) -> tuple[tuple[Message, ...], str]:
    """As `completion_of`; a text that goes on with a transcript loses the blanks about it, as the turns of a
    transcript do."""
    before, text = completion_of(value, column)
    return before, text.strip() if is_transcript(asked) and not before else text


def strings_of(value: object, column: str) -> tuple[str, ...]:
    """No, one or several texts; a text that is a JSON list of texts (as in a CSV cell) is read as that
    list."""
    if value is None or value == "":
        return ()
    _refuse_bad(value, column)
    if isinstance(value, str):
        found = _json_list(value)
        return (text_of(value, column),) if found is None else tuple(map(well_formed, found))
    if not isinstance(value, list):
        raise DataError(f"`{column}` is {_shown(value)}", remedy="write a text or a list of texts")
    return tuple(text_of(item, f"{column}[{position}]") for position, item in enumerate(value))


def prompt_of(messages: tuple[Message, ...], row: Mapping[str, Any], context_column: str) -> Prompt:
    """The prompt of a row: its messages with the row's documents, tags (its `category` is one) and `id`.

    Without an id it is named after its fingerprint.
    """
    category = row.get("category")
    tags = dict.fromkeys(
        _tags(row.get("tags")) + (strings_of(category, "category") if isinstance(category, str) else ())
    )
    prompt = Prompt(
        id="",
        messages=messages,
        context=strings_of(row.get(context_column), context_column),
        tags=tuple(tags),
    )
    return Prompt(
        id=id_of(row.get("id")) or f"p-{prompt.fingerprint()}",
        messages=messages,
        context=prompt.context,
        tags=prompt.tags,
    )


def _message(item: object, column: str) -> Message:
    if not isinstance(item, dict) or not {"role", "from"} & item.keys():
        raise DataError(
            f"`{column}` is {_shown(item)}, not a message", remedy='write {"role": "user", "content": "…"}'
        )
    share = "from" in item and "role" not in item
    roles, key, content = (SHAREGPT, "from", "value") if share else (ROLES, "role", "content")
    role = item.get(key)
    _refuse_tool(item, column)
    if not isinstance(role, str) or role not in roles:
        raise DataError(f"`{column}.{key}` is {_shown(role)}", remedy=f"use one of {', '.join(roles)}")
    return Message(roles[role], text_of(_joined(item.get(content), column), f"{column}.{content}"))


def refuse_tools(row: Mapping[str, Any]) -> None:
    """Refuse a row any turn of which calls a tool, or is one's: what a row is taken for may hang on its other
    columns."""
    for column, value in row.items():
        for position, item in enumerate(value if isinstance(value, list) else []):
            if isinstance(item, dict):
                _refuse_tool(item, f"{column}[{position}]")


def _refuse_tool(turn: Mapping[str, Any], column: str) -> None:
    if any(turn.get(name) for name in TOOL_KEYS):
        raise DataError(f"`{column}` calls a tool; tool turns are not read", remedy=TOOL_REMEDY)
    for role in (turn.get("role"), turn.get("from")):
        if isinstance(role, str) and role in TOOL_ROLES:
            raise DataError(
                f"`{column}` is the turn of a tool (`{role}`); tool turns are not read", remedy=TOOL_REMEDY
            )


def _joined(content: object, column: str) -> object:
    """Content in parts as one text; a part that is no text would be lost, so it is refused."""
    if not isinstance(content, list):
        return content
    for part in content:
        if (
            not isinstance(part, dict)
            or part.get("type", "text") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise DataError(
                f"`{column}` contains a part that is not text: {_shown(part)}",
                remedy="remove the row, or the part",
            )
    return "".join(part["text"] for part in content)


def is_transcript(value: object) -> bool:
    """Whether a cell is a text in the form of Anthropic's HH data."""
    return isinstance(value, str) and value.startswith("\n\nHuman:") and "\n\nAssistant:" in value


def number_of(value: object, column: str, *, default: float, most: float, least: float = 0.0) -> float:
    """A number from `least` to `most`; text that writes one, as CSV cells do, is read as that number.

    Raises:
        DataError: It is none, or outside the bounds.
    """
    if value is None or value == "":
        return default
    try:
        number = (
            float("nan")
            if isinstance(value, bool) or not isinstance(value, int | float | str)
            else float(value)
        )
    except (ValueError, OverflowError):
        number = float("nan")
    if not math.isfinite(number):
        raise DataError(
            f"`{column}` is {_shown(value)}, not a finite number",
            remedy=f"write a number from {least:g} to {most:g}",
        )
    if not least <= number <= most:
        what = f"`{column}` is {_shown(value)}; it must be between {least:g} and {most:g}"
        raise DataError(what, remedy="correct it, or leave the column out")
    return number


def _transcript(text: str, column: str) -> tuple[Message, ...]:
    """The turns of an HH transcript; a last `Assistant:` with nothing behind it asks for the answer."""
    _, *parts = TRANSCRIPT.split(text)
    turns = list(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
    if turns[-1] == ("Assistant", ""):
        turns.pop()
    return tuple(
        Message("user" if who == "Human" else "assistant", text_of(said, column)) for who, said in turns
    )


def id_of(value: object) -> str:
    """A row's id as text: one printable line, since it stands in file names, tables and headings; empty when
    it has none."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"`id` is {_shown(value)}", remedy="write a text or a whole number")
    id = value if isinstance(value, BadCell) else str(value)
    if len(id) > LONGEST_ID or one_line(id) != id:
        raise DataError(
            f"`id` is {_shown(value)}: an id is one line of at most {LONGEST_ID} printable characters",
            remedy="give another id, or none",
        )
    return text_of(id, "id")


def _tags(value: object) -> tuple[str, ...]:
    _refuse_bad(value, "tags")
    if isinstance(value, str) and _json_list(value) is None:
        return tuple(tag.strip() for tag in value.split(",") if tag.strip())
    return strings_of(value, "tags")


def _json_list(text: str) -> list[str] | None:
    if not text.lstrip().startswith('["'):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if all(isinstance(item, str) for item in found) else None


def _refuse_bad(value: object, column: str) -> None:
    if isinstance(value, BadCell):
        raise DataError(f"`{column}` {value.what}", remedy=value.remedy)


def _text_remedy(value: object) -> str:
    """What would be right, for a value that is no text."""
    if isinstance(value, bool | int | float):
        return "put it in quotation marks"
    if isinstance(value, dict) and "response" in value:
        return "this looks like a completion of raw UltraFeedback: put such objects in a list `completions`"
    return 'write a text, or messages: [{"role": "user", "content": "…"}]'


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):  # nested deeply, or a number of thousands of digits
        text = f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= 40 else text[:37] + "…"
