"""`rlaif evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.options import common_options, constitution_option, examples, prompt_options, set_option
from rlaif.cli.settings import PROMPTS, make_recipe, make_stage, pick
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
@click.option("--reward", default=None, metavar="DIR", help="Folder of a reward model to score with.")
@click.option(
    "--gold",
    default=None,
    metavar="MODULE:FUNCTION",
    help="The held-out measure, one that no training signal touches.",
)
@click.option(
    "--judge", default=None, metavar="MODEL", help="Model that judges the win rate. [default: --model]"
)
@click.option(
    "--win-rate/--no-win-rate",
    default=True,
    show_default=True,
    help="Ask the judge which completions are better.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Completions per prompt, of each policy.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Longest completion, tokens.",
)
@set_option
@prompt_options
@constitution_option
@common_options
def evaluate(**options: Any) -> None:
    """Measure policies on held-out prompts, beside the model that they were trained from (--model).

    Gold metric, reward, the judge's win rate in both orders, length, KL, diversity, refusals and cost, with
    95 % intervals over prompts. Take prompts that none of the policies was trained on.
    """
    given = pick(options, *PROMPTS, "reward", "gold", "judge", "win_rate", "samples", "max_new_tokens")
    given["policies"] = [_adapter(folder) for folder in options["policies"]]
    recipe = make_recipe("evaluate", [make_stage(EvaluateConfig, given, options["overrides"])], options)
    execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])


def _adapter(folder: str) -> str:
    """The adapter in a stage's folder, or the folder itself."""
    below = Path(folder) / "adapter"
    return str(below) if below.is_dir() else folder
