"""What a monitor read along a training, as a table and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.report.markdown import table
from rlaif.report.shown import Shown, Table
from rlaif.results.monitor import MonitorReading

__all__ = ["monitor_markdown", "monitor_shown", "reading_line"]

COLUMNS = ("step", "proxy", "gold", "kl", "length", "distinct_2", "refusal")


def reading_line(reading: MonitorReading) -> str:
    """A reading in one line: `monitor at step 5  proxy 0.412  gold 0.310  kl 1.204 …`."""
    row = reading.as_row()
    figures = [f"{name.replace('_', '-')} {_cell(row[name])}" for name in COLUMNS[1:]]
    return "  ".join([f"monitor at step {reading.step}", *figures, f"{reading.seconds:z.1f} s"])


def monitor_shown(rows: Sequence[Mapping[str, Any]], words: Sequence[str]) -> list[Shown]:
    """The first and the last reading and the best between them, and what they say; each row as of
    `monitor.jsonl`."""
    if not rows:
        return []
    best = max(rows, key=lambda row: (row["gold"], -row["step"]))
    steps = sorted({each["step"]: each for each in (rows[0], best, rows[-1])}.items())
    shown = _table([row for _, row in steps], title="held-out prompts: first, best and last reading")
    return [shown, *(f"monitor: {each}" for each in words)]


def monitor_markdown(rows: Sequence[Mapping[str, Any]], words: Sequence[str]) -> str:
    """All readings."""
    if not rows:
        return ""
    found = _table(rows, title="")
    note = "Refusals are counted by a word list (`rlaif.metrics.refusal`), not by a judge."
    said = "".join(f"- {each}\n" for each in words)
    return f"\n## On held-out prompts\n\n{table(found.header, found.rows)}\n{said}\n{note}\n"


def _table(rows: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    parts = [name for name in rows[0] if name.startswith("part/")]
    columns = [*COLUMNS, *(parts if len(parts) > 1 else [])]
    return Table(title, columns, [[_cell(row[name]) for name in columns] for row in rows])


def _cell(value: float | int) -> str:
    return f"{value:z.3f}" if isinstance(value, float) else str(value)
