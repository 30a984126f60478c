"""What a run has spent on models behind servers, kept in its folder: a limit holds over every invocation of
the run.

`spending.jsonl` has a row for each model: requests, tokens read and written, and their cost in the currency
of the prices. While the run works, each answer adds a row, so that a process that is killed forgets none; the
next one adds them up.
"""

from __future__ import annotations

import json
import math
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rlaif.files import parse_object
from rlaif.runs.disk import read_appended, run_errors, write_whole

__all__ = ["SPENDING", "Spending", "Spent"]

SPENDING = "spending.jsonl"


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used of one model.

    Attributes:
        cost: In the currency of the prices that were given; 0 where none were.
    """

    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.model,
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
        )


class Spending:
    """The account of one run; use it as a context.

    Args:
        path: `spending.jsonl` in the run's folder, made with the first entry; `None` keeps the account in
            memory.

    Raises:
        RunError: The file cannot be read, or a row before the last is not as it was written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self._lock = threading.Lock()
        self._spent: dict[str, Spent] = {}
        remedy = "correct the row, or remove the file: the run's cost then counts from zero"
        for entry in (
            ()
            if path is None
            else read_appended(path, _entry, what="the row of what was spent", remedy=remedy)
        ):
            self._count(entry)

    @property
    def models(self) -> tuple[Spent, ...]:
        """All that was spent, by model, in the order of first use."""
        return tuple(self._spent.values())

    @property
    def cost(self) -> float:
        """All of it together."""
        return math.fsum(each.cost for each in self._spent.values())

    def cost_of(self, model: str) -> float:
        """What one model has cost."""
        return self._spent[model].cost if model in self._spent else 0.0

    def add(self, entry: Spent) -> None:
        """Note what an answer used; on disk when this returns.

        Raises:
            RunError: The disk refuses.
        """
        if self._path is None:
            with self._lock:
                self._count(entry)
            return
        with self._lock, run_errors("note what was spent", self._path):
            if self._file is None:
                self._rewrite(self._path)  # one row for each model, and no line that was cut short
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
            self._file.flush()
            self._count(entry)

    def close(self) -> None:
        """Add up the rows of each model.

        Raises:
            RunError: The disk refuses.
        """
        if self._file is not None and self._path is not None:
            self._file.close()
            self._file = None
            self._rewrite(self._path)

    def __enter__(self) -> Spending:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.close()

    def _count(self, entry: Spent) -> None:
        self._spent[entry.model] = self._spent.get(entry.model, Spent(entry.model)) + entry

    def _rewrite(self, path: Path) -> None:
        write_whole(
            path, "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in self.models)
        )


def _entry(line: bytes) -> Spent | None:
    """The entry of a line; `None` where it is none."""
    try:
        row = parse_object(line.decode("utf-8"))
        counts = [row[name] for name in ("requests", "prompt_tokens", "completion_tokens")]
        cost = row["cost"]
    except (ValueError, KeyError):
        return None
    if not isinstance(row.get("model"), str) or not all(_is_count(each) for each in counts):
        return None
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < math.inf:
        return None
    requests, prompt, completion = counts
    return Spent(row["model"], requests, prompt, completion, float(cost))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
