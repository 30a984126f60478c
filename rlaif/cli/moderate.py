"""`rlaif moderate`: score the rows of a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import examples

if TYPE_CHECKING:
    from rlaif.pipeline.moderate import Moderated

__all__ = ["moderate"]


REASONS = 5
"""Reasons that are told for rows without scores; the file has them all."""


@click.command(
    epilog=examples(
        "rlaif moderate prompts.jsonl --moderation runs/guard/moderation",
        "rlaif moderate chats.parquet --moderation runs/guard/moderation --text-column messages --limit 1000",
    )
)
@click.argument("file", metavar="FILE")
@click.option(
    "--moderation",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="A moderator, or the folder of the stage that trained it.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("moderated.jsonl"),
    show_default=True,
    metavar="FILE",
    help="Scores, a row each; an interrupted command goes on where it stopped.",
)
@click.option(
    "--model", default=None, metavar="MODEL", help="The moderator's base. [default: the one it names]"
)
@click.option(
    "--text-column",
    default=None,
    metavar="NAME",
    help="Column that holds the prompt or the messages. [default: found by name]",
)
@click.option("--limit", type=click.IntRange(min=1), default=None, help="Rows to score. [default: all]")
@click.option("--skip-bad-rows", is_flag=True, help="Go on without rows that cannot be read.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    default="auto",
    show_default=True,
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps, …")
def moderate(file: str, moderation: Path, out: Path, **options: Any) -> None:
    """Score prompts and exchanges with a trained moderator.

    FILE has a prompt (`prompt` or `messages`) in each row, and perhaps an answer (`completion`, or the last
    message). A score is the probability that the row breaks a principle; it is flagged from the moderator's
    threshold on.
    """
    from rlaif.cli.console import ConsoleProgress
    from rlaif.cli.echo import tell
    from rlaif.pipeline.moderate import moderate_file, open_moderator

    with ConsoleProgress() as progress:
        moderator = open_moderator(
            moderation, options["model"], dtype=options["dtype"], device=options["device"], log=progress.note
        )
        found = moderate_file(
            file,
            moderator,
            out,
            text_column=options["text_column"],
            limit=options["limit"],
            skip_bad_rows=options["skip_bad_rows"],
            progress=progress,
        )
    for line in _told(found, moderator.categories):
        tell(line)
    tell(f"scores: {out}")


def _told(found: Moderated, categories: tuple[str, ...]) -> list[str]:
    from rlaif.text import count_of

    lines = [
        f"{count_of(found.rows, 'row')}: {found.any:,} flagged, {found.clear:,} clear, "
        f"{sum(found.refused.values()):,} not scored"
    ]
    if found.resumed:
        lines.append(f"{found.resumed:,} of them were scored by an earlier command")
    if found.bad_rows:
        lines.append(f"{count_of(found.bad_rows, 'row')} of the file could not be read")
    lines += [f"  {name}: {found.flagged[name]:,} flagged" for name in categories]
    return lines + [f"  not scored: {reason}" for reason in list(found.refused)[:REASONS]]
