"""Moderation of an answer that comes as pieces of text, from a server behind this one.

As in `rlaif.serving.hold`, with a piece of the upstream's stream, which is a token or more, in the place of a
token. An answer that is blocked is read to its end, so that its usage is known.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from rlaif.apart import done_by
from rlaif.errors import RlaifError
from rlaif.serving.decoder import NotServing, QueueFull
from rlaif.serving.hold import Hold
from rlaif.serving.work import Delta, Ended, Event, Failed, Finished, Job
from rlaif.serving.worker import Worker

if TYPE_CHECKING:
    from rlaif.serving.moderating import Moderation

__all__ = ["ModeratorThread", "Withheld"]

Result = TypeVar("Result")


class Withheld:
    """Passes the events of a job on to its `emit`, as far as its moderation lets them; on one thread.

    Attributes:
        open: Whether something is to come yet: the job has not ended, or a judge has not answered.
    """

    def __init__(self, job: Job, moderation: Moderation) -> None:
        self.open = True
        self._job, self._moderation = job, moderation
        self._holds: dict[int, Hold] = {}
        self._ended: dict[int, Ended] = {}
        self._told: set[int] = set()
        self._spoken: set[int] = set()
        self._last: Finished | None = None

    def tell(self, told: Event) -> None:
        """Hear what the upstream sent."""
        if not self.open:
            return
        match told:
            case Failed():
                self._lose(told)
            case Finished():
                self._last = told
            case Delta(choice, text):
                self._act(choice, partial(_read, text=text))
            case Ended():
                self._ended[told.choice] = told
                self._act(told.choice, Hold.end)
        self._conclude()

    def settle(self) -> None:
        """A judge has answered."""
        for choice in tuple(self._holds):
            self._act(choice, Hold.settle)
        self._conclude()

    def fail(self, failed: Failed) -> None:
        """Tell nothing but that; what is held is dropped."""
        if self.open:
            self.drop()
            self._job.emit(failed)

    def drop(self) -> None:
        """Nobody listens any more: ask no judge."""
        self.open = False
        for hold in self._holds.values():
            hold.drop()

    def _act(self, choice: int, act: Callable[[Hold], None]) -> None:
        """Let the moderator work on a choice, and pass on what it lets go."""
        hold = self._holds.setdefault(choice, self._moderation.hold_of(self._job.messages))
        if choice in self._told or not self.open:
            return
        try:
            act(hold)
        except (RlaifError, RuntimeError) as error:
            self.fail(Failed(f"the moderator cannot read the answer: {error}"))
        else:
            self._give(choice, hold)

    def _give(self, choice: int, hold: Hold) -> None:
        """Pass on what may go out."""
        ended = self._ended.get(choice)
        text = hold.release()
        if hold.blocked is not None:
            message = (self._job.moderation or self._moderation).message(hold.blocked)
            text = ("\n\n" if choice in self._spoken else "") + message
            ended = Ended(choice, "content_filter", flag=hold.blocked)
        if text:
            self._spoken.add(choice)
            self._job.emit(Delta(choice, text))
        if ended is not None and not hold.open:
            self._told.add(choice)
            self._job.emit(ended)

    def _lose(self, failed: Failed) -> None:
        """The upstream does not go on; where a client was told all there is, only the usage is lost."""
        if len(self._told) < self._job.samples:
            self.fail(failed)
        else:
            self._last = Finished(0, 0, counted=False)

    def _conclude(self) -> None:
        """The job is done when the upstream is, and every choice was told."""
        if self.open and self._last is not None and set(self._holds) <= self._told:
            self.open = False
            for hold in self._holds.values():
                self._moderation.counts.held(hold.held)
            self._job.emit(self._last)


def _read(hold: Hold, *, text: str) -> None:
    """Score a piece of text as a token."""
    hold.draw(text, text)
    hold.read(None)


class ModeratorThread:
    """Where the moderators of an upstream's answers compute, one thing at a time: prompts, pieces of answers,
    and what becomes of them when a judge has answered. A moderator may be a model with adapters, which two
    threads cannot switch, and whose pass would stop all other answers on the thread of the connections. May
    be asked by any thread.

    Args:
        most: Work of `call` that waits, past which more is refused.
        log: Told of a defect of ours, with its traceback.
    """

    def __init__(self, most: int, log: Callable[[str], None]) -> None:
        self._worker = Worker("rlaif-moderator")
        self._most, self._log = most, log
        self._lock = threading.Lock()
        self._calls = 0
        self._open: set[Withheld] = set()

    def call(self, work: Callable[[], Result], *, urgent: bool = False) -> Future[Result]:
        """Have `work` done; see `Decoder.call`.

        Raises:
            QueueFull: As much waits as may.
            NotServing: It was closed.
        """
        with self._lock:
            if not urgent and self._calls >= self._most:
                raise QueueFull(self._calls, 1)
            done = self._worker.submit(work)
            self._calls += 1
        done.add_done_callback(self._called)
        return done

    def tell(self, withheld: Withheld, told: Event) -> Future[None]:
        """Have an answer hear what the upstream sent; done when it has.

        Raises:
            NotServing: It was closed.
        """

        def hear() -> None:
            self._open.add(withheld)
            self._act(withheld, lambda: withheld.tell(told))

        return self._worker.submit(hear)

    def wake(self) -> None:
        """A judge has answered: let what was held for it go, or block it."""
        with suppress(NotServing):
            self._worker.submit(self._settle)

    def drop(self, withheld: Withheld) -> None:
        """Nobody waits for an answer any more. Does nothing to one that is done."""
        if withheld.open:
            with suppress(NotServing):
                self._worker.submit(lambda: self._act(withheld, withheld.drop))

    def close(self, failed: Failed) -> None:
        """End it; answers that are not done fail."""
        self._worker.close(lambda: self._fail(failed))

    def _called(self, _done: Future[Result]) -> None:
        with self._lock:
            self._calls -= 1

    def _settle(self) -> None:
        for withheld in tuple(self._open):
            self._act(withheld, withheld.settle)

    def _fail(self, failed: Failed) -> None:
        for withheld in tuple(self._open):
            withheld.fail(failed)

    def _act(self, withheld: Withheld, act: Callable[[], None]) -> None:
        if (error := done_by(act).exception()) is not None:  # a defect of ours
            self._log("".join(traceback.format_exception(error)).strip())
            withheld.fail(Failed("the server failed; its log says more"))
        if not withheld.open:
            self._open.discard(withheld)
