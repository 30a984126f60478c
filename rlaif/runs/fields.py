"""What the cells of a row may be: text, chat messages, documents, completions. Each function takes a cell and says what is wrong.

They raise `DataError` about one cell; the readers add the row's place and go on to the next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlaif.errors import DataError
from rlaif.types import Message, Prompt, Role

__all__ = ["completion_of", "conversation_of", "messages_of", "prompt_of", "strings_of", "text_of"]

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


def text_of(value: object, column: str) -> str:
    """A text that is there, not blank, and can be written as UTF-8."""
    if value is None:
        raise DataError(f"`{column}` is missing", remedy="fill it in")
    if not isinstance(value, str):
        raise DataError(f"`{column}` is {_shown(value)}, not text", remedy="put it in quotation marks")
    if not value.strip():
        raise DataError(f"`{column}` is empty", remedy="fill it in, or remove the row")
    if "\0" in value:
        raise DataError(f"`{column}` holds a NUL character", remedy="remove it")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"`{column}` holds half a character (a lone surrogate)", remedy="write the character whole, as UTF-8")
    return value


def messages_of(value: object, column: str) -> tuple[Message, ...]:
    """A conversation: text is one user turn, a list holds `{"role", "content"}` objects."""
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


def completion_of(value: object, column: str) -> tuple[tuple[Message, ...], str]:
    """A completion: text, or messages that end with the assistant's turn (the turns before it come first in the result)."""
    if not isinstance(value, list):
        return (), text_of(value, column)
    messages = messages_of(value, column)
    if messages[-1].role != "assistant":
        raise DataError(f"the last turn of `{column}` is the {messages[-1].role}'s", remedy="end it with the assistant's turn")
    return messages[:-1], messages[-1].content


def strings_of(value: object, column: str) -> tuple[str, ...]:
    """No, one or several texts; a text that is a JSON list of texts (as in a CSV cell) is read as that list."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        found = _json_list(value)
        return (text_of(value, column),) if found is None else tuple(found)
    if not isinstance(value, list):
        raise DataError(f"`{column}` is {_shown(value)}", remedy="write a text or a list of texts")
    return tuple(text_of(item, f"{column}[{position}]") for position, item in enumerate(value))


def prompt_of(messages: tuple[Message, ...], row: Mapping[str, Any], context_column: str) -> Prompt:
    """The prompt of a row: its messages with the row's documents, tags (its `category` is one) and `id`.

    Without an id it is named after its fingerprint.
    """
    category = row.get("category")
    tags = dict.fromkeys(_tags(row.get("tags")) + (strings_of(category, "category") if isinstance(category, str) else ()))
    prompt = Prompt(id="", messages=messages, context=strings_of(row.get(context_column), context_column), tags=tuple(tags))
    return Prompt(id=_id(row.get("id")) or f"p-{prompt.fingerprint()}", messages=messages, context=prompt.context, tags=prompt.tags)


def _message(item: object, column: str) -> Message:
    if not isinstance(item, dict):
        raise DataError(f"`{column}` is {_shown(item)}, not a message", remedy='write {"role": "user", "content": "…"}')
    role = item.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise DataError(f"`{column}.role` is {_shown(role)}", remedy=f"use one of {', '.join(ROLES)}")
    return Message(ROLES[role], text_of(item.get("content"), f"{column}.content"))


def _id(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"`id` is {_shown(value)}", remedy="write a text or a whole number")
    return text_of(str(value), "id")


def _tags(value: object) -> tuple[str, ...]:
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


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "…"
