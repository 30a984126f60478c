"""Options that several stages share, from the fields of the settings that those share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rlaif.cli.fields import setting_options
from rlaif.cli.options import Command
from rlaif.config.labelling import GenerationSettings, LabelConfig, PromptSettings, SampleConfig

__all__ = [
    "generation_options",
    "jury_options",
    "prompt_options",
    "rollout_option",
    "rollout_settings",
    "shard_options",
]

prompt_options = setting_options(
    PromptSettings, "prompts", "prompt_column", "context_column", "split", "limit", "skip_bad_rows"
)

generation_options = setting_options(
    GenerationSettings, "max_new_tokens", "temperature", "top_p", policy="MODEL"
)


def jury_options(command: Command) -> Command:
    """`--judge`, once for each judge, and what a jury is told besides."""
    command = setting_options(LabelConfig, "weights", "quorum", "recuse")(command)
    return click.option(
        "--judge",
        multiple=True,
        metavar="MODEL[=WEIGHT]",
        callback=lambda ctx, param, values: _judges(values),
        help="Model that judges; the recipe's `model` when left out. Given several times it makes a jury; a "
        "judge of it weighs 1 or what is said.",
    )(command)


def _judges(values: Sequence[str]) -> str | list[dict[str, Any]] | None:
    """The setting `judge`."""
    if len(values) < 2:
        return values[0] if values else None
    return [_judge(value) for value in values]


def _judge(text: str) -> dict[str, Any]:
    """`MODEL` or `MODEL=WEIGHT`."""
    name, equals, weight = text.rpartition("=")
    try:
        return {"model": name, "weight": float(weight)} if equals else {"model": text}
    except ValueError:
        return {"model": text}


def rollout_option(command: Command) -> Command:
    """`--rollout-url`, once for each server."""
    return click.option(
        "--rollout-url",
        multiple=True,
        metavar="URL",
        help="Sample on this vLLM server (`http://localhost:8000/v1`); once for each, one a GPU.",
    )(command)


def rollout_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The setting `rollout` that `--rollout-url` says; none where it is not given."""
    urls = options["rollout_url"]
    return {"rollout": {"base_urls": urls}} if urls else {}


def shard_options(command: Command) -> Command:
    """`--shard` of a command, and `--merge` of the runs that shards left."""
    command = click.option(
        "--merge",
        multiple=True,
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Take the answers of this shard's run folder; one for each shard, in place of --shard.",
    )(command)
    return setting_options(SampleConfig, shard="I/N")(command)
