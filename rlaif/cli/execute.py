"""Run a recipe for a command: progress while it runs, a summary at the end. Imports torch's users only when it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlaif.config import Recipe
from rlaif.text import count_of, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from rlaif.pipeline.run import RunResult, StageResult
    from rlaif.runs.spending import Spent

__all__ = ["execute"]

EXAMPLES = 5
"""Labelled pairs printed at the end."""
EXCERPT = 300
"""Characters of a text that are printed; the files hold all of it."""


def execute(recipe: Recipe, *, out: Path | None, journal: Path | None, dry_run: bool, merge: bool = False) -> None:
    """Run `recipe` and print its summary; with `dry_run`, print what would be done.

    Args:
        merge: Write the full model of the last stage's adapter too.
    """
    from rlaif.cli.console import ConsoleProgress, output
    from rlaif.pipeline.run import default_folder, run_recipe

    folder = out or default_folder(recipe)
    if dry_run:
        from rlaif.cli.dry_run import show_plan
        from rlaif.pipeline.plan import plan_recipe

        show_plan(plan_recipe(recipe), folder)
        return
    with ConsoleProgress() as progress:
        result = run_recipe(recipe, out=folder, journal=journal, progress=progress)
        if merge:
            from rlaif.pipeline.merging import adapter_of, merge_adapter

            progress.note(f"the full model is in {merge_adapter(adapter_of(result.stages[-1].folder), log=progress.note)}")
    console = output()
    for stage in result.stages:
        _show_stage(stage, console, evaluated="evaluate" in {each.config.stage for each in result.stages})
    _show_end(result, console)


def _show_stage(stage: StageResult, console: Console, *, evaluated: bool) -> None:
    from rlaif.cli.summary import show_results

    if stage.config.stage == "label":
        _show_labels(stage, console)
        return
    counts = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in stage.manifest.counts.items())
    _head(stage.config.name, f"{counts}  ({stage.manifest.seconds:.0f} s)", console)
    show_results(stage.config.stage, stage.folder, console, evaluated=evaluated)


def _show_labels(stage: StageResult, console: Console) -> None:
    from rich.table import Table

    from rlaif.cli.summary import read_result

    statistics = read_result(stage.folder / "statistics.json")
    counts, models = stage.manifest.counts, stage.manifest.models
    _head(stage.config.name, f"judge {models['judge']}, {stage.manifest.parts['protocol']}", console)
    table = Table(title=None)
    for name in ("principle", "verdicts", "invalid", "flip rate", "first shown wins", "mean strength", "labels hold"):
        table.add_column(name, justify="left" if name == "principle" else "right")
    for name, row in statistics["principles"].items():
        table.add_row(name, *_cells(row))
    table.add_section()
    table.add_row("all", *_cells(statistics), style="bold")
    console.print(table)
    console.print(
        f"{labelled(counts)}\n"
        f"ties {_rate(statistics['tie_rate'])} (within 0.005 of one half)   mean label strength "
        f"{_number(statistics['mean_strength'])} (|p - 0.5|: 0 says nothing, 0.5 is certain)", soft_wrap=True,
    )
    _show_examples(stage, console)


def _head(name: str, text: str, console: Console) -> None:
    console.print(f"\n{one_line(name)}", style="bold", end="")
    console.print(f"  {text}", soft_wrap=True)


def labelled(counts: Mapping[str, int]) -> str:
    """What became of the comparisons, in a line; only what happened is told."""
    kept, asked = counts["preferences"], counts["comparisons"]
    without = {
        "without a label": counts["unlabelled"], "too weak (weak.jsonl)": counts.get("weak", 0),
        "not best against worst": counts["not_best_worst"],
    }
    before = {
        "identical pairs": counts["identical_pairs"], "repeated pairs": counts["repeated_pairs"],
        "pairs not drawn": counts["pairs_not_drawn"], "rows that cannot be read": counts.get("bad_rows", 0),
    }
    lost = [f"{count:,} {reason}" for reason, count in without.items() if count]
    share = f"{kept:,}" if not lost else f"{kept:,} of {asked:,}"
    line = f"{share} comparison{'' if asked == 1 else 's'} labelled, {', '.join(lost) or 'none left out'}"
    left = [f"{count:,} {reason}" for reason, count in before.items() if count]
    return f"{line}; not judged: {', '.join(left)}" if left else line


def questions(asked: int, reused: int) -> str:
    """How many questions models were asked; an answer is reused from the journal, or from the same question of this run."""
    line = f"asked {count_of(asked, 'question')}"
    return f"{line}, {reused:,} more had an answer already (of this run or an earlier one)" if reused else line


def _cells(row: Mapping[str, Any]) -> list[str]:
    counts = [str(row["verdicts"]), str(row["invalid"])]
    rates = [_rate(row["flip_rate"]), _rate(row["first_rate"]), _number(row["mean_strength"])]
    return [*counts, *rates, _rate(row.get("mean_label_share"))]


def _show_examples(stage: StageResult, console: Console) -> None:
    from rlaif.report.samples import read_spread

    for row in read_spread(stage.folder / next(iter(stage.manifest.outputs)), EXAMPLES):
        _head(row["id"], f"p(chosen) = {row['p_chosen']:z.3f}", console)
        for name, messages in (("prompt", row["prompt"]), ("chosen", row["chosen"]), ("rejected", row["rejected"])):
            console.print(f"  {name:>8}  ", style="dim", end="")
            console.print(_excerpt(messages[-1]["content"]), soft_wrap=True)


def _show_end(result: RunResult, console: Console) -> None:
    console.print(f"\n{questions(result.asked, result.reused)}; journal: {result.journal}", soft_wrap=True)
    for line in _spent(result.spent, result.limit):
        console.print(line, soft_wrap=True, highlight=False)
    for stage in result.stages:
        main = next(iter(stage.manifest.outputs))
        rows = "" if stage.manifest.rows is None else f" ({count_of(stage.manifest.rows, 'row')})"
        files = f"{stage.folder / main}{rows}, {stage.folder / 'samples.md'}"
        console.print(f"{stage.config.name}: {files}", soft_wrap=True)
    for stage in result.stages:
        if stage.manifest.gaps:
            console.print(
                f"{stage.config.name}: {count_of(stage.manifest.gaps, 'question')} got no answer, "
                f"for a reason that may pass; the same command asks them again, and nothing else", soft_wrap=True,
            )
    _show_memory([stage for stage in result.stages if stage.manifest.peak_bytes], console)
    console.print(f"{result.seconds:.0f} s in all")


def _spent(spent: Sequence[Spent], limit: float | None) -> list[str]:
    """What the run has used of models behind servers, a line for each, and its cost where prices were given."""
    from rlaif.engines.api.costs import money

    lines = [
        f"{one_line(each.model)}: {each.requests:,} answers, {each.prompt_tokens:,} tokens read, {each.completion_tokens:,} written"
        + (f", cost {money(each.cost)}" if each.cost else "")
        for each in spent
    ]
    total = sum(each.cost for each in spent)
    if total or limit is not None:
        lines.append(f"this run has cost {money(total)}" + (f" of the {money(limit)} allowed" if limit is not None else ""))
    return lines


def _show_memory(stages: Sequence[StageResult], console: Console) -> None:
    """Plan and measured peak of every stage beside each other."""
    from rlaif.models.memory import size

    for stage in stages:
        planned, peak = stage.manifest.planned_bytes, stage.manifest.peak_bytes
        plan = f", planned {size(planned)} ({planned / peak - 1:+.0%})" if planned else ""
        console.print(f"memory of {stage.config.name}: peak {size(peak)}{plan}", soft_wrap=True, highlight=False)


def _excerpt(text: str) -> str:
    line = one_line(" ".join(text.split())) or "(empty)"
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.3f}"
