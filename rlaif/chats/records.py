"""What is kept of a conversation with a served policy, as typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from rlaif.types import Message

__all__ = ["Answer", "Exchange", "Flag", "Preference", "Vote", "now", "parse_time", "written_time"]

Thumb = Literal["up", "down"]
BLOCKED = "content_filter"


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice of a response, as the client received it.

    Attributes:
        extra: What else the choice said: `moderation`, `label`, `reward`.
    """

    choice: int
    text: str
    finish: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def blocked(self) -> bool:
        """Whether moderation ended it."""
        return self.finish == BLOCKED

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `of` is the way back."""
        return {"choice": self.choice, "text": self.text, "finish": self.finish, **self.extra}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Answer:
        """From JSON."""
        extra = {name: value for name, value in values.items() if name not in ("choice", "text", "finish")}
        return cls(int(values["choice"]), str(values["text"]), str(values["finish"]), extra)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its response.

    Attributes:
        id: The response's, `chatcmpl-…`.
        user: A salted hash of the request's `user`; None where it named none.
        model: As the request named it.
        policy: Digest of what answered: the adapter's files, or the base.
        directives: Digest of the directives that were in force; None without any.
    """

    id: str
    time: datetime
    model: str
    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]
    user: str | None = None
    policy: str = ""
    directives: str | None = None
    usage: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def answer(self, choice: int) -> Answer | None:
        """The choice of that number, if there is one."""
        return next((each for each in self.answers if each.choice == choice), None)


@dataclass(frozen=True, slots=True)
class Vote:
    """A thumb for a choice; None takes an earlier one back."""

    exchange: str
    choice: int
    vote: Thumb | None
    time: datetime


@dataclass(frozen=True, slots=True)
class Flag:
    """What somebody reported about a choice."""

    exchange: str
    choice: int
    text: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Preference:
    """Which of two responses to one conversation is better, or that neither is."""

    chosen: str
    rejected: str
    tie: bool
    time: datetime


def now() -> datetime:
    """This moment, UTC."""
    return datetime.now(UTC)


def written_time(time: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, which sorts as time does: `2026-11-28T01:40:00.123Z`."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """The way back from `written_time`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
