"""`rlaif revise`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.cli.stage_options import generation_options, prompt_options
from rlaif.config import ReviseConfig

__all__ = ["revise"]


@click.command(
    epilog=examples(
        "rlaif revise --prompts builtin:red_team --limit 8 --rounds 2",
        "rlaif revise --constitution constitutions/warmth.yaml --prompts builtin:everyday",
    )
)
@constitution_option
@prompt_options
@setting_options(ReviseConfig, "rounds")
@generation_options
@set_option
@common_options
def revise(**options: Any) -> None:
    """Let a policy answer, criticise its answer under a principle, and rewrite it, for N rounds.

    One principle is drawn per round. Writes revisions.jsonl with every intermediate text, and sft.jsonl with
    the revisions of all rounds, ready for TRL's SFTTrainer.
    """
    stage = make_stage(ReviseConfig, options)
    recipe = make_recipe(f"revise-{Path(options['constitution']).stem}", [stage], options)
    execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])
