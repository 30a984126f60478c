"""Run a recipe for a command: progress while it runs, a summary at the end. Imports torch's users only when
it is called."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rlaif.text import count_of, one_line

if TYPE_CHECKING:
    from rich.console import Console

    from rlaif.config import Recipe
    from rlaif.pipeline.run import RunResult, StageResult
    from rlaif.results.rounds import Rounds
    from rlaif.runs.spending import Spent

__all__ = ["execute", "execute_rounds"]


def execute(
    recipe: Recipe,
    *,
    out: Path | None,
    journal: Path | None,
    dry_run: bool,
    merge: bool = False,
    shards: Sequence[Path] = (),
    reuse: Sequence[Path] = (),
    estimate: bool = False,
) -> None:
    """Run `recipe` and print its summary; with `dry_run`, print what would be done.

    Args:
        merge: Write the full model of the last stage's adapter too.
        shards: Runs of shards, whose answers are taken over first.
        reuse: Other runs, whose finished stages are taken over where they are the same.
        estimate: Say first about how long it will take.
    """
    from rlaif.cli.console import ConsoleProgress, output
    from rlaif.pipeline.run import default_folder, run_recipe

    folder = out or default_folder(recipe)
    if dry_run:
        from rlaif.cli.dry_run import show_plan
        from rlaif.pipeline.dry_run import plan_recipe

        show_plan(plan_recipe(recipe), folder)
        return
    from rlaif.models.ranks import join
    from rlaif.pipeline.report import reported, try_report
    from rlaif.progress import NoProgress

    ranks, parts = join(), None
    with ConsoleProgress() if ranks.first else nullcontext(NoProgress()) as progress:
        if estimate and ranks.count == 1:
            from rlaif.cli.dry_run import estimate_line

            if line := estimate_line(recipe, folder, note=progress.note):
                progress.note(line)
        if shards and ranks.first:
            from rlaif.pipeline.shards import merge_shards
            from rlaif.runs.journal import JOURNAL

            place = journal or folder.absolute().parent / JOURNAL
            parts = merge_shards(recipe, shards, place, progress, out=folder)
        with reported(folder, progress.note) if ranks.first else nullcontext():
            result = run_recipe(
                recipe, out=folder, journal=journal, progress=progress, parts=parts, reuse=reuse
            )
        if merge and ranks.first:
            from rlaif.jobs.merging import adapter_of, merge_adapter

            progress.note(
                "the full model is in "
                f"{merge_adapter(adapter_of(result.stages[-1].folder), log=progress.note)}"
            )
        report = try_report(result.folder, progress.note) if ranks.first else None
    if ranks.first:
        _show_stages(result, output())
        _show_end(result, output(), report)


def execute_rounds(recipe: Recipe, *, out: Path | None, journal: Path | None, dry_run: bool) -> None:
    """Run a recipe in rounds: after each its answers, at the end the table of all; with `dry_run` what the
    first round would do."""
    from rlaif.cli.console import ConsoleProgress, output
    from rlaif.cli.show import show, show_head
    from rlaif.pipeline.report import REPORT
    from rlaif.pipeline.rounds import ROUNDS, check_rounds, recipe_of_round, run_rounds
    from rlaif.pipeline.run import default_folder
    from rlaif.report.rounds import rounds_shown

    folder = out or default_folder(recipe)
    if dry_run:
        from rlaif.cli.dry_run import show_plan
        from rlaif.pipeline.dry_run import plan_recipe

        check_rounds(recipe)
        show_plan(plan_recipe(recipe_of_round(recipe, 1, None)), folder / "round-1")
        output().print(f"\nThis would be the first of {count_of(_rounds_of(recipe), 'round')} in {folder}")
        return
    from rlaif.models.ranks import join
    from rlaif.progress import NoProgress

    ranks = join()

    def told(result: RunResult, rounds: Rounds) -> None:
        number = rounds.rounds[-1].number
        show_head(f"round {number}", str(result.folder), output())
        _show_stages(result, output())
        show(rounds_shown(rounds, last=True), output())

    with ConsoleProgress() if ranks.first else nullcontext(NoProgress()) as progress:
        found = run_rounds(recipe, out=folder, journal=journal, progress=progress, on_round=told)
    if ranks.first:
        show(rounds_shown(found), output())
        output().print(f"\n{folder / ROUNDS}, {folder / 'rounds.md'}, {folder / 'policy'}", soft_wrap=True)
        if (report := folder / REPORT).exists():
            _show_report(report, output())


def _rounds_of(recipe: Recipe) -> int:
    return 1 if recipe.rounds is None else recipe.rounds.count


def _show_stages(result: RunResult, console: Console) -> None:
    from rlaif.cli.show import show, show_head

    for stage in result.stages:
        show_head(stage.config.name, stage.job.headline(stage.manifest), console)
        show(stage.job.summary(stage.folder, stage.manifest), console)


def questions(asked: int, reused: int) -> str:
    """How many questions models were asked; an answer is reused from the journal, or from the same question
    of this run."""
    line = f"asked {count_of(asked, 'question')}"
    return (
        f"{line}, {reused:,} more had an answer already (of this run or an earlier one)" if reused else line
    )


def _show_end(result: RunResult, console: Console, report: Path | None) -> None:
    console.print(f"\n{questions(result.asked, result.reused)}; journal: {result.journal}", soft_wrap=True)
    for line in _spent(result.spent, result.limit):
        console.print(line, soft_wrap=True, highlight=False)
    for stage in result.stages:
        main = next(iter(stage.manifest.outputs))
        rows = "" if stage.manifest.rows is None else f" ({count_of(stage.manifest.rows, 'row')})"
        files = f"{stage.folder / main}{rows}, {stage.folder / 'samples.md'}"
        console.print(f"{stage.config.name}: {files}", soft_wrap=True)
    if report is not None:
        _show_report(report, console)
    for stage in result.stages:
        if stage.manifest.gaps:
            console.print(
                f"{stage.config.name}: {count_of(stage.manifest.gaps, 'question')} got no answer, "
                f"for a temporary reason; the same command asks these again, and nothing else",
                soft_wrap=True,
            )
    _show_memory([stage for stage in result.stages if stage.manifest.peak_bytes], console)
    console.print(f"{result.seconds:.0f} s in total")
    for stage in result.stages:
        for line in stage.job.closing(stage.folder, stage.manifest):
            console.print(line, soft_wrap=True)


def _show_report(report: Path, console: Console) -> None:
    console.print(f"report: {report} (one file; open it in a browser)", soft_wrap=True)


def _spent(spent: Sequence[Spent], limit: float | None) -> list[str]:
    """What the run has used of models behind servers, a line for each, and its cost where prices were
    given."""
    from rlaif.engines.api.costs import money

    lines = [
        f"{one_line(each.model)}: {each.requests:,} answers, {each.prompt_tokens:,} tokens read, "
        f"{each.completion_tokens:,} written" + (f", cost {money(each.cost)}" if each.cost else "")
        for each in spent
    ]
    total = sum(each.cost for each in spent)
    if total or limit is not None:
        lines.append(
            f"this run has cost {money(total)}"
            + (f" of the {money(limit)} allowed" if limit is not None else "")
        )
    return lines


def _show_memory(stages: Sequence[StageResult], console: Console) -> None:
    """Plan and measured peak of every stage beside each other."""
    from rlaif.models.memory import size

    for stage in stages:
        planned, peak = stage.manifest.planned_bytes, stage.manifest.peak_bytes
        plan = f", planned {size(planned)} ({planned / peak - 1:+.0%})" if planned else ""
        console.print(
            f"memory of {stage.config.name}: peak {size(peak)}{plan}", soft_wrap=True, highlight=False
        )
