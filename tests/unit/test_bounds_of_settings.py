"""No setting takes a number that arithmetic would lose: NaN, infinity, 1e308, 1e-38, or whole numbers of
hundreds of digits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

import rlaif.config as config
from rlaif.config.labelling import BaseStage, Settings

LOST = (float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 1e38, 1e-38, 10**400)


def kinds(model: type[BaseModel] = Settings) -> Iterator[type[BaseModel]]:
    """Every class of settings."""
    for kind in model.__subclasses__():
        yield kind
        yield from kinds(kind)


def numbers() -> list[tuple[type[BaseModel], str]]:
    """Every setting that takes a number."""
    assert config.Recipe in set(kinds())
    return [
        (kind, name)
        for kind in dict.fromkeys(kinds())
        if kind is not BaseStage
        for name, field in kind.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation), *_inner(field.annotation)}
    ]


def _inner(annotation: Any) -> set[Any]:
    """Types inside of unions, as of `Annotated[float, …] | None`."""
    return {part for each in get_args(annotation) for part in get_args(each)}


@pytest.mark.parametrize(
    ("kind", "name"), numbers(), ids=lambda value: value if isinstance(value, str) else value.__name__
)
def test_a_number_that_would_be_lost_is_refused(kind: type[BaseModel], name: str) -> None:
    for value in LOST:
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(kind).validate_python({name: value})
        assert any(name in problem["loc"] for problem in caught.value.errors()), (value, caught.value)


def test_the_walk_finds_the_settings() -> None:
    found = {f"{kind.__name__}.{name}" for kind, name in numbers()}
    assert {"ServerConfig.timeout", "PpoConfig.learning_rate", "LabelConfig.clamp", "Recipe.seed"} <= found
    assert len(found) > 80
