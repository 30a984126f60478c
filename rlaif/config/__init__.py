"""Recipes and stage settings."""

from __future__ import annotations

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
