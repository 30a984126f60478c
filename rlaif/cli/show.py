"""Tables, lines and texts that a finished stage shows, on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import table as rich_table

from rlaif.report.shown import Shown, Table, Texts
from rlaif.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["show", "show_head"]

EXCERPT = 300
"""Characters of a text that are printed; the files hold all of it."""


def show(parts: Iterable[Shown], console: Console) -> None:
    """Print what a stage shows."""
    for part in parts:
        if isinstance(part, Table):
            _show_table(part, console)
        elif isinstance(part, Texts):
            _show_texts(part, console)
        else:
            console.print(part, soft_wrap=True)


def show_head(name: str, text: str, console: Console) -> None:
    """A name that stands out, and a line about it."""
    console.print(f"\n{one_line(name)}", style="bold", end="")
    console.print(f"  {text}", soft_wrap=True)


def _show_table(table: Table, console: Console) -> None:
    if not table.rows:
        return
    shown = rich_table.Table(title=table.title or None, title_justify="left")
    for number, name in enumerate(table.header):
        shown.add_column(name, justify="right" if number else "left", overflow="fold")
    *rows, last = table.rows
    for cells in rows:
        shown.add_row(*cells)
    if table.total:
        shown.add_section()
    shown.add_row(*last, style="bold" if table.total else None)
    console.print(shown)


def _show_texts(part: Texts, console: Console) -> None:
    show_head(part.title, part.note, console)
    for name, text in part.texts:
        console.print(f"  {name:>8}  ", style="dim", end="")
        console.print(_excerpt(text), soft_wrap=True)


def _excerpt(text: str) -> str:
    line = one_line(" ".join(text.split())) or "(empty)"
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1] + "…"
