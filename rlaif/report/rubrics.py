"""Drafts of rubrics, written out for a person to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.report.markdown import named, quoted

__all__ = ["rubrics_markdown"]


def rubrics_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The prompts of `rubrics.jsonl` rows, each with its criteria."""
    parts = ["# Drafted rubrics\n"]
    for row in rows:
        parts.append(f"## {named(row['id'])}\n\n{quoted(row['prompt'][-1]['content'])}")
        parts.append(
            "\n".join(
                f"- **{'must' if each['must'] else format(each['points'], '+g')}**: {named(each['text'])}"
                for each in row["rubric"]
            )
            + "\n"
        )
    return "\n".join(parts)
