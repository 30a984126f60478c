"""`rlaif compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import examples, set_option
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.config.evaluation import CompareConfig

__all__ = ["compare"]


@click.command(
    epilog=examples(
        "rlaif compare runs/mine/evaluate/evaluation.json",
        "rlaif compare runs/mine/evaluate/evaluation.json --human labels.jsonl",
        "rlaif compare first/evaluate/evaluation.json second/evaluate/evaluation.json --out runs/both",
    )
)
@click.argument("evaluations", nargs=-1, required=True, metavar="EVALUATION.json...")
@setting_options(CompareConfig, human="FILE")
@set_option
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder. [default: runs/NAME-DIGEST]"
)
def compare(**options: Any) -> None:
    """Say which policy won, and whether the interval excludes zero.

    Several files are compared as one: they must have the same prompts, settings and start policy. The cost of
    training is read from the folder of each file.
    """
    stage = make_stage(CompareConfig, options)
    execute(make_recipe("compare", [stage], options), out=options["out"], journal=None, dry_run=False)
