"""What a person sees: a progress bar on a terminal, plain lines elsewhere, and tables. Imported only by
commands that run."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment

from rlaif.text import one_line, visible

__all__ = ["ConsoleProgress", "output", "say"]

PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal to draw a bar on."""


def output() -> Console:
    """The console for results (standard output); wide enough for tables where there is no terminal."""
    console = _console()
    return console if console.is_terminal else _console(width=max(console.width, 120))


def say(text: str) -> None:
    """One line to standard error, where progress and remarks go."""
    _console(stderr=True).print(visible(text), soft_wrap=True)


def _console(**options: Any) -> Console:
    """A console that shows control characters, and square brackets as they are, in whatever is printed, cells
    among it."""
    console = Console(highlight=False, markup=False, emoji=False, **options)
    console.push_render_hook(_Visible())
    return console


class _Visible(RenderHook):
    """Wraps all that is printed, so that no caller can forget it."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(each) for each in renderables]


class _Escaped:
    """Renders as what it holds, with the texts made visible; colours and cursor moves of rich's own are not
    texts."""

    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for part in console.render(self._inner, options):
            yield part if part.control else Segment(visible(part.text), part.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._inner)


class ConsoleProgress:
    """Draws one bar a piece of work; without a terminal it prints a line every ten seconds instead."""

    def __init__(self) -> None:
        self._console = _console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
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
        self._console.print(visible(text), soft_wrap=True)

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.stop_task(self._task)
            self._task = None

    def __enter__(self) -> ConsoleProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        self._bar.stop()
