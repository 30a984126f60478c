"""`rlaif ppo`."""

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
from rlaif.config.ppo import PpoConfig

__all__ = ["ppo"]


@click.command(
    epilog=examples(
        "rlaif ppo --reward runs/mine/reward/model --prompts builtin:everyday --steps 40",
        "rlaif ppo --reward-function my_package.rewards:short --prompts my_prompts.jsonl",
        "rlaif ppo --reward runs/mine/reward/model --set kl.kind=adaptive --set learning_rate=1e-4",
    )
)
@reward_options
@setting_options(PpoConfig, "policy", "steps", "episodes", "max_new_tokens")
@rollout_option
@set_option
@merge_option
@prompt_options
@constitution_option
@common_options
def ppo(**options: Any) -> None:
    """Train a policy by PPO against a reward, with a KL penalty that keeps it near its start.

    Policy and reference share one copy of the base model; the result is a PEFT adapter in adapter/. An
    interrupted run continues from its last checkpoint. `--set` changes any setting of the stage (see `rlaif
    recipe schema`).
    """
    stage = make_stage(PpoConfig, options, reward=reward_parts(options), **rollout_settings(options))
    recipe = make_recipe("ppo", [stage], options)
    execute(
        recipe,
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
        merge=options["merge"],
    )
