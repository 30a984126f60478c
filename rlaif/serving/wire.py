"""Requests and answers of the chat completions API. A field that is not known, or that would have no effect,
is refused instead of ignored."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from rlaif.serving.work import Delta, Ended, Finished
from rlaif.types import Message, Role

__all__ = ["ChatMessage", "ChatRequest", "ChatCompletion", "Form", "Whole", "chunk", "event"]

MOST_MESSAGES = 4_096
MOST_STOPS, LONGEST_STOP = 16, 256
MOST_CHOICES = 128
MOST_FIELDS = 64
"""Fields of an object in a request."""
MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
LEAST_SEED, GREATEST_SEED = -(2**63), 2**63 - 1

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def _whole(value: object) -> object:
    """JSON has one kind of number: 5.0 is the integer 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_whole)
Tokens = Annotated[int, Field(ge=1), Whole]
Choices = Annotated[int, Field(ge=1, le=MOST_CHOICES), Whole]
Seed = Annotated[int, Field(ge=LEAST_SEED, le=GREATEST_SEED), Whole]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]


def _few(value: object) -> object:
    """A body of a megabyte can have a hundred thousand fields, and a problem in each."""
    if isinstance(value, dict) and len(value) > MOST_FIELDS:
        what = "Object should have at most {most} fields, not {count}"
        raise PydanticCustomError("too_many_fields", what, {"most": MOST_FIELDS, "count": len(value)})
    return value


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=LONGEST_KEY)], Annotated[str, Field(max_length=LONGEST_VALUE)]],
    BeforeValidator(_few),
]


class Form(BaseModel):
    """An object in a request. Of a list in it the first problem is told, as of what has too many fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _of_few_fields(cls, value: object) -> object:
        return _few(value)


class TextPart(Form):
    """A part of a message that is made of parts."""

    type: Literal["text"]
    text: str


class ChatMessage(Form):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    def message(self) -> Message:
        """The turn as the rest of rlaif has it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return Message(ROLES[self.role], text)


class StreamOptions(Form):
    """How a stream is sent."""

    include_usage: bool = False


class ChatRequest(Form):
    """The body of `POST /v1/chat/completions`.

    Attributes:
        n_best: Sample so many completions, and answer with the one that the reward model scores highest.
        seed: Fixes the draw; drawn at random when left out.
        store: Consent to keep this exchange, where the server collects any.
    """

    model: str
    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    seed: Seed | None = None
    n: Choices | None = None
    n_best: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    store: bool | None = None
    metadata: Annotated[Metadata, Field(max_length=MOST_METADATA)] | None = None
    logprobs: Literal[False] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages as the rest of rlaif has them."""
        return tuple(each.message() for each in self.messages)

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end a completion."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def most_tokens(self) -> int | None:
        """The longest completion that is asked for, in tokens."""
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it used."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatCompletion:
    """The answer to one request, while it is put together.

    Args:
        id: Of the request.
        model: As the request named it.
        beside: What the answer has beside OpenAI's fields.
        labels: What stands above a choice, by its number.
    """

    def __init__(
        self,
        id: str,
        model: str,
        *,
        beside: Mapping[str, Any] = MappingProxyType({}),
        labels: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        self.beside, self.labels = beside, labels
        self.head = {"id": f"chatcmpl-{id}", "created": int(time.time()), "model": model}
        self.texts: dict[int, str] = {}
        self.ended: dict[int, Ended] = {}
        self.usage: dict[str, int] | None = None

    def add(self, event: Delta | Ended | Finished) -> None:
        """Take in what the decoder told."""
        match event:
            case Delta(choice, text):
                self.texts[choice] = self.texts.get(choice, "") + text
            case Ended():
                self.ended[event.choice] = event
            case Finished(prompt_tokens, completion_tokens, counted=True):
                self.usage = {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                }

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": choice,
                "message": {"role": "assistant", "content": self.texts.get(choice, ""), "refusal": None},
                "logprobs": None,
                "finish_reason": ended.finish,
            }
            | _found(ended)
            | self._label(choice)
            for choice, ended in sorted(self.ended.items())
        ]
        body = {**self.head, "object": "chat.completion", "choices": choices, "usage": self.usage}
        return {**body, **self.beside}

    def piece(self, told: Delta | Ended, *, first: bool, with_usage: bool) -> dict[str, Any]:
        """A piece of the streamed answer; see `chunk`. One that ends a choice has what stands beside."""
        body = chunk(self.head, told, first=first, with_usage=with_usage)
        body["choices"][0] |= self._label(told.choice)
        return {**body, **self.beside} if isinstance(told, Ended) else body

    def _label(self, choice: int) -> dict[str, str]:
        return {"label": self.labels[choice]} if choice in self.labels else {}


def chunk(head: Mapping[str, Any], told: Delta | Ended, *, first: bool, with_usage: bool) -> dict[str, Any]:
    """One piece of a streamed answer.

    Args:
        first: Whether it is the first of its choice, which names the role.
        with_usage: Whether a last chunk will hold the usage, so that this one says it has none.
    """
    delta: dict[str, Any] = {"role": "assistant"} if first else {}
    if isinstance(told, Delta):
        delta["content"] = told.text
    finish = told.finish if isinstance(told, Ended) else None
    choice = {"index": told.choice, "delta": delta, "logprobs": None, "finish_reason": finish}
    choice |= _found(told) if isinstance(told, Ended) else {}
    body = {**head, "object": "chat.completion.chunk", "choices": [choice]}
    return body | ({"usage": None} if with_usage else {})


def event(body: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _found(ended: Ended) -> dict[str, Any]:
    """What a choice has beside OpenAI's fields: its reward, or what it was blocked for."""
    found: dict[str, Any] = {} if ended.reward is None else {"reward": ended.reward}
    if ended.flag is not None:
        found["moderation"] = {"category": ended.flag.category, "score": ended.flag.score}
    return found
