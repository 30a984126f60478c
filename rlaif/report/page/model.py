"""What stands on a page, as plain values: one module collects them from a folder, another writes HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlaif.report.shown import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Asked", "Flag", "Link", "Page", "Picture", "SampleRow", "Samples", "Section", "Side"]

Flag = Literal["flip", "loss", "diverged", "invalid"]
"""Why a row is worth reading: the two orders disagree; a policy lost to the start policy; its proxy is above
the start policy's and its gold below; a verdict is invalid."""


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows in words, and its numbers.

    Attributes:
        draw: Draws it; called only where matplotlib is installed.
    """

    title: str
    about: str
    draw: Callable[[], Figure]
    numbers: tuple[Table, ...]


class Link(NamedTuple):
    """To another page, by a path relative to this one."""

    path: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; lines may hold names in backticks."""

    id: str
    title: str
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    links: tuple[Link, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing under the heading."""
        return not (self.lines or self.tables or self.pictures or self.links)


class Side(NamedTuple):
    """A completion under the name of who wrote it, with its measures in a line."""

    name: str
    facts: str
    text: str


class Asked(NamedTuple):
    """What a judge said under one principle.

    Attributes:
        of: Whose completion P is of.
        answers: P that this one is better, by order (`first`, `second`, `alone`: where it was shown); in
            words where the verdict is invalid.
        flip: Whether the two orders name different winners.
    """

    of: str
    judge: str
    principle: str
    answers: Mapping[str, float | str]
    flip: bool


class SampleRow(NamedTuple):
    """A prompt, and completions side by side.

    Attributes:
        id: Of the row on this page, for links to it.
        kind: `policies` or `labels`.
        prompt: Roles and texts.
    """

    id: str
    kind: str
    prompt: tuple[tuple[str, str], ...]
    sides: tuple[Side, ...]
    asked: tuple[Asked, ...]
    flags: tuple[Flag, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **self._asdict(),
            "sides": [side._asdict() for side in self.sides],
            "asked": [each._asdict() for each in self.asked],
        }


class Samples(NamedTuple):
    """Rows to browse, as JSON texts, of all that there are."""

    rows: tuple[str, ...]
    total: int


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        facts: What the run is, a name and a value each.
        missing: What is not here, and why.
        samples: `None` on a page that has no browser.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    sections: tuple[Section, ...]
    samples: Samples | None = None
