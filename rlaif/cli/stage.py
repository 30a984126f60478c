"""The command of a stage that has none of its own: its settings as options, a recipe of this one stage."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import is_simple, setting_options
from rlaif.cli.options import common_options, constitution_option, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.config import Recipe
from rlaif.config.labelling import BaseStage

__all__ = ["stage_command"]


def stage_command(settings: type[BaseStage]) -> click.Command:
    """`rlaif KIND`, made from the settings of a kind of stage."""
    name = str(settings.model_fields["stage"].default).replace("_", "-")
    taken = {*Recipe.model_fields, *BaseStage.model_fields}
    own = [each for each, field in settings.model_fields.items() if each not in taken and is_simple(field)]

    @click.command(name, help=settings.__doc__)
    @setting_options(settings, *own)
    @set_option
    @constitution_option
    @common_options
    def command(**options: Any) -> None:
        recipe = make_recipe(name, [make_stage(settings, options)], options)
        execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])

    return command
