"""What the HTTP interface needs of whatever answers: the model here, or a server behind this one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol, TypeVar

from rlaif.serving.work import Job

__all__ = ["Bounds", "Decoder", "NotServing", "QueueFull"]

T = TypeVar("T")


class QueueFull(Exception):
    """As many requests wait as may.

    Attributes:
        retry_after: Seconds after which one of them has probably been taken.
    """

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting already, as many as may")
        self.retry_after = retry_after


class NotServing(Exception):
    """The server is stopping, or its decoder has ended."""


class Bounds(Protocol):
    """What is held at a time."""

    @property
    def rows(self) -> int:
        """Completions that are decoded side by side."""

    @property
    def queue(self) -> int:
        """Requests that wait."""


class Decoder(Protocol):
    """Answers jobs on a thread of its own; its methods may be called from any other."""

    @property
    def limits(self) -> Bounds:
        """What is held at a time."""

    @property
    def alive(self) -> bool:
        """Whether it runs and takes requests."""

    @property
    def waiting(self) -> int:
        """Requests in the queue."""

    @property
    def rows(self) -> int:
        """Completions that are being decoded."""

    def start(self) -> None:
        """Begin to answer."""

    def submit(self, *jobs: Job) -> None:
        """Put the jobs of one request into the queue, where they need one place together.

        Raises:
            QueueFull: As many wait as may.
            NotServing: No job is taken any more.
        """

    def cancel(self, job: Job) -> None:
        """Stop working on a job; nothing more is heard of it. Does nothing to one that is done."""

    def call(self, work: Callable[[], T], *, urgent: bool = False) -> Future[T]:
        """Have `work` done where moderators may compute; what it raises is the future's.

        Args:
            urgent: Take it though as much waits as may.

        Raises:
            QueueFull: As much waits as may.
            NotServing: No work is taken any more.
        """

    def wake(self) -> None:
        """A judge has answered about an answer that is held back."""

    def drain(self) -> None:
        """Take no more jobs, and go on with those there are."""

    def stop(self) -> None:
        """End it; jobs that are not done fail."""
