"""`rlaif sft`."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, examples, merge_option, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.config.finetune import SftConfig

__all__ = ["sft"]


@click.command(
    epilog=examples(
        "rlaif sft --data runs/mine/revise/sft.jsonl",
        "rlaif sft --data revisions.jsonl --data helpful.jsonl --epochs 2 --merge",
        "rlaif sft --data revisions.jsonl --set lora_rank=8 --set learning_rate=1e-4",
    )
)
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Rows of `prompt` and `completion`; repeat to mix.",
)
@setting_options(SftConfig, "epochs", "skip_bad_rows")
@set_option
@merge_option
@common_options
def sft(**options: Any) -> None:
    """Fine-tune a policy on completions to imitate.

    `rlaif revise` writes such rows. The result is a PEFT adapter in adapter/; a recipe's later stages start
    from the policy that it makes.
    """
    stage = make_stage(SftConfig, options, files=options["data"])
    recipe = make_recipe("sft", [stage], options)
    execute(
        recipe,
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
        merge=options["merge"],
    )
