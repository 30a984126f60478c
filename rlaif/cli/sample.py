"""`rlaif sample`."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.cli.stage_options import generation_options, prompt_options, rollout_option, rollout_settings
from rlaif.config import SampleConfig

__all__ = ["sample"]


@click.command(
    epilog=examples(
        "rlaif sample --prompts builtin:everyday --limit 8 --k 4",
        "rlaif sample --prompts my_prompts.csv --prompt-column question --policy my/model --temperature 0.7",
    )
)
@prompt_options
@setting_options(SampleConfig, "k")
@generation_options
@rollout_option
@set_option
@common_options
def sample(**options: Any) -> None:
    """Sample K completions per prompt from a policy.

    Writes completions.jsonl in TRL's conversational prompt-completion format. A draw depends on the seed, the
    prompt and its index only: more prompts or a larger K add completions and change none.
    """
    stage = make_stage(SampleConfig, options, **rollout_settings(options))
    recipe = make_recipe("sample", [stage], options)
    execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])
