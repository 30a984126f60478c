"""`rlaif evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.cli.stage_options import prompt_options, rollout_option, rollout_settings
from rlaif.config.evaluation import EvaluateConfig

__all__ = ["evaluate"]


@click.command(
    epilog=examples(
        "rlaif evaluate --policy runs/mine/ppo --policy runs/mine/best-of-k --reward runs/mine/reward/model",
        "rlaif evaluate --policy runs/mine/ppo --gold rlaif.metrics:vader_compound --prompts "
        "builtin:everyday",
        "rlaif evaluate --policy my-adapter --prompts held_out.jsonl --no-win-rate",
    )
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    metavar="DIR",
    help="Folder of an adapter or its stage; repeat.",
)
@setting_options(
    EvaluateConfig,
    "win_rate",
    "samples",
    "max_new_tokens",
    reward="DIR",
    gold="MODULE:FUNCTION",
    judge="MODEL",
)
@rollout_option
@set_option
@prompt_options
@constitution_option
@common_options
def evaluate(**options: Any) -> None:
    """Measure policies on held-out prompts, and the model that they were trained from (--model).

    Gold metric, reward, the judge's win rate in both orders, length, KL, diversity, refusals and cost, with
    95 % intervals over prompts. Take prompts that none of the policies was trained on.
    """
    policies = [_adapter(folder) for folder in options["policies"]]
    stage = make_stage(EvaluateConfig, options, policies=policies, **rollout_settings(options))
    recipe = make_recipe("evaluate", [stage], options)
    execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])


def _adapter(folder: str) -> str:
    """The adapter in a stage's folder, or the folder itself."""
    below = Path(folder) / "adapter"
    return str(below) if below.is_dir() else folder
