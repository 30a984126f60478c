"""What a finished stage of training or evaluation says on the terminal: its own table, not only counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from rlaif.errors import RunError
from rlaif.files import read_object
from rlaif.report.comparison import POLICIES, evaluation_table
from rlaif.report.training import Rows, figures, growth, ppo_steps, reward_ways
from rlaif.results.evaluation import Evaluation

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["read_result", "show_results"]


def show_results(kind: str, folder: Path, console: Console, *, evaluated: bool = False) -> None:
    """Print the tables of a stage of `kind`; nothing for kinds that have none.

    Args:
        evaluated: The policies' own figures were printed by an `evaluate` stage, and a comparison need not
            repeat them.
    """
    match kind:
        case "audit":
            _show_audit(read_result(folder / "audit.json"), console)
        case "reward":
            report = read_result(folder / "report.json")
            _table(reward_ways(report), console, title=f"on {report['held_out_pairs']} held-out pairs")
            if report["human"]:
                console.print(
                    f"on people's labels: {report['human']['accuracy']:.3f} of {report['human']['pairs']} "
                    "pairs"
                )
        case "ppo":
            steps = [
                json.loads(line)
                for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            ]
            _table(
                ppo_steps([steps[0], *steps[1:][-1:]] if steps else []), console, title="first and last step"
            )
        case "best_of_k":
            report = read_result(folder / "report.json")
            for each in report["rounds"]:
                _table(growth(each), console, title=f"round {each['round']}")
            _table(figures(report["student"]), console, title="the policy that was made")
        case "sft" | "dpo":
            _table(figures(read_result(folder / "report.json")), console)
        case "evaluate":
            table = evaluation_table(
                Evaluation.from_dict(read_result(folder / "evaluation.json"), where=str(folder))
            )
            _table(Rows(table.header, table.rows), console, title=table.title)
        case "compare":
            _show_comparison(
                read_result(folder / "comparison.json"), console, without=POLICIES if evaluated else ""
            )


def _show_audit(found: dict[str, Any], console: Console) -> None:
    """A line for each protocol, and the suggestion."""
    for part in found["protocols"]:
        console.print(f"audit ({part['key']['protocol']}): {part['judgement']['words']}", soft_wrap=True)
    if found["suggestion"]:
        console.print(
            f"suggestion ({found['suggestion']['pairs']}): {found['suggestion']['words']}", soft_wrap=True
        )


def _show_comparison(found: dict[str, Any], console: Console, *, without: str) -> None:
    for table in found["tables"]:
        if table["title"] != without:
            _table(Rows(table["header"], table["rows"]), console, title=table["title"])
    for sentence in found["verdict"]:
        console.print(f"• {sentence}", soft_wrap=True)


def _table(rows: Rows, console: Console, *, title: str | None = None) -> None:
    if not rows.cells:
        return
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows.header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for cells in rows.cells:
        table.add_row(*cells)
    console.print(table)


def read_result(path: Path) -> dict[str, Any]:
    """What a finished stage wrote as JSON.

    Raises:
        RunError: The file is missing or damaged.
    """
    return read_object(path, error=RunError, what="the stage's result", remedy="run the same command again")
