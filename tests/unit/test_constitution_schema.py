"""The JSON Schema for editors says what the reader says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.constitution.form import constitution_schema
from rlaif.constitution.load import parse_constitution
from rlaif.errors import ConstitutionError
from rlaif.resources import names, shipped

SCHEMA_FILE = Path(__file__).parents[2] / "docs" / "reference" / "constitution.schema.json"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "number": (int, float),
}


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """Whether a value is valid, by the keywords that our schema uses."""
    if "$ref" in schema:
        schema = constitution_schema()["$defs"][schema["$ref"].rpartition("/")[2]]
    kinds = schema.get("type", list(TYPES))
    if not isinstance(value, tuple(TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds))):  # type: ignore[arg-type]
        return False
    checks = [value in schema["enum"]] if "enum" in schema else []
    checks += [any(accepts(part, value) for part in schema["anyOf"])] if "anyOf" in schema else []
    checks += [not accepts(schema["not"], value)] if "not" in schema else []
    if isinstance(value, str):
        checks.append(re.search(schema.get("pattern", ""), value) is not None)
    elif isinstance(value, list):
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
        checks.append(not schema.get("uniqueItems") or len(set(value)) == len(value))
        checks += [accepts(schema.get("items", {}), item) for item in value]
    elif isinstance(value, dict):
        known = schema.get("properties", {})
        checks.append(set(schema.get("required", ())) <= set(value))
        checks += [key in known and accepts(known[key], item) for key, item in value.items()] if known else []
        checks += [
            set(needed) <= set(value)
            for key, needed in schema.get("dependentRequired", {}).items()
            if key in value
        ]
    elif isinstance(value, int | float):
        checks.append(schema.get("minimum", float("-inf")) <= value <= schema.get("maximum", float("inf")))
    return all(checks)


def test_the_file_is_the_schema_in_the_code() -> None:
    written = json.dumps(constitution_schema(), indent=2) + "\n"
    assert SCHEMA_FILE.read_text("utf-8") == written, (
        "rlaif constitution schema > docs/reference/constitution.schema.json"
    )


def test_the_schema_knows_every_key() -> None:
    schema = constitution_schema()
    keys = {name: " ".join(form["properties"]) for name, form in schema["$defs"].items()}
    assert " ".join(schema["properties"]) == "name description language protocol principles examples"
    assert keys == {
        "PrincipleForm": "id critique revision comparison question answers answer_prefix lead weight tags",
        "ExampleForm": "conversation a b principle answer",
        "MessageForm": "role content",
    }


def test_every_key_is_explained_and_none_may_be_null() -> None:
    schema = constitution_schema()
    for form in (schema, *schema["$defs"].values()):
        assert form["additionalProperties"] is False
        for field in form["properties"].values():
            assert field["description"].endswith(".")
            assert "default" not in field or accepts(field, field["default"])


@pytest.mark.parametrize("name", names("constitutions"))
def test_the_schema_accepts_what_ships(name: str) -> None:
    text = (shipped("constitutions") / f"{name}.yaml").read_text("utf-8")
    assert accepts(constitution_schema(), yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "name: x",
        "principles: []",
        "principles: [{id: a}]",
        "principles: [{id: A, question: x}]",
        "principles: [{id: a, question: ' '}]",
        "principles: [{id: a, comparison: x, answers: [a, b]}]",
        "principles: [{id: a, question: x, weight: 0}]",
        "principles: [{id: a, question: x, answers: [a, a]}]",
        "principles: [{id: a, question: x, other: y}]",
        "principles: [{id: a, question: x, lead: y, answer_prefix: y}]",
        "principles: [{id: a, comparison: x, lead: y}]",
        "{principles: [{id: a, question: x}], name: ~}",
        "{principles: [{id: a, comparison: x}], examples: [{conversation: [], a: x, b: y, principle: a, "
        "answer: A}]}",
        "{principles: [{id: a, question: x}], protocol: both}",
        "{principles: [{id: a, question: x}], examples: [{a: x}]}",
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    with pytest.raises(ConstitutionError):
        parse_constitution(text, source="c.yaml")
    assert not accepts(constitution_schema(), yaml.safe_load(text))
