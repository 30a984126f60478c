"""Options that several stages share, from the fields of the settings that those share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rlaif.cli.fields import setting_options
from rlaif.cli.options import Command
from rlaif.config.labelling import GenerationSettings, PromptSettings, SampleConfig

__all__ = ["generation_options", "prompt_options", "rollout_option", "rollout_settings", "shard_options"]

prompt_options = setting_options(
    PromptSettings, "prompts", "prompt_column", "context_column", "split", "limit", "skip_bad_rows"
)

generation_options = setting_options(
    GenerationSettings, "max_new_tokens", "temperature", "top_p", policy="MODEL"
)


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
