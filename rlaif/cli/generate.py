"""`rlaif prompts generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.config.generate import GenerateConfig

__all__ = ["generate"]


@click.command(
    epilog=examples(
        "rlaif prompts generate --constitution constitutions/default.yaml --source seeds",
        "rlaif prompts generate --constitution my.yaml --writer openai:Qwen/Qwen3-8B --base-url "
        "http://localhost:8000/v1 --per-principle 50",
        "rlaif prompts generate --constitution my.yaml --like real_prompts.jsonl --dry-run",
    )
)
@constitution_option
@setting_options(GenerateConfig, "per_principle", "conflicts", "source", writer="MODEL", like="FILE")
@setting_options(
    GenerateConfig, "prompt_column", "max_new_tokens", "temperature", "similarity", "block", "max_refused"
)
@set_option
@common_options
def generate(**options: Any) -> None:
    """Write prompts that put each principle under strain, and pairs of principles in conflict.

    A grid of who asks, about what and how hard is filled in by a model, or from our own list of requests.
    What is no prompt (an answer, a copy of the instruction, a loop), repeats another one or holds personal
    data is left out with its reason, never shown as data. Writes prompts.jsonl, tagged by principle, which
    every stage reads: `rlaif sample --prompts RUN/generate/prompts.jsonl`.
    """
    stage = make_stage(GenerateConfig, options)
    recipe = make_recipe(f"prompts-{Path(options['constitution']).stem}", [stage], options)
    execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])
