"""Reading recipes from YAML. Validation reports every problem at once: its line in the file, what was read,
what would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.config.problems import described, telling
from rlaif.config.recipe import Recipe
from rlaif.errors import PROBLEMS_LISTED, ConfigError, Problem, first_problems
from rlaif.files import read_small
from rlaif.resources import find
from rlaif.suggest import did_you_mean
from rlaif.text import count_of, one_line
from rlaif.yaml_text import Node, plain_value, problems_of, read_tree, steps

__all__ = ["MOST_CHARACTERS", "apply_overrides", "load_recipe", "parse_recipe", "read_yaml"]

MOST_CHARACTERS = 2_000_000
"""Longest text read as a recipe."""


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `--set` overrides.

    Raises:
        ConfigError: With every problem found, each at its line.
    """
    path = find("recipes", str(source))
    try:
        text = read_small(path, error=ConfigError)
    except OSError as error:
        raise ConfigError(f"the recipe cannot be read: {error.strerror}", where=str(path)) from error
    return parse_recipe(text, source=str(path), overrides=overrides)


def parse_recipe(text: str, *, source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from YAML text; `source` names it in errors."""
    tree, values = read_yaml(text, source=source)
    if not isinstance(values, dict):
        raise ConfigError(
            "a recipe is a mapping with the keys `name`, `model`, `constitution`, `stages`", where=source
        )
    values = apply_overrides(values, overrides)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        told = telling(error.errors())
        found = [_problem(details, tree, source) for details in told[:PROBLEMS_LISTED]]
        what = f"the recipe has {count_of(len(told), 'problem')}"
        problems = first_problems(found, len(told))
        raise ConfigError(what, where=source, problems=problems) from error


def read_yaml(text: str, *, source: str, what: str = "the recipe") -> tuple[Node | None, Any]:
    """The tree of a YAML text, for line numbers, and its value.

    Raises:
        ConfigError: It is too long or cannot be read as YAML; with every problem and its line.
    """
    if len(text) > MOST_CHARACTERS:
        size = f"{what} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read"
        raise ConfigError(size, where=source)
    tree, faults = read_tree(text)
    value = plain_value(tree, faults)
    if faults:
        problems = problems_of(faults, source, len(faults))
        raise ConfigError(f"{what} has {count_of(len(faults), 'problem')}", where=source, problems=problems)
    return tree, value


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `a.b=c` set; a stage is addressed by its name, as in
    `stages.label.protocol=pairwise`.

    The right side is read as YAML, so that `4`, `true`, `null` and `[a, b]` mean what they mean in the file.
    """
    result: dict[str, Any] = _copy(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        shown = one_line(override if len(override) <= 80 else override[:79] + "…")
        if not equals or not path.strip():
            raise ConfigError(
                f"--set {shown!r} is not of the form a.b=c", remedy="for example --set stages.sample.k=2"
            )
        _, value = read_yaml(text, source=f"--set {shown}", what="the value")
        _set(result, path.strip().split("."), value, shown)
    return result


def _set(target: Any, keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        if isinstance(target, list):
            target = _stage_entry(target, key, override)
        elif isinstance(target, dict):
            target = target.setdefault(key, {})
        else:
            raise ConfigError(f"--set {override!r}: {key!r} is inside a plain value")
    if not isinstance(target, dict):
        raise ConfigError(
            f"--set {override!r} names no setting", remedy="for example --set stages.sample.k=2"
        )
    target[keys[-1]] = value


def _stage_entry(stages: list[Any], key: str, override: str) -> Any:
    entries = [stage for stage in stages if isinstance(stage, dict)]
    names = [str(stage.get("name") or str(stage.get("stage")).replace("_", "-")) for stage in entries]
    # A stage goes by its kind as well, as it is written in the recipe.
    for each in (key, key.replace("_", "-")):
        if each in names:
            return entries[names.index(each)]
    raise ConfigError(
        f"--set {override!r}: no stage is named {key!r}",
        remedy=f"{did_you_mean(key, names)}the stages are {', '.join(names)}",
    )


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(each) for key, each in value.items()}
    return [_copy(each) for each in value] if isinstance(value, list) else value


def _problem(details: Any, tree: Node | None, source: str) -> Problem:
    """A pydantic error as a problem with its line; `loc` holds keys, list indices and the discriminator of a
    union."""
    way = steps(tree, details["loc"])
    line = way[-1].line if way else tree.line if tree is not None else 0
    path = ".".join(step.name for step in way)
    what, remedy = described(details, Recipe)
    return Problem(
        f"{path}: {what}" if path and details["type"] != "missing" else what,
        where=f"{source}:{line}" if line else source,
        remedy=remedy,
    )
