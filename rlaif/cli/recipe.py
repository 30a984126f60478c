"""`rlaif recipe`."""

from __future__ import annotations

import click

from rlaif.cli.echo import tell_json, tell_yaml
from rlaif.cli.options import examples
from rlaif.config import load_recipe, recipe_schema

__all__ = ["recipe"]


@click.group(epilog=examples("rlaif recipe show recipes/quickstart.yaml", "rlaif recipe schema"))
def recipe() -> None:
    """Show recipes and their JSON schema."""


@recipe.command(epilog=examples("rlaif recipe schema > recipe.schema.json"))
def schema() -> None:
    """Print the JSON schema of a recipe, for editors.

    The YAML files that ship name it in their first line (`# yaml-language-server: $schema=…`).
    """
    tell_json(recipe_schema(), indent=2)


@recipe.command(epilog=examples("rlaif recipe show recipes/quickstart.yaml --set seed=1"))
@click.argument("file", metavar="RECIPE")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Set a value, as `rlaif run` does.")
def show(file: str, overrides: tuple[str, ...]) -> None:
    """Print RECIPE with every default filled in."""
    import yaml

    resolved = load_recipe(file, overrides).model_dump(mode="json")
    tell_yaml(yaml.safe_dump(resolved, allow_unicode=True, sort_keys=False))
