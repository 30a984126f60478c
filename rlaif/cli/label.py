"""`rlaif label`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.options import (
    common_options,
    constitution_option,
    examples,
    generation_options,
    min_label_share_option,
    prompt_options,
)
from rlaif.cli.settings import SAMPLING, make_recipe, pick
from rlaif.config import LabelConfig, SampleConfig, StageConfig
from rlaif.judging.table import PROTOCOLS

__all__ = ["label"]


class _Pairs(click.ParamType[str | int]):
    """`all`, `best-worst` or a whole number from 1."""

    name = "pairs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if isinstance(value, int) or value in ("all", "best-worst"):
            return value  # type: ignore[no-any-return]
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither `all`, `best-worst` nor a number from 1", param, ctx)
        return int(value)


@click.command(
    epilog=examples(
        "rlaif label --constitution constitutions/default.yaml",
        "rlaif label --constitution constitutions/warmth.yaml --prompts builtin:everyday --k 8 --pairs "
        "best-worst",
        "rlaif label --prompts my_prompts.jsonl --policy my/model --judge org/judge --out runs/mine",
        "rlaif label --responses pairs.jsonl --protocol pairwise --principles all",
        "rlaif label --constitution my.yaml --judge openai:Qwen/Qwen3-8B --base-url http://localhost:8000/v1 "
        "--protocol cot",
        "rlaif label --constitution my.yaml --dry-run",
    )
)
@constitution_option
@prompt_options
@click.option(
    "--responses",
    default=None,
    metavar="FILE",
    help="Your own completions or pairs, judged instead of sampled ones.",
)
@click.option(
    "--k", type=click.IntRange(1, 1024), default=4, show_default=True, help="Completions per prompt."
)
@generation_options
@click.option("--judge", default=None, metavar="MODEL", help="Model that judges. [default: --model]")
@click.option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    default=None,
    help="pairwise: two completions, labels A and B, both orders; pointwise: each alone; cot: pairwise after "
    "reasoning. "
    "[default: the constitution's]",
)
@click.option(
    "--pairs",
    type=_Pairs(),
    metavar="all|best-worst|N",
    default="all",
    show_default=True,
    help="Pairs per prompt: all, best-worst, or a number drawn.",
)
@click.option(
    "--principles",
    type=click.Choice(["sample", "all"]),
    default="sample",
    show_default=True,
    help="sample: one per comparison, drawn by weight; all: every one, averaged by weight.",
)
@click.option(
    "--require-audit",
    is_flag=True,
    help="Refuse a judge without an audit, or one that its audit advises against.",
)
@click.option(
    "--calibration",
    default=None,
    metavar="FILE",
    help="Calibration fitted by `rlaif audit --save-calibration`.",
)
@click.option(
    "--clamp",
    type=click.FloatRange(0.5, 1, min_open=True),
    default=0.6,
    show_default=True,
    help="cot: largest probability.",
)
@click.option(
    "--reasoning-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="cot: longest reasoning.",
)
@min_label_share_option
@click.option(
    "--max-invalid",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Fail above this share of invalid verdicts.",
)
@click.option(
    "--min-strength",
    type=click.FloatRange(0, 0.5, max_open=True),
    default=0.0,
    show_default=True,
    help="Put pairs with a weaker label (|p - 0.5|) into weak.jsonl, for trainers that ignore p_chosen "
    "(TRL's).",
)
@click.option(
    "--format",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    show_default=True,
    help="Format of the preferences.",
)
@common_options
def label(**options: Any) -> None:
    """Label pairs of completions under a constitution.

    Samples K completions per prompt, asks a judge about every pair, and writes preferences with soft labels
    in the format that TRL's trainers read. Swapping the constitution asks only for what changed. Prints a
    table of the verdicts (how often the two orders disagree, how strong the labels are) and five labelled
    pairs.
    """
    settings = LabelConfig.model_validate(
        pick(
            options,
            "responses",
            "prompt_column",
            "context_column",
            "skip_bad_rows",
            "judge",
            "protocol",
            "pairs",
            "principles",
            "clamp",
            "reasoning_tokens",
            "min_label_share",
            "max_invalid",
            "min_strength",
            "format",
            "calibration",
            "require_audit",
        )
        | ({"limit": options["limit"]} if options["responses"] else {})
    )
    sampling: list[StageConfig] = (
        [] if settings.responses else [SampleConfig.model_validate(pick(options, "k", *SAMPLING))]
    )
    recipe = make_recipe(f"label-{Path(options['constitution']).stem}", [*sampling, settings], options)
    execute(recipe, out=options["out"], journal=options["journal"], dry_run=options["dry_run"])
