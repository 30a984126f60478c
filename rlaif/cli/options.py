"""Options that several commands share, each declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = [
    "common_options",
    "constitution_option",
    "examples",
    "merge_option",
    "reward_options",
    "set_option",
    "Command",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def _stack(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def examples(*lines: str) -> str:
    """An epilog of example command lines, kept as they are written."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


constitution_option = click.option(
    "--constitution",
    default="constitutions/default.yaml",
    show_default=True,
    metavar="FILE",
    help="Principle file; a shipped one is found from anywhere (default, warmth, concise, default.zh).",
)

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Set any setting of the stage; see `rlaif recipe schema`.",
)

merge_option = click.option(
    "--merge", is_flag=True, help="Also write the full model, the adapter merged into its base, to merged/."
)

reward_options = _stack(
    click.option(
        "--reward",
        default=None,
        metavar="DIR",
        help="Folder of a reward model, as `rlaif reward` leaves it in model/.",
    ),
    click.option(
        "--reward-function",
        default=None,
        metavar="MODULE:NAME",
        help="A function (prompt, completion) -> number; the text is completion.text.",
    ),
)

common_options = _stack(
    click.option(
        "--model",
        default="smollm2-135m",
        show_default=True,
        metavar="MODEL",
        help="Model for every role that names no other: hub id, folder, GGUF, alias, openai:NAME.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
        default="auto",
        show_default=True,
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …"),
    click.option(
        "--base-url",
        multiple=True,
        metavar="URL",
        help="Server of models named openai:MODEL; repeat to share the load.",
    ),
    click.option(
        "--api-key-env", default=None, metavar="NAME", help="Environment variable with the server's key."
    ),
    click.option(
        "--api-key-file", type=click.Path(path_type=Path), default=None, help="File with the server's key."
    ),
    click.option(
        "--price-input", type=click.FloatRange(min=0), default=None, help="Price of a million tokens read."
    ),
    click.option(
        "--price-output",
        type=click.FloatRange(min=0),
        default=None,
        help="Price of a million tokens written.",
    ),
    click.option(
        "--max-cost",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        help="Stop before more than this is spent.",
    ),
    click.option(
        "--server",
        "server_settings",
        multiple=True,
        metavar="NAME=VALUE",
        help="Set how openai:MODEL is asked: continues=true, reads=votes, api=completions, timeout=300, "
        "extra_body={…}; repeat.",
    ),
    click.option(
        "--prompts-dir",
        type=click.Path(path_type=Path),
        default=None,
        help="Folder of templates that replace the shipped ones of the same name.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Random seed."),
    click.option(
        "--out", type=click.Path(path_type=Path), default=None, help="Run folder. [default: runs/NAME-DIGEST]"
    ),
    click.option(
        "--journal",
        type=click.Path(path_type=Path, dir_okay=False),
        default=None,
        help="Journal of every answer. [default: rlaif-journal.sqlite beside the run folder, shared by the "
        "runs there]",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Show what would be asked, how many tokens and how long, without asking it.",
    ),
)
