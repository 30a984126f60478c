"""`rlaif best-of-k`."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import (
    common_options,
    constitution_option,
    examples,
    merge_option,
    reward_options,
    set_option,
)
from rlaif.cli.settings import make_recipe, make_stage, reward_parts
from rlaif.cli.stage_options import prompt_options, rollout_option, rollout_settings
from rlaif.config.finetune import BestOfKConfig

__all__ = ["best_of_k"]


@click.command(
    "best-of-k",
    epilog=examples(
        "rlaif best-of-k --reward runs/mine/reward/model --prompts builtin:everyday --k 16",
        "rlaif best-of-k --reward-function my_package.rewards:short --prompts my_prompts.jsonl --merge",
        "rlaif best-of-k --reward runs/mine/reward/model --set keep=4 --set rounds=2",
    ),
)
@reward_options
@setting_options(BestOfKConfig, "policy", "k", "max_new_tokens")
@rollout_option
@set_option
@merge_option
@prompt_options
@constitution_option
@common_options
def best_of_k(**options: Any) -> None:
    """Fine-tune a policy on the best of K of its own samples (rejection sampling).

    The report shows how the best reward grows with K, and the reward and the KL of the resulting policy.
    The result is a PEFT adapter in adapter/; kept.jsonl holds what it learned.
    """
    stage = make_stage(BestOfKConfig, options, reward=reward_parts(options), **rollout_settings(options))
    recipe = make_recipe("best-of-k", [stage], options)
    execute(
        recipe,
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
        merge=options["merge"],
    )
