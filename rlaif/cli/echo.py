"""How a command writes to its streams: every text is made visible first, since paths, names, ids and answers
come from outside."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from rlaif.text import escaped_json, visible

__all__ = ["tell", "tell_error", "tell_json", "tell_yaml", "write_any_text"]


def tell(text: object, *, err: bool = False, nl: bool = True) -> None:
    """Write a text with its control characters escaped."""
    click.echo(visible(str(text)), err=err, nl=nl)


def tell_json(value: Any, *, indent: int | None = None) -> None:
    """Write a value as JSON that is the same value, and that a terminal does not act on."""
    click.echo(escaped_json(json.dumps(value, ensure_ascii=False, indent=indent)))


def tell_yaml(text: str) -> None:
    """Write YAML as it is: its writer has escaped control characters, and marks of direction belong to
    texts."""
    click.echo(text, nl=False)


def tell_error(error: click.ClickException) -> None:
    """Write what click says of a wrong command line, which quotes it; a group without a command gets its
    help."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        tell(
            error.format_message(), err=True
        )  # the whole help: it says the usage itself, and nothing is wrong with it
        return
    if isinstance(error, click.UsageError) and error.ctx is not None:
        tell(error.ctx.get_usage(), err=True)
        tell(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
    tell(f"Error: {error.format_message()}", err=True)


def write_any_text() -> None:
    """Let both streams take texts that their encoding lacks, escaped: a narrow locale must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
