"""Moderation of an answer that comes as pieces of text, from a server behind this one.

As in `rlaif.serving.hold`, with a piece of the upstream's stream, which is a token or more, in the place of a
token. An answer that is blocked is read to its end, so that its usage is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlaif.errors import RlaifError
from rlaif.serving.hold import Hold
from rlaif.serving.work import Delta, Ended, Event, Failed, Finished, Job

if TYPE_CHECKING:
    from rlaif.serving.moderating import Moderation

__all__ = ["Withheld"]


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
                self._fail(told)
            case Finished():
                self._last = told
            case Delta(choice, text):
                self._act(choice, text)
            case Ended():
                self._ended[told.choice] = told
                self._act(told.choice, None)
        self._conclude()

    def settle(self) -> None:
        """A judge has answered."""
        for choice, hold in self._holds.items():
            if choice not in self._told:
                hold.settle()
                self._give(choice, hold)
        self._conclude()

    def _act(self, choice: int, text: str | None) -> None:
        """Score a piece of a choice; None at its end."""
        hold = self._holds.setdefault(choice, self._moderation.hold_of(self._job.messages))
        if choice in self._told:
            return
        try:
            if text is None:
                hold.end()
            else:
                hold.draw(text, text)
                hold.read(None)
        except (RlaifError, RuntimeError) as error:
            self._fail(Failed(f"the moderator cannot read the answer: {error}"))
            return
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

    def _conclude(self) -> None:
        """The job is done when the upstream is, and every choice was told."""
        if self.open and self._last is not None and set(self._holds) <= self._told:
            self.open = False
            for hold in self._holds.values():
                self._moderation.counts.held(hold.held)
            self._job.emit(self._last)

    def _fail(self, failed: Failed) -> None:
        self.open = False
        self._job.emit(failed)
