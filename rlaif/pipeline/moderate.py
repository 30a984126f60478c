"""Moderate a file: every row a prompt or an exchange, its scores a row of the result.

What is scored is appended to a partial file beside the result, with what it depends on in its first line; an
interrupted command goes on from there, and the result appears whole.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlaif.digest import digest
from rlaif.errors import ConfigError
from rlaif.files import parse_object
from rlaif.io.fields import id_of
from rlaif.io.labelled_texts import conversation_in
from rlaif.io.rows import each_row, refuse_bad_rows
from rlaif.io.tables import Row, read_table
from rlaif.io.writers import write_rows
from rlaif.models.heap import bound_kernels
from rlaif.models.shared_base import SharedBase
from rlaif.moderation.base import Moderator, flagged
from rlaif.moderation.files import load_moderator, moderator_note
from rlaif.moderation.scoring import score_each
from rlaif.progress import Progress
from rlaif.runs.disk import read_appended, run_errors
from rlaif.text import count_of
from rlaif.types import Message

__all__ = ["Moderated", "moderate_file", "moderate_rows", "open_moderator", "partial_of"]

AT_ONCE = 32
"""Rows that are scored, and then written, together."""


@dataclass
class Moderated:
    """What a file came to; the counts add up to `rows`.

    Attributes:
        flagged: Rows by the category that flags them; a row may be in several.
        any: Rows that some category flags.
        refused: Rows that could not be scored, by reason.
        resumed: Rows that an earlier command had scored.
    """

    rows: int = 0
    any: int = 0
    clear: int = 0
    bad_rows: int = 0
    resumed: int = 0
    flagged: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row of the result."""
        self.rows += 1
        if row["reason"]:
            self.refused[row["reason"]] += 1
            return
        self.flagged.update(row["flagged"])
        if row["flagged"]:
            self.any += 1
        else:
            self.clear += 1


def open_moderator(
    folder: Path,
    model: str | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    log: Callable[[str], None] = lambda line: None,
) -> Moderator:
    """A moderator with its base loaded.

    Args:
        model: The base; the one that the moderator names when left out.

    Raises:
        ModelError: There is no moderator, its base cannot be loaded, or `model` is another one.
    """
    named = model or str(moderator_note(folder)["base"]["name"])
    bound_kernels()
    return load_moderator(folder, SharedBase.load(named, dtype=dtype, device=device, log=log))


def moderate_file(
    source: str,
    moderator: Moderator,
    out: Path,
    *,
    text_column: str | None = None,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    progress: Progress,
) -> Moderated:
    """Score the rows of `source` and write `out`, a row each: `row`, `id`, `flagged`, `scores`, `reason`.

    Raises:
        ConfigError: The result would be written over what is read.
        DataError: The file cannot be read, or has bad rows (unless `skip_bad_rows`).
        RunError: The result cannot be written, or the partial one is damaged.
    """
    path = Path(os.path.expanduser(source))
    if path.resolve() == out.resolve():
        raise ConfigError(
            "the file that is read would be written over", where=f"--out {out}", remedy="name another file"
        )
    table = read_table(source)
    found: list[tuple[int, str, tuple[Message, ...]]] = []
    number = 0

    def add(row: Row) -> None:
        nonlocal number
        number += 1
        found.append((number, id_of(row.values.get("id")), conversation_in(row.values, text_column)))

    problems = each_row(table, add)
    refuse_bad_rows(problems, rows=len(table.rows) + len(table.problems), source=source, skip=skip_bad_rows)
    read = [[row, id, [message.as_dict() for message in messages]] for row, id, messages in found]
    key = digest([read, moderator.digest])
    counts = _written(found[:limit], moderator, out, key, progress)
    counts.bad_rows = len(problems)
    return counts


def _written(
    found: Sequence[tuple[int, str, tuple[Message, ...]]],
    moderator: Moderator,
    out: Path,
    key: str,
    progress: Progress,
) -> Moderated:
    """Score what an earlier command has not, and put the result together."""
    partial = partial_of(out)
    rows = _begun(partial, key)[: len(found)]
    counts = Moderated(resumed=len(rows))
    progress.begin(f"moderating {count_of(len(found), 'row')}", len(found))
    progress.advance(len(rows))
    with run_errors("write the file", partial), partial.open("a" if rows else "w", encoding="utf-8") as file:
        if not rows:
            file.write(json.dumps({"of": key}) + "\n")
        for start in range(len(rows), len(found), AT_ONCE):
            some = moderate_rows(found[start : start + AT_ONCE], moderator)
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in some)
            file.flush()
            rows += some
            progress.advance(len(some))
    whole = out.with_name(f".{out.name}.tmp")
    write_rows(whole, rows, "jsonl")
    with run_errors("write the file", out):
        whole.replace(out)
        partial.unlink()
    for row in rows:
        counts.add(row)
    return counts


def moderate_rows(
    rows: Sequence[tuple[int, str, tuple[Message, ...]]], moderator: Moderator
) -> list[dict[str, Any]]:
    """The rows of the result; one that cannot be scored says why, and does not stop the others."""
    found = score_each(moderator, [messages for _, _, messages in rows])
    result = []
    for (number, id, _), scores in zip(rows, found, strict=True):
        known = {} if isinstance(scores, str) else scores
        result.append(
            {
                "row": number,
                "id": id,
                "flagged": list(flagged(known, moderator.thresholds)),
                "scores": {name: round(value, 6) for name, value in known.items()},
                "reason": scores if isinstance(scores, str) else "",
            }
        )
    return result


def partial_of(out: Path) -> Path:
    """Where the rows of an unfinished result are kept."""
    return out.with_name(f".{out.name}.partial")


def _begun(partial: Path, key: str) -> list[dict[str, Any]]:
    """The rows that an earlier command scored of the same file by the same moderator; a last line that was
    cut short is taken off the file."""
    rows = read_appended(
        partial, _row, what="a row of the partial result", remedy=f"remove {partial} and start again"
    )
    if not rows or rows[0] != {"of": key}:
        return []
    with run_errors("write the file", partial):
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return rows[1:]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        return parse_object(line.decode())
    except ValueError:
        return None
