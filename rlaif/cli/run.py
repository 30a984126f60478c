"""`rlaif run`."""

from __future__ import annotations

from pathlib import Path

import click

from rlaif.cli.execute import execute, execute_rounds
from rlaif.cli.options import examples
from rlaif.config import load_recipe

__all__ = ["run"]


@click.command(
    epilog=examples(
        "rlaif run recipes/quickstart.yaml",
        "rlaif run recipes/quickstart.yaml --dry-run",
        "rlaif run recipes/quickstart.yaml --processes 2",
        "rlaif run recipes/quickstart.yaml --set stages.sample.k=2 --set seed=1",
        "rlaif run runs/quickstart-1a2b3c4d/recipe.yaml --out again",
        "rlaif run recipes/rounds_ppo.yaml --rounds 2",
    )
)
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=C",
    help="Set a value; stages go by their names: stages.sample.k=2.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Run folder. [default: runs/NAME-DIGEST]"
)
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Journal of every answer. [default: rlaif-journal.sqlite beside the run folder, shared by the runs "
    "there]",
)
@click.option(
    "--reuse",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="RUN",
    help="Take stages over that this run has finished, where all that they depend on is the same.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would be asked, how many tokens and how long, without asking it.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Run the stages N times, each time from the policy of the time before and on fresh prompts; "
    "`rounds` in the recipe has the settings.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Share the work among N processes on this machine: one a GPU, or one a few processors.",
)
def run(
    recipe: str,
    overrides: tuple[str, ...],
    out: Path | None,
    journal: Path | None,
    reuse: tuple[Path, ...],
    dry_run: bool,
    rounds: int | None,
    processes: int,
) -> None:
    """Run the stages of RECIPE in order.

    With `rounds` in RECIPE they are run several times, each from the policy of the time before; the end says
    what each round did.

    A stage whose settings and inputs have not changed since it finished is skipped. An interrupted run
    continues when the same command is given again, and asks nothing twice.
    """
    if rounds is not None:
        overrides = (*overrides, f"rounds.count={rounds}")
    checked = load_recipe(recipe, overrides)  # before any process is started
    if checked.rounds is not None and reuse:
        raise click.UsageError("--reuse takes stages of one run over, and this recipe is run in rounds")
    if processes == 1 or dry_run:
        if checked.rounds is not None:
            execute_rounds(checked, out=out, journal=journal, dry_run=dry_run)
        else:
            execute(checked, out=out, journal=journal, dry_run=dry_run, reuse=reuse, estimate=True)
        return
    from rlaif.pipeline.launch import launch

    arguments = ["run", recipe, *(part for value in overrides for part in ("--set", value))]
    arguments += [] if out is None else ["--out", str(out)]
    arguments += [] if journal is None else ["--journal", str(journal)]
    arguments += [part for folder in reuse for part in ("--reuse", str(folder))]
    if status := launch(processes, arguments):
        raise click.exceptions.Exit(status)
