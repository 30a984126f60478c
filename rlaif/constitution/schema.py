"""The JSON Schema of a constitution file, for editors (`docs/reference/constitution.schema.json`).

The reader in `constitution_reader` decides; the schema tells an editor the same while one types. A test holds
the two together.
"""

from __future__ import annotations

from typing import Any

from rlaif.constitution.reader import ID, LANGUAGE, PROTOCOLS, ROLES, TEXT_KEYS
from rlaif.constitution.yaml_text import LEAST, MOST

__all__ = ["constitution_schema"]


def constitution_schema() -> dict[str, Any]:
    """The schema, as JSON values (draft 2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "rlaif constitution",
        "description": "A named list of principles that drives critique, revision and judging.",
        "type": "object",
        "additionalProperties": False,
        "required": ["principles"],
        "properties": {
            "name": _text("Name of the constitution; the file's name when left out."),
            "description": _text("One sentence on what it is for."),
            "language": {
                "type": "string",
                "pattern": f"^{LANGUAGE.pattern}$",
                "default": "en",
                "description": "Language tag such as en or zh; chooses the prompt templates.",
            },
            "protocol": {
                "enum": list(PROTOCOLS),
                "default": PROTOCOLS[0],
                "description": "How the principles are meant to be judged: two responses at once, or each "
                "alone.",
            },
            "principles": {
                "type": "array",
                "minItems": 1,
                "items": _principle(),
                "description": "The rules.",
            },
            "examples": {
                "type": "array",
                "items": _example(),
                "description": "Worked pairwise judgements that the judge reads first.",
            },
        },
    }


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "pattern": r"\S", "description": description}


def _principle() -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["id"],
        "anyOf": [{"required": [key]} for key in TEXT_KEYS],
        "dependentRequired": {"answers": ["question"], "answer_prefix": ["question"], "lead": ["question"]},
        "properties": {
            "id": {
                "type": "string",
                "pattern": f"^{ID.pattern}$",
                "description": "Short name, unique in the file.",
            },
            "critique": _text(
                "Asks a model to identify what breaks this rule in the assistant's last response."
            ),
            "revision": _text("Asks it to rewrite the response so that the rule holds."),
            "comparison": _text("Asks a judge which of two responses keeps the rule better."),
            "question": _text("Asks a judge about one response; answered by one of `answers`."),
            "answers": {
                "type": "array",
                "minItems": 2,
                "maxItems": 2,
                "uniqueItems": True,
                "items": {"type": ["string", "boolean", "number"], "pattern": r"\S"},
                "description": "The good answer of `question`, then the bad one; the template's own (Yes, "
                "No) when left out.",
            },
            "answer_prefix": _text(
                "How the answer to `question` begins, up to where one of `answers` follows: `The tone of "
                "this text is`."
            ),
            "lead": _text("The older name of `answer_prefix`; not beside it."),
            "weight": {
                "type": "number",
                "minimum": LEAST,
                "maximum": MOST,
                "default": 1,
                "description": "Relative weight.",
            },
            "tags": {
                "type": "array",
                "items": _text("A word to group by."),
                "description": "Groups for reports.",
            },
        },
    }


def _example() -> dict[str, Any]:
    message = {
        "type": "object",
        "additionalProperties": False,
        "required": ["role", "content"],
        "properties": {"role": {"enum": list(ROLES)}, "content": _text("What was said.")},
    }
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["conversation", "a", "b", "principle", "answer"],
        "properties": {
            "conversation": {
                "anyOf": [_text("One turn of the user."), {"type": "array", "minItems": 1, "items": message}],
                "description": "One text for one turn of the user, or messages that end with the user's "
                "turn.",
            },
            "a": _text("The first response."),
            "b": _text("The second response."),
            "principle": _text("Id of the principle whose comparison is asked, or the question itself."),
            "answer": {"enum": ["A", "B"], "description": "The better response."},
        },
    }
