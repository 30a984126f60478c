"""`samples.md`: a few items of a stage, written out for a person to read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.report.markdown import named, quoted, table

__all__ = ["completions_markdown", "preferences_markdown", "read_spread", "revisions_markdown", "spread"]

Row = Mapping[str, Any]


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows spread evenly over `rows`, first and last included."""
    if len(rows) <= count:
        return list(rows)
    if count == 1:
        return [rows[0]]
    return [rows[round(position * (len(rows) - 1) / (count - 1))] for position in range(count)]


def read_spread(path: Path, count: int) -> list[Row]:
    """`spread` over the rows of a JSONL or Parquet file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    else:
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    return spread(rows, count)


def completions_markdown(rows: Sequence[Row], *, note: str = "") -> str:
    """Completions under their prompts, after a note on all of them."""
    parts = ["# Completions to read\n", *([f"{note}\n"] if note else [])]
    for row in rows:
        head = f"## {named(row['id'])} ({named(row['finish'])}, {row['tokens']} tokens)\n"
        parts += [head, _conversation(row["prompt"]), quoted(_text(row["completion"]))]
    return "\n".join(parts)


def preferences_markdown(rows: Sequence[Row]) -> str:
    """Labelled pairs: the conversation, the chosen and the rejected completion, and what the judge said."""
    parts = ["# Labelled pairs to read\n"]
    for row in rows:
        parts += [
            f"## {named(row['id'])}: chosen with p = {row['p_chosen']:z.3f}\n",
            _conversation(row["prompt"]),
            "**chosen**\n",
            quoted(_text(row["chosen"])),
            "**rejected**\n",
            quoted(_text(row["rejected"])),
            _verdicts(row["verdicts"]),
        ]
    return "\n".join(parts)


def revisions_markdown(rows: Sequence[Row]) -> str:
    """Chains of critique and revision."""
    parts = ["# Revisions to read\n"]
    for row in rows:
        parts += [
            f"## {named(row['prompt_id'])}\n",
            _conversation(row["prompt"]),
            "**first completion**\n",
            quoted(row["initial"]),
        ]
        for number, step in enumerate(row["rounds"], start=1):
            parts += [
                f"**critique {number}** (principle {named(step['principle'])})\n",
                quoted(step["critique"]),
                f"**revision {number}**\n",
                quoted(step["revision"]),
            ]
    return "\n".join(parts)


def _conversation(messages: Sequence[Mapping[str, str]]) -> str:
    return "\n".join(f"**{named(message['role'])}**\n\n{quoted(message['content'])}" for message in messages)


def _verdicts(verdicts: Sequence[Row]) -> str:
    rows = [(each["principle"], each["order"], _said(each)) for each in verdicts]
    return table(("principle", "order", "p(chosen)"), rows)


def _said(verdict: Row) -> str:
    return f"{verdict['p_chosen']:z.3f}" if verdict["valid"] else f"invalid: {verdict['reason']}"


def _text(messages: Sequence[Mapping[str, str]]) -> str:
    return messages[-1]["content"]
