"""What `--dry-run` prints: counts, tokens, an estimate of time, and one rendered prompt of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from rlaif.cli.console import output

if TYPE_CHECKING:
    from rlaif.pipeline.plan import Plan

__all__ = ["duration", "show_plan"]


def show_plan(plan: Plan, folder: Path) -> None:
    """Print `plan`; nothing is asked and nothing is written."""
    console = output()
    for stage in plan.stages:
        for name, text in stage.example.items():
            console.rule(f"{stage.name}: one {name} prompt, as {stage.model} will read it", align="left")
            console.print(text, soft_wrap=True)
    console.rule("what would be done", align="left")
    table = Table()
    for name in ("stage", "model", "counts", "tokens read", "tokens written at most", "time, about"):
        table.add_column(name, justify="right" if name.startswith(("tokens", "time")) else "left", overflow="fold")
    for stage in plan.stages:
        counts = "\n".join(f"{value:,} {name}" for name, value in stage.counts.items())
        table.add_row(stage.name, stage.model, counts, f"{stage.read:,}", f"{stage.write:,}", duration(stage.seconds))
    console.print(table)
    console.print(
        f"about {duration(plan.seconds)} for what can be estimated, good to a factor of two; answers in the journal cost nothing\n"
        f"the run would be in {folder}; nothing was asked, nothing was written", soft_wrap=True,
    )


def duration(seconds: float | None) -> str:
    """`seconds` for a reader: `40 s`, `12 min`, `3.5 h`; a dash where unknown (scripted and served models, training)."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
