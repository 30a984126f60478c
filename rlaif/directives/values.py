"""A directive: when it holds, and what it makes of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Any, Literal

from rlaif.digest import digest
from rlaif.types import Answers, Principle

__all__ = ["CATEGORIES", "Condition", "Directive", "Directives", "Kind", "Side", "today"]

Kind = Literal["always", "regex", "principle", "moderation", "judge"]
CATEGORIES = ("principle", "moderation")
"""Conditions that name a category of a moderator."""


def today() -> date:
    """The day by which directives begin and end, UTC."""
    return datetime.now(UTC).date()


@dataclass(frozen=True, slots=True)
class Condition:
    """When a directive applies.

    Attributes:
        text: The pattern, the category or the question; empty for `always`.
        threshold: Score (of a moderator) or probability (of the judge's yes) from which on it holds; the
            moderator's own, or 0.5, when left out.
    """

    kind: Kind
    text: str = ""
    threshold: float | None = None

    def meaning(self) -> list[Any]:
        """The condition as JSON values."""
        return [self.kind, self.text, self.threshold]

    def __str__(self) -> str:
        least = "" if self.threshold is None else f" from {self.threshold:g}"
        return "always" if self.kind == "always" else f"{self.kind} {self.text}{least}"


@dataclass(frozen=True, slots=True)
class Side:
    """One of two opposite answers: how it is headed, and the prior that it is given under."""

    label: str
    prior: str


@dataclass(frozen=True, slots=True)
class Directive:
    """One rule of the operator.

    Attributes:
        prior: System text that the policy must follow; empty where there is none.
        answer: The answer in place of the model's; empty where there is none.
        sides: Two, where both are shown; else none.
        blocked_message: What stands in place of the rest of an answer that moderation stopped.
        since: First day on which it holds, UTC.
        until: Last day on which it holds, UTC.
        question: Asks a judge of one answer whether it complies; its answers are `answers`.
        answer_prefix: How the judge's answer begins; the template's own when empty.
    """

    id: str
    when: Condition
    prior: str = ""
    answer: str = ""
    sides: tuple[Side, ...] = ()
    blocked_message: str = ""
    since: date | None = None
    until: date | None = None
    question: str = ""
    answers: Answers | None = None
    answer_prefix: str = ""

    def active(self, on: date) -> bool:
        """Whether it holds on a day."""
        return (self.since is None or self.since <= on) and (self.until is None or on <= self.until)

    @property
    def does(self) -> str:
        """What it makes of an answer, in a word or two."""
        if self.answer:
            return "answer"
        if self.sides:
            return "both sides"
        return "prior" if self.prior else "blocked message"

    def principle(self) -> Principle:
        """The question about compliance as a judge is asked it."""
        lead = self.answer_prefix or None
        return Principle(self.id, question=self.question, answers=self.answers, answer_prefix=lead)

    def meaning(self) -> dict[str, Any]:
        """The directive as JSON values, for the digest."""
        return {
            "id": self.id,
            "when": self.when.meaning(),
            "prior": self.prior,
            "answer": self.answer,
            "sides": [[side.label, side.prior] for side in self.sides],
            "blocked_message": self.blocked_message,
            "from": str(self.since or ""),
            "until": str(self.until or ""),
            "question": self.question,
            "answers": [self.answers.good, self.answers.bad] if self.answers else [],
            "answer_prefix": self.answer_prefix,
        }


@dataclass(frozen=True)
class Directives:
    """A named list of directives, in the order of their file.

    Attributes:
        language: BCP 47 tag; chooses the templates by which a judge is asked.
    """

    name: str
    directives: tuple[Directive, ...]
    language: str = "en"

    @cached_property
    def digest(self) -> str:
        """Digest of the meaning: name, comments and the order of keys do not change it; a changed word
        does."""
        return digest([self.language, [each.meaning() for each in self.directives]])

    def active(self, on: date) -> tuple[Directive, ...]:
        """Those that hold on a day."""
        return tuple(each for each in self.directives if each.active(on))

    def of_kind(self, *kinds: Kind) -> tuple[Directive, ...]:
        """Those whose condition is of such a kind, whatever the day."""
        return tuple(each for each in self.directives if each.when.kind in kinds)

    def by_id(self) -> Mapping[str, Directive]:
        """The directives by their ids."""
        return {each.id: each for each in self.directives}
