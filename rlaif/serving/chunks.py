"""What an upstream streams, read without trust: server-sent events, and in them the pieces of an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any

from rlaif.engines.api.wire import Malformed, read_counts
from rlaif.serving.work import Delta, Ended, Finish, Finished
from rlaif.text import well_formed

__all__ = ["DONE", "Chunks", "UpstreamError", "error_of", "event_data", "whole_body"]

DONE = "[DONE]"
LONGEST_EVENT = 1 << 20
"""Bytes of one event, or of the line that it begins with."""
LONGEST_BODY = 32 << 20
"""Bytes of an answer that comes in one piece."""
FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
}
"""Why a choice ended, in the words of several servers."""


class UpstreamError(Exception):
    """The upstream told an error in place of a piece of the answer."""


async def event_data(pieces: AsyncIterator[bytes]) -> AsyncGenerator[str]:
    """The data of each server-sent event, as the HTML standard reads them; comments and other fields are left
    out, and an event that the stream ends in is given out too.

    Raises:
        Malformed: An event is longer than `LONGEST_EVENT`.
    """
    buffer, data = bytearray(), list[bytes]()
    async for piece in pieces:
        buffer += piece
        *lines, rest = bytes(buffer).split(b"\n")
        buffer = bytearray(rest)
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data).decode("utf-8", "replace")
                data = []
        if len(buffer) + sum(map(len, data)) > LONGEST_EVENT:
            raise Malformed("it sent an event that is too long")
    if buffer.startswith(b"data:"):
        data.append(bytes(buffer[5:]).removeprefix(b" "))
    if data:
        yield b"\n".join(data).decode("utf-8", "replace").strip()


async def whole_body(pieces: AsyncIterator[bytes]) -> bytes:
    """All of a body.

    Raises:
        Malformed: It is longer than `LONGEST_BODY`.
    """
    found = bytearray()
    async for piece in pieces:
        found += piece
        if len(found) > LONGEST_BODY:
            raise Malformed("it sent a body that is too long")
    return bytes(found)


class Chunks:
    """The pieces of one answer, turned into events.

    Args:
        choices: As many were asked for.
    """

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._counts: dict[str, int] = {}

    def read(self, data: str) -> Iterator[Delta | Ended]:
        """The events of one piece: a chunk of a stream, or the whole answer of a server that does not stream.

        Raises:
            Malformed: It makes no sense.
            UpstreamError: It is an error.
        """
        try:
            payload = json.loads(data)
        except (ValueError, RecursionError):
            raise Malformed("it sent what is not JSON") from None
        if not isinstance(payload, dict):
            raise Malformed("it sent what is no object")
        if payload.get("error"):
            raise UpstreamError(error_of(payload)[0])
        self._counts = read_counts(payload) or self._counts
        choices = payload.get("choices")
        if not isinstance(choices, list):
            raise Malformed("it sent a piece without choices")
        for choice in choices:
            yield from self._choice(choice)

    def finish(self) -> Finished:
        """The end of the answer.

        Raises:
            Malformed: A choice is not complete, or there is none.
        """
        if not self._ended or self._begun - self._ended:
            raise Malformed("its answer was cut off")
        prompt, completion = self._counts.get("prompt"), self._counts.get("completion")
        return Finished(prompt or 0, completion or 0, counted=prompt is not None and completion is not None)

    def _choice(self, choice: Any) -> Iterator[Delta | Ended]:
        index = choice.get("index", 0) if isinstance(choice, dict) else None
        if not isinstance(index, int) or not 0 <= index < self._choices:
            raise Malformed("it sent a choice that was not asked for")
        self._begun.add(index)
        text = _text(choice)
        if text:
            if index in self._ended:
                raise Malformed("it sent text after the end of a choice")
            yield Delta(index, well_formed(text))
        finish = choice.get("finish_reason")
        if finish is not None and index not in self._ended:
            if not isinstance(finish, str) or finish not in FINISHES:
                raise Malformed(f"it ended a choice by {str(finish)[:40]!r}")
            self._ended.add(index)
            yield Ended(index, FINISHES[finish])


def _text(choice: dict[str, Any]) -> str:
    """What a choice adds: `delta` of a stream, `message` of a whole answer."""
    added = choice.get("delta") or choice.get("message") or {}
    text = (added.get("content") or added.get("refusal") or "") if isinstance(added, dict) else None
    if not isinstance(text, str):
        raise Malformed("it sent text that is none")
    return text


def error_of(payload: Any) -> tuple[str, str | None, str | None]:
    """Message, field and code of an error as OpenAI's API has it, or as several other servers write it; an
    empty message where there is none."""
    error = payload.get("error") or payload if isinstance(payload, dict) else None
    if isinstance(error, str):
        return error, None, None
    if not isinstance(error, dict):
        return "", None, None
    said = error.get("message") or error.get("detail") or ""
    param, code = (value if isinstance(value := error.get(name), str) else None for name in ("param", "code"))
    return (said if isinstance(said, str) else json.dumps(said)), param, code
