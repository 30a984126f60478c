"""`rlaif moderation`: train a moderator."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage, weighted_file
from rlaif.config.moderation import ModerationConfig

__all__ = ["moderation"]


@click.group(
    epilog=examples(
        "rlaif moderation train --data labels.jsonl --out runs/guard",
        "rlaif moderate texts.jsonl --moderation runs/guard/moderation",
    )
)
def moderation() -> None:
    """Train a moderator of prompts and of answers from a constitution."""


@moderation.command(
    epilog=examples(
        "rlaif moderation train --data labels.jsonl --constitution constitutions/default.yaml",
        "rlaif moderation train --data people.jsonl --data runs/first/label/verdicts.jsonl=0.2",
        "rlaif moderation train --data labels.csv --benign builtin --benign harmless.jsonl",
        "rlaif moderation train --data labels.jsonl --kind lora --set epochs=3",
    )
)
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="FILE[=WEIGHT]",
    help="Labels to learn from: people's, or verdicts of `rlaif label --protocol pointwise`; repeat to mix.",
)
@setting_options(ModerationConfig, "kind", "window", "false_positives", "skip_bad_rows", benign="FILE")
@set_option
@constitution_option
@common_options
def train(**options: Any) -> None:
    """Train a moderator on labelled prompts and exchanges.

    Its categories are the principles of the constitution; a score is the probability that a text breaks one.
    Linear heads on three layers' states are fitted in closed form, whole prompts held out, and calibrated;
    `rlaif serve` reads them while it decodes with the same model. With `--kind lora` an adapter is trained
    that reads the text alone. The report says what the moderator is worth for each principle, beside a bag of
    words and a word list, on harmless look-alikes, and on a harm that it was not trained on.
    """
    files = [weighted_file(text) for text in options["data"]]
    execute(
        make_recipe("moderation", [make_stage(ModerationConfig, options, files=files)], options),
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
    )
