"""Moderation of a server: who scores what is asked and answered, how much is held back, what a client that is
blocked is told, and what is counted of it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from rlaif.moderation.base import Moderator, Scores, Watch
from rlaif.serving.cascade import Cascade, Run
from rlaif.serving.histogram import Histogram
from rlaif.serving.hold import Flag, Hold, flags_of
from rlaif.text import one_line
from rlaif.types import Message

__all__ = ["HOLD", "Moderation", "ModerationCounts", "blocked_message"]

HOLD = 16
"""Tokens of an answer that are held back."""
HELD = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds, in seconds, of the buckets of how long text was held."""


def blocked_message(flag: Flag) -> str:
    """What a client reads in the place of what was blocked; the category is on the choice, for programs."""
    return "[What stood here was withheld by the moderation of this server.]"


class ModerationCounts:
    """What was blocked, and how long text was held; may be told by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocked: Counter[tuple[str, str]] = Counter()
        self._held = Histogram(HELD)

    def blocked(self, category: str, where: str) -> None:
        """Count a choice, or a prompt, that was blocked."""
        with self._lock:
            self._blocked[category, where] += 1

    def held(self, seconds: Sequence[float]) -> None:
        """Count how long pieces of an answer were held."""
        with self._lock:
            for each in seconds:
                self._held.observe(each)

    def lines(self) -> list[str]:
        """The samples as Prometheus reads them."""
        with self._lock:
            counts = [
                f'rlaif_blocked_total{{category="{_label(category)}",where="{where}"}} {count}'
                for (category, where), count in sorted(self._blocked.items())
            ]
            held = self._held.lines("rlaif_held_seconds")
        blocked = ["# TYPE rlaif_blocked_total counter", *counts]
        return [*blocked, "# TYPE rlaif_held_seconds histogram", *held]


class AskedFromElsewhere:
    """A moderator whose scores are computed on the decoder's thread, between two steps, whoever asks."""

    def __init__(self, moderator: Moderator) -> None:
        self._moderator = moderator
        self.run: Run | None = None
        self.categories = moderator.categories
        self.thresholds = moderator.thresholds
        self.layers = moderator.layers
        self.digest = moderator.digest

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        """See `Moderator`."""
        assert self.run is not None
        return self.run(lambda: self._moderator.scores(conversations)).result()

    def watch(self, messages: Sequence[Message]) -> Watch:
        """See `Moderator`."""
        return self._moderator.watch(messages)


@dataclass(frozen=True)
class Moderation:
    """How a server moderates.

    Attributes:
        moderator: Scores prompts and answers.
        hold: Tokens of an answer that are held back; see `rlaif.serving.hold`.
        cascade: The judge that is asked before an answer is blocked.
        message: What a client reads in the place of what was blocked.
    """

    moderator: Moderator
    hold: int = HOLD
    cascade: Cascade | None = None
    message: Callable[[Flag], str] = blocked_message
    counts: ModerationCounts = field(default_factory=ModerationCounts)

    @cached_property
    def from_elsewhere(self) -> AskedFromElsewhere:
        """The moderator for other threads than the decoder's, once the moderation is attached."""
        return AskedFromElsewhere(self.moderator)

    def attach(self, run: Run, wake: Callable[[], None]) -> None:
        """Say how work gets onto the decoder's thread, and who is told that a judge has answered."""
        self.from_elsewhere.run = run
        if self.cascade is not None:
            self.cascade.attach(run, wake)

    def close(self) -> None:
        """Ask no judge any more."""
        if self.cascade is not None:
            self.cascade.close()

    def hold_of(self, messages: Sequence[Message]) -> Hold:
        """Holds back the text of one answer to `messages`."""
        ask = None if self.cascade is None else self.cascade.about(messages)
        return Hold(
            self.moderator.watch(messages),
            self.moderator.thresholds,
            self.hold,
            reads_states=bool(self.moderator.layers),
            ask=ask,
        )

    def flag_of(self, scores: Scores) -> Flag | None:
        """What something with these scores is flagged for, the highest of several."""
        return next(iter(flags_of(scores, self.moderator.thresholds)), None)

    def metrics(self) -> str:
        """What happened, as Prometheus reads it."""
        lines = self.counts.lines()
        if self.cascade is not None:
            lines += self.cascade.lines()
        return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    """A value of a label."""
    return one_line(text).replace("\\", "\\\\").replace('"', '\\"')
