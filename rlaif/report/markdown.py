"""Markdown of what comes from outside: prompts, completions, ids, tags, names of principles and models.

Such a text may hold tables, headings, images that tell a server who reads them, links and HTML. In a heading
or a cell (`named`) it is one line and nothing in it is Markdown; in a quotation (`quoted`) it keeps its lines
and its emphasis, and nothing in it is fetched, run, followed or taken for a heading of ours. What we wrote
ourselves is a `MarkdownText`. The JSON and CSV files beside a report keep texts as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rlaif.text import one_line, visible

__all__ = ["MarkdownText", "code", "named", "quoted", "sentence", "table"]

AUTOLINK = r":(?=//)|(?<=[wW]{3})\.|(?<=[\w.+-])@(?=[\w-]+\.)"
"""Where GitHub would find an address without any brackets round it."""
LINKS = r"!(?=\[)|\](?=[(\[:])|" + AUTOLINK
"""Images, links and what defines them; a bracket alone is harmless, and figures have many
(`52 % [48, 56]`)."""
ANYWHERE = re.compile(r"[\\`*<>|#~&$]|(?<!\w)_|_(?!\w)|" + LINKS)
IN_QUOTATION = re.compile(r"[\\<&$]|" + LINKS)
LINE_START = re.compile(r"^(\s*)([#=>|~`]|-{2,})")
"""What makes a heading, a quotation, a table or a block of code of a line, or a heading of the line before
it."""


class MarkdownText(str):
    """Markdown of our own, which goes into a table as it is."""

    __slots__ = ()


def named(text: object) -> MarkdownText:
    """A text inside a heading, a sentence or a cell: on one line, and nothing in it is Markdown."""
    return MarkdownText(ANYWHERE.sub(r"\\\g<0>", one_line(str(text))))


def code(text: object) -> MarkdownText:
    """A name in the type of code; one that would break out of it is written as text."""
    line = one_line(str(text))
    plain = line.strip() == line != "" and not set(line) & set("`|")
    return MarkdownText(f"`{line}`") if plain else named(text)


def sentence(text: str) -> MarkdownText:
    """A sentence of ours about names from outside, which it sets in backticks."""
    line = one_line(text)
    if "``" in line or line.count("`") % 2:
        return named(line)
    return MarkdownText(
        "`".join(part if place % 2 else named(part) for place, part in enumerate(line.split("`")))
    )


def quoted(text: str) -> str:
    """A Markdown quotation."""
    lines = IN_QUOTATION.sub(r"\\\g<0>", visible(text or "(empty)")).split("\n")
    return "\n".join("> " + LINE_START.sub(r"\1\\\2", line) for line in lines) + "\n"


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a row that is too short is filled with dashes."""
    lines = [_line(header), "|" + "---|" * len(header)]
    lines += [_line([*row, *["–"] * (len(header) - len(row))]) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(cell if isinstance(cell, MarkdownText) else named(cell) for cell in cells)} |"
