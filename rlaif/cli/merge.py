"""`rlaif merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.options import examples
from rlaif.cli.settings import make_recipe, make_stage
from rlaif.config.merge import MergeConfig

__all__ = ["merge"]


@click.command(
    epilog=examples(
        "rlaif merge runs/mine/ppo", "rlaif merge runs/mine/ppo/adapter --dtype bfloat16 --out runs/merged"
    )
)
@click.argument("adapter", type=click.Path(path_type=Path, file_okay=False), metavar="ADAPTER")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
    help="Of the weights that are written.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder. [default: runs/NAME-DIGEST]"
)
@click.option("--dry-run", is_flag=True, help="Say what would be merged, and write nothing.")
def merge(**options: Any) -> None:
    """Write a full model: an adapter merged into its base.

    ADAPTER is the folder of an adapter, or of the stage that trained it; what an sft stage of its run trained
    before is merged first. The model is in merge/model/ of the run folder, with its tokenizer, and needs
    neither rlaif nor PEFT.
    """
    stage = make_stage(MergeConfig, {}, input=str(options["adapter"]))
    recipe = make_recipe("merge", [stage], options)
    execute(recipe, out=options["out"], journal=None, dry_run=options["dry_run"])
