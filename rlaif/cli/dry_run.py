"""What `--dry-run` prints: counts, tokens, an estimate of time, and one rendered prompt of each kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from rlaif.cli.console import output
from rlaif.config import Recipe
from rlaif.engines.api.costs import money
from rlaif.jobs.planning import PLACEHOLDER, StagePlan
from rlaif.models.load import resolve
from rlaif.models.open import is_scripted, is_served
from rlaif.pipeline.dry_run import RunPlan, plan_recipe
from rlaif.runs.manifest import MANIFEST
from rlaif.text import counted

__all__ = ["duration", "estimate_line", "show_plan"]

IMAGINED = re.compile(rf"(?:{PLACEHOLDER.strip()} +){{3,}}(?:{PLACEHOLDER.strip()})?\d*")


def show_plan(plan: RunPlan, folder: Path) -> None:
    """Print `plan`; nothing is asked and nothing is written."""
    console = output()
    for stage in plan.stages:
        for name, text in stage.example.items():
            console.rule(f"{stage.name}: one {name} prompt, as {stage.model} will read it", align="left")
            console.print(_without_placeholders(text), soft_wrap=True)
    console.rule("what would be done", align="left")
    table = Table()
    priced = plan.cost is not None
    names = (
        "stage",
        "model",
        "counts",
        "tokens read",
        "tokens written at most",
        "time, about",
        "cost at most",
    )
    for name in names if priced else names[:-1]:
        table.add_column(
            name, justify="right" if name.startswith(("tokens", "time", "cost")) else "left", overflow="fold"
        )
    for stage in plan.stages:
        counts = "\n".join(counted(value, name) for name, value in stage.counts.items())
        cells = (
            stage.name,
            stage.model,
            counts,
            f"{stage.read:,}",
            f"{stage.write:,}",
            duration(stage.seconds),
        )
        table.add_row(*cells, *_cost(stage, priced))
    console.print(table)
    if plan.cost is not None:
        console.print(
            f"at most about {money(plan.cost)} in total, at the prices given, counting each word as a token",
            soft_wrap=True,
        )
    time = (
        f"about {duration(plan.seconds)} for what can be estimated, as busy as this machine is now; "
        if plan.seconds
        else ""
    )
    console.print(
        f"{time}answers in the journal cost nothing\n"
        f"the run would be in {folder}; nothing was asked, nothing was written",
        soft_wrap=True,
    )


def estimate_line(recipe: Recipe, folder: Path, *, note: Callable[[str], None]) -> str:
    """About how long the stages of `recipe` take that have no result in `folder`; empty where nothing can be
    estimated.

    Args:
        note: Told before a model is fetched.

    Raises:
        RlaifError: An input cannot be read, or a tokenizer is not to be had.
    """
    if is_scripted(recipe.model) or is_served(recipe.model):
        return ""
    resolve(recipe.model, weights=False, log=note)
    ahead = [stage for stage in plan_recipe(recipe).stages if not (folder / stage.name / MANIFEST).is_file()]
    known = [(stage.name, stage.seconds) for stage in ahead if stage.seconds is not None]
    if not known:
        return ""
    parts = ", ".join(f"{name} {duration(time)}" for name, time in known)
    total = duration(sum(time for _, time in known))
    return f"about {total} on this machine, as busy as it was for half a second just now ({parts})"


def _cost(stage: StagePlan, priced: bool) -> list[str]:
    """The cell of the cost, if there is such a column."""
    return ["-" if stage.cost is None else money(stage.cost)] if priced else []


def _without_placeholders(text: str) -> str:
    """The prompt as a reader wants it: what stands in for a completion is as long as one, and says
    nothing."""
    return IMAGINED.sub("(a completion of this run)", text)


def duration(seconds: float | None) -> str:
    """`seconds` for a reader: `40 s`, `12 min`, `3.5 h`; a dash where unknown (scripted and served models,
    training)."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
