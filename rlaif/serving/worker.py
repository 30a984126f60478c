"""A thread that does work for others, in the order in which it was asked for.

A process that ends does not wait for it: a judge may think for minutes when nobody is left to be told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from rlaif.apart import done_by
from rlaif.serving.decoder import NotServing

__all__ = ["Worker"]

Result = TypeVar("Result")


class Worker:
    """Begins with the first work, and ends with `close`. May be asked by any thread."""

    def __init__(self, name: str) -> None:
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def waiting(self) -> int:
        """Work that has not begun."""
        return self._asked.qsize()

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Have `work` done; what it raises is the future's. What is cancelled before it begins is not done.

        Raises:
            NotServing: It was closed.
        """
        done: Future[Result] = Future()
        with self._lock:
            if self._closed:
                raise NotServing("the server is stopping")
            if self._thread.ident is None:
                self._thread.start()
            self._asked.put((work, done))
        return done

    def close(self, last: Callable[[], None] = lambda: None) -> None:
        """Cancel what has not begun, do `last` after what has, and end; waits for nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with suppress(Empty):
            while (asked := self._asked.get_nowait()) is not None:
                asked[1].cancel()
        self._asked.put((last, Future()))
        self._asked.put(None)

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            work, done = asked
            if done.set_running_or_notify_cancel():
                done_by(work, done)
            del asked, work, done  # what it holds need not live until there is more to do
