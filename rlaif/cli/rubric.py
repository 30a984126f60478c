"""`rlaif rubric`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.cli.stage_options import prompt_options
from rlaif.config.labelling import RubricConfig

__all__ = ["rubric"]


@click.group(epilog=examples("rlaif rubric generate --prompts my_prompts.jsonl"))
def rubric() -> None:
    """Draft rubrics: what a judge asks of completions of one prompt."""


@rubric.command(
    epilog=examples(
        "rlaif rubric generate --prompts my_prompts.jsonl --writer openai:Qwen/Qwen3-8B --base-url "
        "http://localhost:8000/v1",
        "rlaif rubric generate --constitution my.yaml --prompts my_prompts.jsonl --dry-run",
    )
)
@constitution_option
@prompt_options
@setting_options(RubricConfig, "criteria", "max_new_tokens", "temperature", writer="MODEL")
@set_option
@common_options
def generate(**options: Any) -> None:
    """Draft a rubric for each prompt from the constitution and the prompt's reference, for a person to edit.

    Writes rubrics.jsonl: the prompts with a column `rubric`, to be read by `rlaif label --protocol rubric`,
    `rlaif sample` and all that reads prompts. A prompt that has a rubric keeps it. What was written without a
    criterion in it goes to undrafted.jsonl.
    """
    stage = make_stage(RubricConfig, options)
    recipe = make_recipe(f"rubric-{Path(options['constitution']).stem}", [stage], options)
    execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])
