"""What a constitution file may hold: pydantic models of its YAML, and the JSON Schema that follows from them.

The models read the tree that `rlaif.yaml_text` makes, in which scalars are as they were written: an unquoted
`Yes` is a text where a text is due. What must hold between keys is in `rlaif.constitution.problems`: a model
would check it only once every field is right, and all problems of a file are told at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
)
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

from rlaif.types import TEXT_KEYS, Answers, Constitution, Example, Message, Principle, Protocol, Role
from rlaif.yaml_text import UNPRINTABLE, Scalar, brief

__all__ = [
    "ID",
    "LEAST",
    "MOST",
    "ConstitutionForm",
    "ExampleForm",
    "MessageForm",
    "PrincipleForm",
    "constitution_schema",
    "text_of",
]

ID = r"^[a-z0-9][a-z0-9._-]*$"
LANGUAGE = r"^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$"
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
LEAST, MOST = 1e-6, 1e6
"""Bounds of a weight: only how weights compare matters, and sums of larger ones lose the small ones."""


def text_of(value: object) -> str:
    """A text, its ends stripped.

    Raises:
        PydanticKnownError: It is no text, or an empty one.
        PydanticCustomError: It contains a control character.
    """
    if not isinstance(value, Scalar):
        raise PydanticKnownError("string_type")
    stripped = value.strip()
    if not stripped or value.is_null:
        raise PydanticKnownError("string_too_short", {"min_length": 1})
    if UNPRINTABLE.search(stripped):
        raise PydanticCustomError("control_character", "contains a control character")
    return stripped


def _number(value: object) -> float:
    if not isinstance(value, Scalar) or value.quoted or not NUMBER.fullmatch(value):
        raise PydanticKnownError("float_type")
    return float(re.sub(r"\.(?=inf|nan)", "", value.lower()))


def _told_apart(answers: list[str]) -> list[str]:
    short, long = sorted((answer.casefold() for answer in answers), key=len)
    if long.startswith(short):
        found = "are equal" if short == long else "begin alike: one is the beginning of the other"
        found = f"{found}: {', '.join(map(brief, answers))}"
        raise PydanticCustomError("begin_alike", "{found}", {"found": found})
    return answers


def _turns(value: object) -> object:
    """A conversation of one text is one turn of the user."""
    if not isinstance(value, Scalar):
        return value
    return [MessageForm.model_construct(role="user", content=text_of(value))]


Text = Annotated[str, BeforeValidator(text_of), WithJsonSchema({"type": "string", "pattern": r"\S"})]
Answer = Annotated[
    str,
    BeforeValidator(text_of),
    # An unquoted `Yes` or `1` is no text to an editor.
    WithJsonSchema({"type": ["string", "boolean", "number"], "pattern": r"\S"}),
]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class PrincipleForm(_Form):
    """One rule; at least one of its four texts is there."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": [key]} for key in TEXT_KEYS],
            "dependentRequired": {key: ["question"] for key in ("answers", "answer_prefix", "lead")},
            "not": {"required": ["answer_prefix", "lead"]},
        }
    )

    id: Annotated[str, Field(pattern=ID), BeforeValidator(text_of)]
    """Short name, unique in the file."""

    critique: Text = ""
    """Asks a model to identify what breaks this rule in the assistant's last response."""

    revision: Text = ""
    """Asks it to rewrite the response so that the rule holds."""

    comparison: Text = ""
    """Asks a judge which of two responses keeps the rule better."""

    question: Text = ""
    """Asks a judge about one response; answered by one of `answers`."""

    answers: Annotated[
        list[Answer],
        Field(min_length=2, max_length=2, json_schema_extra={"uniqueItems": True}),
        AfterValidator(_told_apart),
    ] = Field(default_factory=list)
    """The good answer of `question`, then the bad one; the template's own (Yes, No) when left out."""

    answer_prefix: Text = ""
    """How the answer to `question` begins, up to where one of `answers` follows, as in `The tone of this
    text is`."""

    lead: Text = ""
    """The older name of `answer_prefix`; not beside it."""

    weight: Annotated[float, Field(ge=LEAST, le=MOST), BeforeValidator(_number)] = 1.0
    """Relative weight."""

    tags: list[Text] = Field(default_factory=list)
    """Words to group by in reports."""

    def value(self) -> Principle:
        return Principle(
            id=self.id,
            critique=self.critique or None,
            revision=self.revision or None,
            comparison=self.comparison or None,
            question=self.question or None,
            answers=Answers(*self.answers) if self.answers else None,
            answer_prefix=self.answer_prefix or self.lead or None,
            weight=self.weight,
            tags=tuple(self.tags),
        )


class MessageForm(_Form):
    """One turn of a conversation."""

    role: Annotated[Role, BeforeValidator(text_of)]
    """Who speaks."""

    content: Text
    """What was said."""


class _ReadAs:
    """Reads a value by a form and keeps what the form stands for: 100,000 forms would take as much memory as
    the rest of reading."""

    def __init__(self, form: type[PrincipleForm]) -> None:
        self._form = form

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        read = handler.generate_schema(self._form)
        return core_schema.no_info_after_validator_function(self._form.value, read)


class ExampleForm(_Form):
    """A worked pairwise judgement."""

    conversation: Annotated[
        list[MessageForm],
        BeforeValidator(
            _turns, json_schema_input_type=Text | Annotated[list[MessageForm], Field(min_length=1)]
        ),
    ]
    """One text for one turn of the user, or messages that end with the user's turn."""

    a: Text
    """The first response."""

    b: Text
    """The second response."""

    principle: Text
    """Id of the principle whose comparison is asked, or the question itself."""

    answer: Annotated[Literal["A", "B"], BeforeValidator(text_of)]
    """The better response."""

    def value(self, comparisons: dict[str, str | None]) -> Example:
        """The example; `comparisons` holds what the principles ask, by id."""
        return Example(
            conversation=tuple(Message(turn.role, turn.content) for turn in self.conversation),
            a=self.a,
            b=self.b,
            principle=comparisons.get(self.principle) or self.principle,
            answer=self.answer,
        )


class ConstitutionForm(_Form):
    """A named list of principles that drives critique, revision and judging."""

    model_config = ConfigDict(title="rlaif constitution")

    name: Text = ""
    """Name of the constitution; the file's name when left out."""

    description: Text = ""
    """One sentence on what it is for."""

    language: Annotated[str, Field(pattern=LANGUAGE), BeforeValidator(text_of)] = "en"
    """Language tag such as en or zh; chooses the prompt templates."""

    protocol: Annotated[Protocol, BeforeValidator(text_of)] = "pairwise"
    """How the principles are meant to be judged: two responses at once, or each alone."""

    principles: list[Annotated[Principle, _ReadAs(PrincipleForm)]] = Field(min_length=1)
    """The rules."""

    examples: list[ExampleForm] = Field(default_factory=list)
    """Worked pairwise judgements that the judge reads first."""

    def value(self, source: str) -> Constitution:
        """The constitution, named after its file where it has no name."""
        comparisons = {principle.id: principle.comparison for principle in self.principles}
        return Constitution(
            name=self.name or Path(source).stem,
            principles=tuple(self.principles),
            description=self.description,
            language=self.language,
            protocol=self.protocol,
            examples=tuple(form.value(comparisons) for form in self.examples),
        )


class _ForEditors(GenerateJsonSchema):
    """Leaves out what an editor would only repeat: titles of fields, and defaults that mean "not given"."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default"):
            return super().default_schema(schema)
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def constitution_schema() -> dict[str, Any]:
    """The JSON Schema of a constitution file, for editors (`docs/reference/constitution.schema.json`)."""
    schema = ConstitutionForm.model_json_schema(schema_generator=_ForEditors)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
