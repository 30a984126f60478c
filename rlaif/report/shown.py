"""What a finished stage shows of its result: tables, lines, and texts to read. The terminal renders them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Shown", "Table", "Texts"]


class Table(NamedTuple):
    """A title, the names of the columns, and rows of as many cells.

    Attributes:
        total: Whether the last row sums up the others.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    total: bool = False


class Texts(NamedTuple):
    """Texts that belong together, each under its name."""

    title: str
    note: str
    texts: Sequence[tuple[str, str]]


Shown = Table | Texts | str
"""One thing that is shown; a `str` is a line."""
