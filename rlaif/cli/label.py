"""`rlaif label`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rlaif.cli.execute import execute
from rlaif.cli.fields import setting_options
from rlaif.cli.options import common_options, constitution_option, examples, set_option
from rlaif.cli.settings import journal_of, make_recipe, make_stage
from rlaif.cli.stage_options import generation_options, jury_options, prompt_options, shard_options
from rlaif.config import LabelConfig, SampleConfig
from rlaif.config.labelling import BaseStage
from rlaif.errors import ConfigError
from rlaif.text import one_line

__all__ = ["label"]


@click.command(
    epilog=examples(
        "rlaif label --constitution constitutions/default.yaml",
        "rlaif label --constitution constitutions/warmth.yaml --prompts builtin:everyday --k 8 --pairs "
        "best-worst",
        "rlaif label --prompts my_prompts.jsonl --policy my/model --judge org/judge --out runs/mine",
        "rlaif label --responses pairs.jsonl --protocol pairwise --principles all",
        "rlaif label --constitution my.yaml --judge openai:Qwen/Qwen3-8B --base-url http://localhost:8000/v1 "
        "--protocol cot",
        "rlaif label --judge org/a --judge openai:org/b=2 --recuse base",
        "rlaif label --responses pairs.jsonl --shard 1/2 --out shards/1",
        "rlaif label --responses pairs.jsonl --merge shards/1 --merge shards/2 --out runs/all",
        "rlaif label --constitution my.yaml --dry-run",
    )
)
@constitution_option
@prompt_options
@setting_options(LabelConfig, responses="FILE")
@shard_options
@setting_options(SampleConfig, "k")
@generation_options
@setting_options(LabelConfig, "protocol", "pairs", "principles", "audit", "require_audit", calibration="FILE")
@jury_options
@setting_options(
    LabelConfig,
    "clamp",
    "reasoning_tokens",
    "reasonings",
    "rubric_aggregate",
    "constitution_weight",
    "lacking",
    "min_label_share",
    "max_invalid",
    "min_strength",
    "format",
)
@set_option
@common_options
def label(**options: Any) -> None:
    """Label pairs of completions under a constitution.

    Samples K completions per prompt, asks a judge about every pair, and writes preferences with soft
    labels in the format that TRL's trainers read. After a change of the constitution only the questions
    that changed are asked. Prints a table of the verdicts (how often the two orders disagree, how strong
    the labels are), five labelled pairs, and in the last line whether the labels are worth training on: a
    judge that nobody audited is asked some built-in probes first (`--no-audit` leaves them out). `--set
    NAME=VALUE` changes any setting of the labelling, `--set sample.NAME=VALUE` any of the sampling.
    `--shard I/N` does one of N parts; the same command with `--merge` for each part's run folder in its
    place writes the file that one machine would have written.
    """
    changes = [each.removeprefix("label.") for each in options["overrides"] if not each.startswith("sample.")]
    sampled = [each.removeprefix("sample.") for each in options["overrides"] if each.startswith("sample.")]
    own = options if options["responses"] else options | {"limit": None, "shard": None}
    settings = make_stage(LabelConfig, own, overrides=changes)
    stages: list[BaseStage] = [settings]
    if not settings.responses:
        stages.insert(0, make_stage(SampleConfig, options, overrides=sampled))
    elif sampled:
        raise ConfigError(
            f"--set {one_line(sampled[0])!r} is of a stage that does not run: completions come from "
            "--responses",
            remedy="leave it out, or leave --responses out",
        )
    recipe = make_recipe(f"label-{Path(options['constitution']).stem}", stages, options)
    execute(
        recipe,
        out=options["out"],
        journal=journal_of(recipe, options),
        dry_run=options["dry_run"],
        shards=options["merge"],
    )
