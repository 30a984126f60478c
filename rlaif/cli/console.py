"""What a person sees: a progress bar on a terminal, plain lines elsewhere, and tables. Imported only by commands that run."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlaif.text import one_line, visible

__all__ = ["ConsoleProgress", "output", "say"]

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal to draw a bar on."""


def output() -> Console:
    """The console for results (standard output); wide enough for tables where there is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 120))


def say(text: str) -> None:
    """One line to standard error, where progress and remarks go."""
    Console(stderr=True, highlight=False).print(visible(text), soft_wrap=True, markup=False)


class ConsoleProgress:
    """Draws one bar a piece of work; without a terminal it prints a line every ten seconds instead."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._what, self._total, self._done = "", 0, 0
        self._started = self._told = 0.0

    def begin(self, what: str, total: int) -> None:
        """A new bar; the former one stays as it ended."""
        self._finish()
        what = one_line(what)
        self._what, self._total, self._done = what, total, 0
        self._started = self._told = time.monotonic()
        self._task = self._bar.add_task(what, total=total)
        if not self._console.is_terminal:
            self.note(what)

    def advance(self, items: int = 1) -> None:
        """Move the bar."""
        self._done += items
        if self._task is not None:
            self._bar.advance(self._task, items)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._told >= PLAIN_SECONDS:
            self._told = now
            self.note(f"{self._what}: {self._done}/{self._total} after {now - self._started:.0f} s")

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(visible(text), soft_wrap=True, markup=False)

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.stop_task(self._task)
            self._task = None

    def __enter__(self) -> ConsoleProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._finish()
        self._bar.stop()
