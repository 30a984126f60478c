"""`rlaif reward`."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage, weighted_file
from rlaif.config.reward import RewardConfig

__all__ = ["reward"]


@click.command(
    epilog=examples(
        "rlaif reward --preferences runs/mine/label/preferences.jsonl",
        "rlaif reward --preferences ai.jsonl --preferences human.jsonl=0.5 --human human_test.jsonl",
        "rlaif reward --preferences ai.jsonl --set pooling=last --set ensemble.members=3",
    )
)
@click.option(
    "--preferences",
    multiple=True,
    required=True,
    metavar="FILE[=WEIGHT]",
    help="Preferences to learn from; repeat to mix.",
)
@setting_options(RewardConfig, "skip_bad_rows", "uninformative", human="FILE")
@set_option
@constitution_option
@common_options
def reward(**options: Any) -> None:
    """Train a reward model on soft preference labels.

    A head is fitted in closed form on frozen features, then trained further with a LoRA adapter; what is
    better on held-out pairs is kept. The report compares it with a length-only baseline and the judge's own
    labels.
    """
    files = [weighted_file(text) for text in options["preferences"]]
    stage = make_stage(RewardConfig, options, files=files)
    execute(
        make_recipe("reward", [stage], options),
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
    )
