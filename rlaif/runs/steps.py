"""Rows of a training that may be interrupted: kept beside the stage, cut back to where it goes on, whole when
it ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlaif.files import parse_object
from rlaif.runs.disk import read_appended, run_errors, write_whole

__all__ = ["StepLog"]


class StepLog:
    """An append-only JSONL file of rows with a `step`, each on disk when `add` returns.

    After an interruption training goes on from a checkpoint, perhaps some steps before the last row: the
    first `add` drops what stands at its step or later, so that no step is told twice.

    Args:
        path: The file; its folder is made when missing.

    Attributes:
        rows: All rows so far, those of earlier processes included.

    Raises:
        RunError: The file cannot be read, or a row before the last is not as it was written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begun = False
        with run_errors("make the folder of the steps", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        remedy = "remove that line, or the file: then the table of steps begins where training goes on"
        self.rows: list[dict[str, Any]] = read_appended(
            path, _row, what="the row of a training step", remedy=remedy
        )

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            RunError: The disk refuses.
        """
        with run_errors("write the steps", self.path):
            if not self._begun:
                self.rows = [each for each in self.rows if each["step"] < row["step"]]
                # Aside and renamed: a process that is killed in between must not lose the rows that stand.
                write_whole(
                    self.path, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in self.rows)
                )
                self._begun = True
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(row), ensure_ascii=False) + "\n")
        self.rows.append(dict(row))


def _row(line: bytes) -> dict[str, Any] | None:
    """The row of a line; `None` where it is none."""
    try:
        row = parse_object(line.decode("utf-8"))
    except ValueError:
        return None
    step = row.get("step")
    return row if isinstance(step, int) and not isinstance(step, bool) else None
