"""How long work tells the outside where it stands: three calls, implemented by the command line, silent by
default."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress", "NoProgress"]


class Progress(Protocol):
    """Hears of the beginning, the advance and the remarks of a piece of work."""

    def begin(self, what: str, total: int) -> None:
        """Work named `what` begins; it has `total` items."""
        ...

    def advance(self, items: int = 1) -> None:
        """`items` more are done."""
        ...

    def note(self, text: str) -> None:
        """Something that the reader should know, in one line."""
        ...


class NoProgress:
    """Hears and says nothing."""

    def begin(self, what: str, total: int) -> None:
        """Nothing is shown."""

    def advance(self, items: int = 1) -> None:
        """Nothing is shown."""

    def note(self, text: str) -> None:
        """Nothing is shown."""
