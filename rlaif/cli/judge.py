"""`rlaif judge`: train a judge."""

from __future__ import annotations

from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import make_recipe, make_stage, weighted_file
from rlaif.config.judge import JudgeConfig

__all__ = ["judge"]


@click.group(
    epilog=examples(
        "rlaif judge train --data human_pairs.jsonl --out runs/judge",
        "rlaif label --judge runs/judge --responses pairs.jsonl",
    )
)
def judge() -> None:
    """Train a judge on people's labels, or on another judge's."""


@judge.command(
    epilog=examples(
        "rlaif judge train --data human_pairs.jsonl --out runs/judge",
        "rlaif judge train --data human_pairs.jsonl --verdicts runs/big/label/verdicts.jsonl=0.2",
        "rlaif judge train --data human_pairs.jsonl --protocol pairwise --principles sample",
        "rlaif judge train --data many_pairs.jsonl --kind lora --principles sample --set epochs=3",
        "rlaif judge train --data many_pairs.jsonl --kind generative --set reasonings=8",
        "rlaif audit --judge runs/judge --data other_pairs.jsonl",
    )
)
@click.option(
    "--data",
    multiple=True,
    metavar="FILE[=WEIGHT]",
    help="Preferences of people to learn from; repeat to mix.",
)
@click.option(
    "--verdicts",
    multiple=True,
    metavar="FILE[=WEIGHT]",
    help="Labels of another judge to learn from: the verdicts or preferences that `rlaif label` left.",
)
@setting_options(JudgeConfig, "kind", "protocol", "principles", "skip_bad_rows")
@set_option
@constitution_option
@common_options
def train(**options: Any) -> None:
    """Train a judge on preferences.

    The model reads the questions that a judge is asked under the constitution, and a head on its states is
    fitted in closed form to what people, or another judge, preferred: seconds after the reading, and of use
    from a hundred pairs on. With `--kind lora` an adapter is trained to answer the questions instead, which
    takes longer and wants thousands of pairs; with `--kind generative` to reason first, from the model's own
    reasonings that ended with the label given. The table says what the judge is worth on prompts that it was
    not fitted to, beside the untrained model. `--judge FOLDER` opens it wherever a judge is named.
    """
    files = [weighted_file(text) for text in (*options["data"], *options["verdicts"])]
    if not files:
        raise click.UsageError(
            "give --data FILE (people's preferences), --verdicts FILE (a judge's), or both"
        )
    execute(
        make_recipe("judge", [make_stage(JudgeConfig, options, files=files)], options),
        out=options["out"],
        journal=options["journal"],
        dry_run=options["dry_run"],
    )
