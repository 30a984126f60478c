"""`rlaif study`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import examples
from rlaif.errors import ConfigError
from rlaif.text import count_of

if TYPE_CHECKING:
    from rlaif.pipeline.study import StudyPlan, StudyResult

__all__ = ["study"]


@click.command(
    epilog=examples(
        "rlaif study recipes/quickstart.yaml --seeds 5",
        "rlaif study recipes/quickstart.yaml --seeds 0,1,7 --jobs 2",
        "rlaif study recipes/quickstart.yaml --grid stages.ppo.steps=7,14,28",
        "rlaif study recipes/quickstart.yaml --dry-run",
    )
)
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--seeds",
    default="5",
    show_default=True,
    metavar="N|A,B,…",
    help="How many seeds, counted from the recipe's; or which ones, divided by commas (`7,` for one).",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="A.B=X,Y",
    help="Try each of these values; with several grids every combination.",
)
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Set a value for all runs.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder of the study. [default: studies/NAME-DIGEST]",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, metavar="N", help="Seeds that run side by side."
)
@click.option("--dry-run", is_flag=True, help="List the runs, and show what one of them would do.")
def study(
    recipe: str,
    seeds: str,
    grid: tuple[str, ...],
    overrides: tuple[str, ...],
    out: Path | None,
    jobs: int,
    dry_run: bool,
) -> None:
    """Run RECIPE under several seeds, and say what holds over all of them.

    One table: the mean over seeds with an interval over seeds and prompts, the paired differences, which
    policy came first how often, and what training took. A winner is named only where its intervals exclude
    zero.

    The same command goes on where it was interrupted. More seeds or another grid continue in the same folder.
    A stage that a grid does not touch is computed once for each seed.
    """
    from rlaif.pipeline.study import plan_study

    plan = plan_study(recipe, overrides=overrides, seeds=read_seeds(seeds), grid=read_grid(grid), out=out)
    if dry_run:
        _show_plan(plan)
        return
    from rlaif.cli.console import ConsoleProgress
    from rlaif.pipeline.study import run_study

    with ConsoleProgress() as progress:
        result = run_study(plan, jobs=jobs, progress=progress)
    _show(result)
    if result.failed:
        raise click.exceptions.Exit(1)


def read_seeds(text: str) -> int | list[int]:
    """`5`: that many; `0,1,7`: these.

    Raises:
        ConfigError: It is neither.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts if part) or not parts[0]:
        raise ConfigError(f"--seeds {text!r} is neither a number nor a list of seeds", remedy="5, or 0,1,7")
    return int(parts[0]) if len(parts) == 1 else [int(part) for part in parts if part]


def read_grid(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """`stages.ppo.beta=0.02,0.05` as a path and its values, read as YAML.

    Raises:
        ConfigError: A grid has no path or no values, or names the seed.
    """
    from rlaif.config.reading import read_yaml

    found: dict[str, list[Any]] = {}
    for text in texts:
        path, _, listed = text.partition("=")
        path = path.strip()
        _, values = read_yaml(f"[{listed}]", source="--grid", what="a grid")
        if not path or not values:
            raise ConfigError(f"--grid {text!r} is not of the form a.b=x,y", remedy="stages.ppo.steps=7,14")
        if path == "seed" or path in found:
            remedy = "use --seeds" if path == "seed" else "list all its values in one --grid"
            raise ConfigError(f"--grid cannot vary {path!r} here", remedy=remedy)
        found[path] = [value for i, value in enumerate(values) if value not in values[:i]]
    return found


def _show_plan(plan: StudyPlan) -> None:
    from rlaif.cli.console import output
    from rlaif.cli.dry_run import show_plan
    from rlaif.pipeline.dry_run import plan_recipe

    first = plan.runs[0]
    show_plan(plan_recipe(first.recipe), plan.folder / first.name)
    console = output()
    console.print(f"\nThis would be one of {count_of(len(plan.runs), 'run')} of the study in {plan.folder}:")
    for run in plan.runs:
        console.print(f"  {run.name}" + (f"  ({run.setting})" if run.setting else ""))


def _show(result: StudyResult) -> None:
    from rlaif.cli.console import output
    from rlaif.cli.show import show
    from rlaif.pipeline.report import REPORT
    from rlaif.pipeline.study import STUDY
    from rlaif.report.study import study_tables

    console = output()
    for name, why in result.failed.items():
        console.print(f"{name} did not finish: {why}", soft_wrap=True)
    if result.found is None:
        console.print(
            "too few seeds finished for a table; mend what the logs show and give the same command again",
            soft_wrap=True,
        )
        return
    show([*study_tables(result.found), *(f"• {line}" for line in result.found.verdict)], console)
    console.print(f"\n{result.plan.folder / STUDY}, {result.plan.folder / 'study.md'}", soft_wrap=True)
    if (report := result.plan.folder / REPORT).exists():
        console.print(f"report: {report} (one file; open it in a browser)", soft_wrap=True)
