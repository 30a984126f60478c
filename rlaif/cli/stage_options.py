"""Options that several stages share, from the fields of the settings that those share."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.fields import setting_options
from rlaif.cli.options import Command
from rlaif.config.labelling import GenerationSettings, PromptSettings, SampleConfig

__all__ = ["generation_options", "prompt_options", "shard_options"]

prompt_options = setting_options(
    PromptSettings, "prompts", "prompt_column", "context_column", "split", "limit", "skip_bad_rows"
)

generation_options = setting_options(
    GenerationSettings, "max_new_tokens", "temperature", "top_p", policy="MODEL"
)


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
