"""What a run has cost: time and memory of its stages, tokens of training, and what servers were paid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlaif.report.page.model import Section
from rlaif.report.page.reading import Missing, Stage
from rlaif.report.shown import Table
from rlaif.runs.run import RunInfo
from rlaif.runs.spending import SPENDING, Spending, Spent
from rlaif.text import counted, one_line

__all__ = ["cost_section"]


def cost_section(
    info: RunInfo, stages: Sequence[Stage], missing: Missing, training: Sequence[Table]
) -> Section:
    """A row a stage, and the tables of training and of served models where there are any."""
    spent = missing.attempt(SPENDING, lambda: _spent(info.path / SPENDING)) or ()
    tables = [*([_stages(stages)] if stages else []), *training, *([_served(spent)] if spent else [])]
    return Section("cost", "Cost", tables=tuple(tables))


def _stages(stages: Sequence[Stage]) -> Table:
    rows = [
        (
            one_line(stage.name),
            stage.manifest.kind,
            f"{stage.manifest.seconds:,.0f}",
            _gigabytes(stage.manifest.peak_bytes),
            ", ".join(counted(count, name) for name, count in stage.manifest.counts.items() if count),
        )
        for stage in stages
    ]
    total = sum(stage.manifest.seconds for stage in stages)
    peak = max(stage.manifest.peak_bytes for stage in stages)
    header = ("stage", "kind", "time (s)", "peak memory (GB)", "counts")
    return Table("Stages", header, [*rows, ("all", "", f"{total:,.0f}", _gigabytes(peak), "")], total=True)


def _served(spent: Sequence[Spent]) -> Table:
    rows = [
        (
            one_line(each.model),
            f"{each.requests:,}",
            f"{each.prompt_tokens:,}",
            f"{each.completion_tokens:,}",
            f"{each.cost:,.4f}",
        )
        for each in spent
    ]
    header = ("model", "answers", "tokens read", "tokens written", "cost")
    return Table("Models behind servers", header, rows)


def _spent(path: Path) -> tuple[Spent, ...]:
    """What was spent; the account is only read here."""
    return Spending(path).models if path.exists() else ()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f}" if count else "–"
