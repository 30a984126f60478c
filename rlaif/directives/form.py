"""What a file of directives may hold: pydantic models of its YAML, which read the tree of `rlaif.yaml_text`.
What must hold between keys is in `rlaif.directives.problems`."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from rlaif.constitution.form import ID, text_of
from rlaif.directives.patterns import compiled
from rlaif.directives.values import Condition, Directive, Directives, Side
from rlaif.types import Answers

__all__ = ["LONGEST_TEXT", "SOURCES", "ConditionForm", "DirectiveForm", "DirectivesForm", "SideForm"]

LONGEST_TEXT = 20_000
"""Characters of a prior or of an answer."""
LANGUAGE = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$"
SOURCES = ("always", "regex", "principle", "moderation", "judge")
"""Keys of `when`, one of which is there."""
PROBABILITY = re.compile(r"(0(\.\d*)?|1(\.0*)?|\.\d+)")


def _wrong(said: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{said}", {"said": said})


def _bounded(text: str) -> str:
    if len(text) > LONGEST_TEXT:
        raise _wrong(f"has {len(text):,} characters, and at most {LONGEST_TEXT:,} are read")
    return text


def _true(value: object) -> bool:
    if text_of(value) != "true":
        raise _wrong("is not `true`")
    return True


def _share(value: object) -> float:
    text = text_of(value)
    if not PROBABILITY.fullmatch(text):
        raise _wrong("is no number from 0 to 1")
    return float(text)


def _day(value: object) -> date:
    text = text_of(value)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise _wrong(f"is no day: {text[:40]!r} is not written as 2026-12-31") from None


def _pattern(text: str) -> str:
    try:
        compiled(text)
    except ValueError as error:
        raise _wrong(str(error)) from None
    return text


def _told_apart(answers: list[str]) -> list[str]:
    short, long = sorted((answer.casefold() for answer in answers), key=len)
    if long.startswith(short):
        raise _wrong("begin alike, so that a judge cannot tell them apart")
    return answers


Text = Annotated[str, AfterValidator(_bounded), BeforeValidator(text_of)]
Day = Annotated[date, BeforeValidator(_day)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ConditionForm(_Form):
    """When a directive applies; one of its first five keys is there."""

    always: Annotated[bool, BeforeValidator(_true)] = False
    """`true`: to every prompt."""

    regex: Annotated[str, AfterValidator(_pattern), BeforeValidator(text_of)] = ""
    """A Python regular expression that is found in the last message of the user."""

    principle: Text = ""
    """A principle that a moderator was trained for, and finds broken by the prompt."""

    moderation: Text = ""
    """Any category of a moderator, a block list's name for one."""

    judge: Text = ""
    """A question about the conversation that a judge answers with yes."""

    threshold: Annotated[float, BeforeValidator(_share)] | None = None
    """Score or probability from which on it holds; the moderator's own, or 0.5 for a judge."""

    def value(self) -> Condition:
        """The condition."""
        if self.always:
            return Condition("always")
        kind = next(key for key in SOURCES if getattr(self, key))
        return Condition(kind, getattr(self, kind), self.threshold)  # type: ignore[arg-type]


class SideForm(_Form):
    """One of two answers that are shown side by side."""

    label: Text
    """What stands above it."""

    prior: Text
    """System text that it is given under."""


class BothForm(_Form):
    """Two answers under opposite priors."""

    a: SideForm
    """The first."""

    b: SideForm
    """The second."""


class DirectiveForm(_Form):
    """One rule: when it applies, and what it makes of the answer."""

    id: Annotated[str, Field(pattern=ID), BeforeValidator(text_of)]
    """Short name, unique in the file."""

    when: ConditionForm
    """When it applies."""

    prior: Text = ""
    """System text that the policy must follow."""

    answer: Text = ""
    """The answer, in place of the model's."""

    both_sides: BothForm | None = None
    """Two answers under opposite priors, shown side by side."""

    blocked_message: Text = ""
    """What is said where moderation stops an answer."""

    since: Annotated[Day | None, Field(alias="from")] = None
    """First day, UTC."""

    until: Day | None = None
    """Last day, UTC."""

    question: Text = ""
    """Asks a judge about one answer whether it complies."""

    answers: Annotated[list[Text], Field(min_length=2, max_length=2), AfterValidator(_told_apart)] = Field(
        default_factory=list
    )
    """The good answer of `question`, then the bad one; yes and no when left out."""

    answer_prefix: Text = ""
    """How the judge's answer to `question` begins, up to where one of `answers` follows, as in `The tone of
    this text is`."""

    def value(self) -> Directive:
        """The directive."""
        both = self.both_sides
        sides = () if both is None else tuple(Side(each.label, each.prior) for each in (both.a, both.b))
        return Directive(
            id=self.id,
            when=self.when.value(),
            prior=self.prior,
            answer=self.answer,
            sides=sides,
            blocked_message=self.blocked_message,
            since=self.since,
            until=self.until,
            question=self.question,
            answers=Answers(*self.answers) if self.answers else None,
            answer_prefix=self.answer_prefix,
        )


class DirectivesForm(_Form):
    """A file of directives."""

    name: Text = ""
    """Name of the list; the file's name when left out."""

    language: Annotated[str, Field(pattern=LANGUAGE), BeforeValidator(text_of)] = "en"
    """Language tag; chooses the templates by which a judge is asked."""

    directives: list[DirectiveForm] = Field(min_length=1)
    """The rules. Where two fixed answers apply, the first counts."""

    def value(self, source: str) -> Directives:
        """The directives, named after their file where they have no name."""
        return Directives(
            name=self.name or Path(source).stem,
            directives=tuple(each.value() for each in self.directives),
            language=self.language,
        )
