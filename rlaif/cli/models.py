"""`rlaif models`."""

from __future__ import annotations

import click

from rlaif.cli.echo import tell
from rlaif.cli.options import examples

__all__ = ["models"]


@click.group(epilog=examples("rlaif models fetch"))
def models() -> None:
    """Fetch and show models."""


@models.command(epilog=examples("rlaif models fetch", "rlaif models fetch org/name"))
@click.argument("model", default="smollm2-135m")
def fetch(model: str) -> None:
    """Download MODEL (an alias, a hub id, a GGUF file), so that later commands need no network.

    Prints where it is and its revision.
    """
    from rlaif.cli.console import say
    from rlaif.models.load import resolve

    source = resolve(model, log=say)
    tell(f"{source.name}@{source.revision}\n{source.path}")
