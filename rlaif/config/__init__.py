"""Recipes and stage settings; each name is imported when it is first used, so that help stays quick."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlaif.config.labelling import AuditConfig, LabelConfig, ReviseConfig, SampleConfig
    from rlaif.config.reading import apply_overrides, load_recipe, parse_recipe
    from rlaif.config.recipe import DEFAULT_MODEL, STAGE_KINDS, Recipe, StageConfig, recipe_schema

__all__ = [
    "DEFAULT_MODEL",
    "AuditConfig",
    "LabelConfig",
    "Recipe",
    "ReviseConfig",
    "STAGE_KINDS",
    "SampleConfig",
    "StageConfig",
    "apply_overrides",
    "load_recipe",
    "parse_recipe",
    "recipe_schema",
]

PLACES = {
    "labelling": ("AuditConfig", "LabelConfig", "ReviseConfig", "SampleConfig"),
    "reading": ("apply_overrides", "load_recipe", "parse_recipe"),
    "recipe": ("DEFAULT_MODEL", "STAGE_KINDS", "Recipe", "StageConfig", "recipe_schema"),
}
"""Modules of this package, and the names that they lend it."""


def __getattr__(name: str) -> Any:
    for module, names in PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
