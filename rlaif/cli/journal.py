"""`rlaif journal`: show and merge journals."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.options import examples

__all__ = ["journal"]

FILE = click.Path(path_type=Path)


@click.group(
    epilog=examples(
        "rlaif journal show runs/rlaif-journal.sqlite",
        "rlaif journal merge a.sqlite b.sqlite --into all.sqlite",
    )
)
def journal() -> None:
    """Show and merge journals.

    A journal holds every answer that a model gave, so that none is asked for twice.
    """


@journal.command(epilog=examples("rlaif journal show runs/rlaif-journal.sqlite"))
@click.argument("file", type=FILE)
def show(file: Path) -> None:
    """Say how many answers a journal holds, and how large it is."""
    from rlaif.cli.echo import tell
    from rlaif.errors import RunError
    from rlaif.runs.journal import Journal
    from rlaif.text import count_of

    if not file.is_file():
        raise RunError(
            "there is no journal", where=str(file), remedy="it lies in the folder that the runs are in"
        )
    with Journal(file) as opened:
        stats = opened.stats()
    kinds = ", ".join(f"{count:,} of kind {kind}" for kind, count in stats.answers.items())
    total = count_of(sum(stats.answers.values()), "answer")
    tell(f"{file}: {total} ({kinds or 'none'}), {stats.bytes:,} bytes")


@journal.command(epilog=examples("rlaif journal merge a.sqlite b.sqlite --into all.sqlite"))
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE…")
@click.option(
    "--into", type=FILE, required=True, metavar="FILE", help="Journal to write the answers to; it may exist."
)
def merge(files: tuple[Path, ...], into: Path) -> None:
    """Merge the answers of several journals into one.

    The first answer to a question is kept; how many others differ is printed.
    """
    from rlaif.cli.echo import tell
    from rlaif.runs.journal import Journal
    from rlaif.text import count_of

    with Journal(into) as opened:
        for file in files:
            taken = opened.merge(file)
            tell(
                f"{file}: {count_of(taken.answers, 'answer')}, {taken.new:,} of them new, "
                f"{taken.differing:,} differ from the one that was kept"
            )
