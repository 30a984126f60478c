"""The log of training steps: goes on after an interruption without telling a step twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.errors import RunError
from rlaif.runs.costs import COST, read_cost, write_cost
from rlaif.runs.steps import StepLog


def test_rows_stay_and_go_on(tmp_path: Path) -> None:
    first = StepLog(tmp_path / "work" / "metrics.jsonl")
    for step in range(5):
        first.add({"step": step, "by": "first"})
    with (tmp_path / "work" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "by"')  # killed in the middle of a line
    second = StepLog(tmp_path / "work" / "metrics.jsonl")
    assert [row["step"] for row in second.rows] == [0, 1, 2, 3, 4]
    second.add({"step": 3, "by": "second"})  # the last checkpoint was after step 2
    second.add({"step": 4, "by": "second"})
    again = StepLog(tmp_path / "work" / "metrics.jsonl").rows
    assert [(row["step"], row["by"]) for row in again] == [
        (0, "first"),
        (1, "first"),
        (2, "first"),
        (3, "second"),
        (4, "second"),
    ]


def test_several_rows_of_one_step(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "samples.jsonl")
    for number in range(3):
        log.add({"step": 0, "number": number})
    assert len(StepLog(tmp_path / "samples.jsonl").rows) == 3


def test_costs_come_back(tmp_path: Path) -> None:
    path = tmp_path / COST
    assert read_cost(path) is None
    write_cost(path, {"tokens": 10, "seconds": 1.5, "curve": [{"tokens": 0}]})
    assert read_cost(path) == {"tokens": 10, "seconds": 1.5, "curve": [{"tokens": 0}]}
    path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        read_cost(path)
