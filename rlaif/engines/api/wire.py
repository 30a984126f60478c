"""What goes over the wire to an OpenAI-compatible server, and what comes back, read without trust.

A reply is plain JSON from a stranger: every field may be missing, of another type, or not a number.
`read_reply` takes what it can and raises `Malformed` for the rest; nothing here ever guesses an answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from rlaif.engines.chat import ASSISTANT, HUMAN, TURN_MARKER, ZERO_WIDTH
from rlaif.text import well_formed
from rlaif.types import Message

__all__ = [
    "Choice",
    "Malformed",
    "Reply",
    "Top",
    "chat_turns",
    "fold_turns",
    "inert",
    "read_counts",
    "read_reply",
    "render_plain",
]

CONTROL = re.compile(
    r"<[|｜][^|｜<>\n]{1,64}[|｜]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|</?think>"
)
"""Control strings of the common model families. The server's tokenizer is not known here, and most servers
tokenise what a message says together with their template, so that a completion which writes `<|im_end|>`
would end its own quotation."""


LARGEST_COUNT = 2**53
"""Whole numbers from here on are taken for nonsense: a float would not hold them exactly."""


class Malformed(Exception):
    """A reply that is not what the API promises; `reason` is one word or two."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Top(NamedTuple):
    """One of the most probable tokens at a position. `text` is bytes: a token may hold part of a
    character."""

    text: bytes
    logprob: float


class Choice(NamedTuple):
    """One answer.

    Attributes:
        top: The most probable tokens at its first position; `None` when the server sent none.
        missing: Why there is no text, where the server sent none: `tool_calls`, `refusal` or `no_content`.
    """

    text: str
    finish: str
    top: tuple[Top, ...] | None
    missing: str = ""


class Reply(NamedTuple):
    """All distinct answers of one response, by index, and the token counts that came with them (see
    `read_counts`)."""

    choices: tuple[Choice, ...]
    counts: dict[str, int]


def inert(text: str) -> str:
    """`text` with a zero-width space inside whatever looks like a control string of a chat template."""
    return CONTROL.sub(lambda match: match.group()[0] + ZERO_WIDTH + match.group()[1:], text)


def chat_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the chat API takes them."""
    return [{"role": message.role, "content": inert(message.content)} for message in messages]


def fold_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation for a server that cannot continue an assistant's turn.

    The last line of that turn (`Answer:`) is put to the user; what is before it stays the assistant's.
    """
    if not messages or messages[-1].role != "assistant":
        return tuple(messages)
    body, _, last = messages[-1].content.rstrip().rpartition("\n")
    if body.strip():
        return (*messages[:-1], Message("assistant", body.rstrip()), Message("user", last))
    if len(messages) > 1 and messages[-2].role == "user":
        return (*messages[:-2], Message("user", f"{messages[-2].content}\n{last}"))
    return (*messages[:-1], Message("user", last))


def render_plain(messages: Sequence[Message]) -> str:
    """The conversation in the plain form of base models (Bai et al. 2022), for the completions API."""
    lead = {"system": "\n\n", "user": f"{HUMAN} ", "assistant": f"{ASSISTANT} "}
    parts = [
        lead[each.role] + TURN_MARKER.sub(rf"\1\2{ZERO_WIDTH}", inert(each.content)) for each in messages
    ]
    if not messages or messages[-1].role != "assistant":
        parts.append(ASSISTANT)
    text = "".join(parts)
    return text[2:] if messages and messages[0].role == "system" else text


def read_reply(payload: object) -> Reply:
    """A decoded response body.

    Two choices of the same index must say the same, and count once.

    Raises:
        Malformed: `not_an_object`, `error_in_body`, `no_choices`, `bad_choice` or `contradictory_answers`.
    """
    if not isinstance(payload, dict):
        raise Malformed("not_an_object")
    listed = payload.get("choices")
    if not isinstance(listed, list) or not listed:
        raise Malformed("error_in_body" if payload.get("error") else "no_choices")
    choices: dict[int, Choice] = {}
    for position, item in enumerate(listed):
        if not isinstance(item, dict):
            raise Malformed("bad_choice")
        index = item.get("index")
        choice = _read_choice(item)
        if choices.setdefault(index if _is_count(index) else position, choice) != choice:
            raise Malformed("contradictory_answers")
    return Reply(choices=tuple(choices[index] for index in sorted(choices)), counts=read_counts(payload))


def read_counts(payload: object) -> dict[str, int]:
    """`prompt`, `completion` and `cached` tokens, those that a response body tells."""
    usage = payload.get("usage") if isinstance(payload, dict) else None
    if not isinstance(usage, dict):
        return {}
    details = usage.get("prompt_tokens_details")
    told = {
        "prompt": usage.get("prompt_tokens"),
        "completion": usage.get("completion_tokens"),
        "cached": details.get("cached_tokens") if isinstance(details, dict) else None,
    }
    return {name: value for name, value in told.items() if _is_count(value)}


def _read_choice(item: Mapping[str, Any]) -> Choice:
    told = item.get("finish_reason")
    finish = told if isinstance(told, str) else ""
    message = item.get("message", item)
    if not isinstance(message, dict):
        raise Malformed("bad_choice")
    text, missing = _read_text(message, finish)
    return Choice(text=well_formed(text), finish=finish, top=_read_top(item.get("logprobs")), missing=missing)


def _read_text(message: Mapping[str, Any], finish: str) -> tuple[str, str]:
    """The answer's text, and why there is none where the server sent none: an absent text is no empty answer.

    What a server split off as reasoning is put back in front of it, between the tags it came in. Reasoning
    that was cut is left open.
    """
    text = message.get("content", message.get("text"))
    thinking = message.get("reasoning_content") or message.get("reasoning")
    thought = isinstance(thinking, str) and bool(thinking.strip())
    if text is None and "content" not in message and not thought:
        raise Malformed("bad_choice")
    if not isinstance(text, str | None):
        raise Malformed("bad_choice")
    if thought and not text and finish == "length":
        return f"<think>{thinking}", ""
    if text is None:
        return "", "tool_calls" if message.get("tool_calls") else "refusal" if message.get(
            "refusal"
        ) else "no_content"
    return (f"<think>{thinking}</think>{text}" if thought else text), ""


def _read_top(logprobs: object) -> tuple[Top, ...] | None:
    """The first position, in the form of the chat API (`content`) or of the completions API
    (`top_logprobs`)."""
    if not isinstance(logprobs, dict):
        return None
    content, mappings = logprobs.get("content"), logprobs.get("top_logprobs")
    if isinstance(content, list) and content and isinstance(content[0], dict):
        listed = content[0].get("top_logprobs")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        found = [Top(_token_bytes(entry), _number(entry.get("logprob"))) for entry in entries]
    elif isinstance(mappings, list) and mappings and isinstance(mappings[0], dict):
        found = [
            Top(str(token).encode("utf-8", "replace"), _number(value)) for token, value in mappings[0].items()
        ]
    else:
        return None
    return tuple(sorted(found, key=lambda top: -top.logprob)) or None


def _token_bytes(entry: Mapping[str, Any]) -> bytes:
    raw = entry.get("bytes")
    if isinstance(raw, list) and raw and all(_is_count(value) and value < 256 for value in raw):
        return bytes(raw)
    return str(entry.get("token", "")).encode("utf-8", "replace")


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_COUNT


def _number(value: object) -> float:
    """`value`, or NaN where it is no number: also a whole number of hundreds of digits, which no float can
    hold."""
    if isinstance(value, int) and abs(value) > LARGEST_COUNT:
        return math.nan
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
