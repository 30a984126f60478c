"""`rlaif grpo`."""

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
from rlaif.config.grpo import GrpoConfig

__all__ = ["grpo"]


@click.command(
    epilog=examples(
        "rlaif grpo --reward runs/mine/reward/model --prompts builtin:everyday --steps 40",
        "rlaif grpo --reward-function my_package.rewards:short --prompts my_prompts.jsonl",
        "rlaif grpo --reward runs/mine/reward/model --advantage rloo --set kl_in=reward",
    )
)
@reward_options
@setting_options(
    GrpoConfig, "policy", "steps", "episodes", "samples_per_prompt", "max_new_tokens", "advantage"
)
@rollout_option
@set_option
@merge_option
@prompt_options
@constitution_option
@common_options
def grpo(**options: Any) -> None:
    """Train a policy by GRPO against a reward: several completions per prompt, each compared with the others.

    Policy and reference share one copy of the base model; the result is a PEFT adapter in adapter/. An
    interrupted run continues from its last checkpoint. `--set` changes any setting of the stage (see `rlaif
    recipe schema`).
    """
    stage = make_stage(GrpoConfig, options, reward=reward_parts(options), **rollout_settings(options))
    recipe = make_recipe("grpo", [stage], options)
    execute(
        recipe,
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
        merge=options["merge"],
    )
