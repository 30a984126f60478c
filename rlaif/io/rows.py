"""What the readers share: find the columns, go through the rows, and answer for the bad ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rlaif.errors import DataError, Problem
from rlaif.io.tables import DataTable, Row
from rlaif.suggest import did_you_mean

__all__ = [
    "CONTEXT_COLUMN",
    "OTHER_PROMPT_COLUMNS",
    "PROMPT_COLUMN",
    "cell",
    "claim_id",
    "each_row",
    "find_columns",
    "refuse_bad_rows",
]

PROMPT_COLUMN = "prompt"
OTHER_PROMPT_COLUMNS = ("messages", "conversations", "question", "instruction", "text")
"""Taken for the prompt where there is no column `prompt` and just one of these."""
CONTEXT_COLUMN = "context"
READ_ANYWAY = frozenset(
    {"id", "tags", "category", "system", "system_prompt", "rubric", "rubrics", "reference"}
)
LISTED = 20
"""Bad rows that a message lists."""


def find_columns(
    table: DataTable,
    source: str | Path,
    prompt_column: str,
    context_column: str,
    *,
    also: Collection[str] = (),
) -> tuple[str, list[str]]:
    """The column that holds the prompt, and notes about columns that were guessed or are not read.

    Raises:
        DataError: A column that was asked for is in no row, or several could be the prompt.
    """
    columns = table.columns
    notes: list[str] = []
    if not table.rows:
        return prompt_column, notes
    column = prompt_column
    if column not in columns:
        column = _guess(columns, source, prompt_column)
        notes.append(f"no column `{prompt_column}`; the prompts are those of `{column}`")
    if context_column not in columns and context_column != CONTEXT_COLUMN:
        raise _missing(columns, source, context_column, "--context-column")
    read = {column, context_column, *READ_ANYWAY, *also, *(("input",) if column == "instruction" else ())}
    unread = [name for name in columns if name not in read]
    if unread:
        notes.append(f"columns that are not read: {', '.join(unread)}")
    return column, notes


def cell(row: Row, column: str) -> Any:
    """The cell of a column that every row must have."""
    if column not in row.values:
        raise DataError(
            f"no column `{column}` in this row; it has {', '.join(row.values) or 'none'}", remedy="add it"
        )
    return row.values[column]


def claim_id(id: str, row: Row, places: dict[str, str]) -> None:
    """Note that `id` is that of `row`; two prompts cannot share one."""
    if id in places:
        raise DataError(
            f"the id {id!r} is already that of {places[id]}", remedy="give each prompt its own id, or none"
        )
    places[id] = row.where


def each_row(table: DataTable, add: Callable[[Row], None]) -> list[Problem]:
    """Call `add` for every row; what it objects to joins the problems of the table, in the order of the
    file."""
    problems = list(table.problems)
    for row in table.rows:
        try:
            add(row)
        except DataError as error:
            problems.append(Problem(error.what, where=row.where, remedy=error.remedy))
    return sorted(problems, key=_line)


def refuse_bad_rows(problems: Sequence[Problem], *, rows: int, source: str | Path, skip: bool | None) -> None:
    """Raise unless all is well, or the bad rows may be skipped and some good ones remain.

    Args:
        skip: Whether they may be skipped; `None` where there is no setting that would let them.

    Raises:
        DataError: With the first of the problems.
    """
    bad, good = len(problems), rows - len(problems)
    if not bad or (skip and good):
        return
    shown = list(problems[:LISTED])
    if bad > LISTED:
        shown.append(Problem(f"… and {bad - LISTED:,} more"))
    correct = f"correct {'it' if bad == 1 else 'them'}"
    kept = "" if skip is None else f", or --skip-bad-rows keeps the other {good:,}"
    remedy = correct + kept if good else "correct the file"
    what = f"{bad:,} of {rows:,} rows cannot be read" if good else f"no usable row among {rows:,}"
    raise DataError(what, where=str(source), remedy=remedy, problems=shown)


def _line(problem: Problem) -> int:
    found = re.search(r"\d+$", problem.where)
    return int(found.group()) if found else 0


def _guess(columns: list[str], source: str | Path, asked: str) -> str:
    found = [name for name in OTHER_PROMPT_COLUMNS if name in columns]
    if asked != PROMPT_COLUMN or not found:
        raise _missing(columns, source, asked, "--prompt-column")
    if len(found) > 1:
        raise DataError(
            f"no column `prompt`, and several that may be meant: {', '.join(found)}",
            where=str(source),
            remedy=f"say which: --prompt-column {found[0]}",
        )
    return found[0]


def _missing(columns: list[str], source: str | Path, asked: str, option: str) -> DataError:
    return DataError(
        f"no column `{asked}`; the columns are {', '.join(columns) or 'none'}",
        where=str(source),
        remedy=f"{did_you_mean(asked, columns)}name it with {option}",
    )
