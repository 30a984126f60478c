"""A request as it is passed to an upstream: the form that clients may send, and what is sent on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from rlaif.engines.api.api_key import ApiKey
from rlaif.engines.api.wire import chat_turns
from rlaif.engines.base import Sampling
from rlaif.serving.refusal import Refusal
from rlaif.serving.wire import ChatRequest, Whole
from rlaif.serving.withheld import Withheld
from rlaif.serving.work import Event, Finished, Job
from rlaif.types import Message

__all__ = ["PassedJob", "PassedRequest", "UpstreamSettings", "pass_on"]

Penalty = Annotated[float, Field(ge=-2, le=2)]
OURS = frozenset({"messages", "n_best", "stream", "stream_options", "store", "metadata"})
"""Fields that mean something here, and are not sent on as they came: `store` is consent to keep the exchange
here, and none to keep it elsewhere."""


class PassedRequest(ChatRequest):
    """The body of `POST /v1/chat/completions` before an upstream: fields that are not known here are sent on,
    and the upstream says what it makes of them. Those whose answer is more than text are refused."""

    model_config = ConfigDict(extra="allow")

    n_best: Annotated[int, Field(ge=1, le=1), Whole] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_logprobs: None = None
    tools: None = None
    tool_choice: None = None
    parallel_tool_calls: None = None
    functions: None = None
    function_call: None = None
    modalities: None = None
    audio: None = None


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """Where requests are sent.

    Attributes:
        url: Mostly ending in `/v1`.
        models: The names that may be asked for; all that the upstream knows when there are none.
        timeout: Seconds that the upstream may be silent.
        rows: Completions that are open there at once.
        queue: Requests that wait here, past which one is refused.
    """

    url: str
    key: ApiKey = field(default_factory=ApiKey)
    models: tuple[str, ...] = ()
    timeout: float = 120.0
    rows: int = 256
    queue: int = 64


@dataclass(eq=False, slots=True)
class PassedJob(Job):
    """A request that an upstream answers; `role` is the model's name there.

    Attributes:
        body: What is sent, as JSON.
        used: What the upstream says it used, at the end.
        withheld: Hears of the answer in place of `emit`, where answers are moderated.
    """

    body: bytes = b""
    used: Finished | None = None
    withheld: Withheld | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, as far as the upstream told."""
        return self.used.prompt_tokens if self.used else 0

    @property
    def tokens(self) -> int:
        """Tokens of all completions, as far as the upstream told."""
        return self.used.completion_tokens if self.used else 0


def pass_on(
    body: ChatRequest, messages: Sequence[Message], emit: Callable[[Event], None], *, most_tokens: int
) -> PassedJob:
    """The job that sends a request on. The upstream is always asked for a stream, and for its usage.

    Args:
        messages: The conversation that is sent. Control strings in it are made inert.
        most_tokens: Longest completion that may be asked for, and the length where the request says nothing.

    Raises:
        Refusal: It asks for more than may be, or cannot be written as JSON.
    """
    if (body.most_tokens or 0) > most_tokens:
        what = f"at most {most_tokens} tokens may be asked for here, not {body.most_tokens}"
        raise Refusal(400, what, param="max_tokens")
    asked = dict[str, Any](messages=chat_turns(messages), stream=True, stream_options={"include_usage": True})
    if body.most_tokens is None:
        asked["max_tokens"] = most_tokens
    try:
        given = body.model_dump(exclude_unset=True, exclude=set(OURS))
        given = {name: value for name, value in given.items() if value is not None}
        raw = json.dumps(given | asked, allow_nan=False)
    except (ValueError, RecursionError):
        raise Refusal(
            400, "a field holds NaN, Infinity or too many levels, which cannot be sent on"
        ) from None
    sampling = Sampling(
        max_new_tokens=body.most_tokens or most_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=body.stops,
    )
    return PassedJob(
        role=body.model,
        ids=(),
        messages=tuple(messages),
        sampling=sampling,
        seed=body.seed or 0,
        emit=emit,
        samples=body.n or 1,
        body=raw.encode(),
    )
