"""`rlaif dpo`."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, merge_option, set_option
from rlaif.cli.settings import make_recipe, make_stage, weighted_file
from rlaif.config.finetune import DpoConfig

__all__ = ["dpo"]


@click.command(
    epilog=examples(
        "rlaif dpo --preferences runs/mine/label/preferences.jsonl",
        "rlaif dpo --preferences ai.jsonl --preferences human.jsonl=0.5 --beta 0.05 --merge",
        "rlaif dpo --preferences ai.jsonl --set labels=hard --set epochs=2",
    )
)
@click.option(
    "--preferences",
    multiple=True,
    required=True,
    metavar="FILE[=WEIGHT]",
    help="Preferences to learn from; repeat to mix.",
)
@setting_options(DpoConfig, "policy", "beta", "skip_bad_rows", "uninformative")
@set_option
@merge_option
@constitution_option
@common_options
def dpo(**options: Any) -> None:
    """Train a policy on preference labels without a reward model.

    A cheap baseline for `rlaif ppo` and `rlaif best-of-k`: nothing is sampled and nothing is scored. The
    result is a PEFT adapter in adapter/.
    """
    files = [weighted_file(text) for text in options["preferences"]]
    recipe = make_recipe("dpo", [make_stage(DpoConfig, options, files=files)], options)
    execute(
        recipe,
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
        merge=options["merge"],
    )
