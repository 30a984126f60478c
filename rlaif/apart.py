"""Work whose outcome is a future's, and a thread that no end of a process waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["apart", "done_by"]

Result = TypeVar("Result")


class _Kept:
    """What is raised inside the block is kept for those who have the future, whatever it is."""

    def __init__(self, done: Future[Any]) -> None:
        self._done = done

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self._done.set_exception(error)
        return True


def done_by(work: Callable[[], Result], done: Future[Result] | None = None) -> Future[Result]:
    """Do `work` here and now; the future has its result, or what it raised.

    Args:
        done: The future, where there is one already.
    """
    done = Future() if done is None else done
    with _Kept(done):
        done.set_result(work())
    return done


def apart(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """Do `work` on a thread of its own, which a process that ends does not wait for."""
    done: Future[Result] = Future()
    threading.Thread(target=done_by, args=(work, done), name=name, daemon=True).start()
    return done
