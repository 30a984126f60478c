"""The forms of what the server answers, for its description: `/openapi.json` shows them, and the fuzzer holds
every answer against them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ChatAnswer",
    "ChatChunk",
    "DeletedAnswer",
    "ErrorAnswer",
    "FeedbackAnswer",
    "Health",
    "InfoAnswer",
    "ModelList",
    "ModerationAnswer",
    "PreferenceAnswer",
]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ErrorDetail(_Answer):
    """What was wrong."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field of the request that it is about.")
    code: str | None = Field(description="A name for programs to act on.")


class ErrorAnswer(_Answer):
    """An answer that is none."""

    error: ErrorDetail


class Usage(_Answer):
    """What was used."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0, description="Sampled tokens of all completions.")
    total_tokens: int = Field(ge=0)


class AnswerMessage(_Answer):
    """What the model wrote."""

    role: Literal["assistant"]
    content: str
    refusal: None


class AnswerDelta(_Answer):
    """What was added."""

    role: Literal["assistant"] = Field(default="assistant", description="In the first piece of a choice.")
    content: str = ""


class ModerationOfChoice(_Answer):
    """Why a choice was ended."""

    category: str
    score: float


class AppliedDirectives(_Answer):
    """Which directives shaped the answer."""

    digest: str
    applied: list[str]


class _Choice(_Answer):
    index: int = Field(ge=0)
    logprobs: None
    reward: float | None = Field(default=None, description="The reward model's score, with `n_best`.")
    moderation: ModerationOfChoice | None = None
    label: str | None = Field(default=None, description="Whose side it takes, where there are several.")


class AnswerChoice(_Choice):
    """One completion."""

    message: AnswerMessage
    finish_reason: Literal["stop", "length", "content_filter"]


class ChunkChoice(_Choice):
    """A piece of one completion."""

    delta: AnswerDelta
    finish_reason: Literal["stop", "length", "content_filter"] | None


class _Chat(_Answer):
    id: str
    created: int = Field(ge=0, description="Seconds since 1970.")
    model: str
    stored: bool | None = Field(default=None, description="Whether the exchange was kept.")
    directives: AppliedDirectives | None = None


class ChatAnswer(_Chat):
    """A whole answer."""

    object: Literal["chat.completion"]
    choices: list[AnswerChoice]
    usage: Usage | None = Field(description="None where an upstream does not tell it.")


class ChatChunk(_Chat):
    """A piece of a streamed answer."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice] = Field(description="Empty in the last one, where the usage was asked for.")
    usage: Usage | None = None


class Model(_Answer):
    """A name that requests may use."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str | None = Field(default=None, description="As an upstream tells it, like the next two.")
    parent: str | None = Field(default=None, description="The base of an adapter.")
    max_model_len: int | None = None


class ModelList(_Answer):
    """All of them."""

    object: Literal["list"]
    data: list[Model]


class ModerationResult(_Answer):
    """How one text or conversation was scored."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]


class ModerationAnswer(_Answer):
    """The scores of what was sent, in its order."""

    id: str
    model: str
    results: list[ModerationResult]


class CollectInfo(_Answer):
    """What is kept, and what people are told before."""

    consent: str
    retain_days: float | None


class ModerationInfo(_Answer):
    """What is moderated."""

    categories: list[str]


class DirectivesInfo(_Answer):
    """The directives in force."""

    digest: str
    ids: list[str]


class InfoAnswer(_Answer):
    """What the server has; null for a part that it lacks."""

    models: list[str] = Field(description="Those that are known without asking an upstream.")
    collect: CollectInfo | None
    moderation: ModerationInfo | None
    directives: DirectivesInfo | None


class FeedbackAnswer(_Answer):
    """A vote or a flag that was stored."""

    id: str
    object: Literal["chat.feedback"]
    vote: Literal["up", "down"] | None
    flag: str | None
    choice: int


class PreferenceAnswer(_Answer):
    """A comparison that was stored."""

    object: Literal["chat.preference"]
    chosen: str
    rejected: str
    tie: bool


class DeletedAnswer(_Answer):
    """An exchange that was removed."""

    id: str
    object: Literal["chat.deleted"]
    deleted: Literal[True]


class Health(_Answer):
    """It serves."""

    status: Literal["ok"]
