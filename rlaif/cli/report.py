"""`rlaif report`."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.echo import tell
from rlaif.cli.options import examples

__all__ = ["report"]


@click.command(
    epilog=examples(
        "rlaif report runs/quickstart-1a2b3c4d",
        "rlaif report studies/quickstart-1a2b3c4d",
        "rlaif report runs/quickstart-1a2b3c4d --out quickstart.html",
        "rlaif report studies/quickstart-1a2b3c4d --pictures pictures",
        "rlaif report runs/quickstart-1a2b3c4d --inspect",
    )
)
@click.argument("folder", metavar="FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File to write. [default: report.html in FOLDER]",
)
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    metavar="DIR",
    help="Write each picture into DIR as a file, too.",
)
@click.option(
    "--inspect",
    is_flag=True,
    help="Write the evaluation as logs for `inspect view` too, into inspect/ in FOLDER.",
)
def report(folder: Path, out: Path | None, pictures: Path | None, inspect: bool) -> None:
    """Write the page of the run, the rounds or the study in FOLDER: one HTML file that opens without a server
    or a network.

    It has the verdict in words, the policies, pictures, what the judge is worth, costs, and samples to
    browse. Every run and study writes it at its end; this writes it again. An unfinished run has one of what
    there is.

    The pictures need matplotlib: pip install 'rlaif-toolkit[report]'. --inspect needs inspect_ai: pip install
    'rlaif-toolkit[inspect]'.
    """
    from rlaif.pipeline.report import write_inspect, write_pictures, write_report

    tell(f"{write_report(folder, out)}: open it in a browser")
    if pictures is not None:
        for place in write_pictures(folder, pictures):
            tell(str(place))
    if inspect:
        for place in write_inspect(folder):
            tell(str(place))
        tell(f"see them with: inspect view --log-dir {folder / 'inspect'}")
