"""One annotator at work: which pair is next, on which side each completion stands, and what was clicked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rlaif.collect.labels_file import Answer, Click, LabelsFile
from rlaif.collect.pairs import Shown
from rlaif.digest import unit_from

__all__ = ["CLICKS", "Clicked", "Session"]

Clicked = Literal["left", "right", "equal", "skip"]
CLICKS: tuple[Clicked, ...] = ("left", "right", "equal", "skip")


class Session:
    """The pairs of a session, what of them is labelled, and the next one.

    A pair that this annotator has labelled or skipped in the file before is not shown again.

    Args:
        clock: Seconds, of which only differences are used.
    """

    def __init__(
        self,
        pairs: Sequence[Shown],
        labels: LabelsFile,
        *,
        annotator: str,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pairs = tuple(pairs)
        self.labels = labels
        self.annotator = annotator
        self.seed = seed
        self._keys = {pair.key for pair in pairs}
        self._clock = clock
        self._since: tuple[str, float] = ("", 0.0)

    @property
    def clicks(self) -> list[Click]:
        """The annotator's, on the pairs of this session."""
        return [
            click
            for click in self.labels.clicks
            if click.annotator == self.annotator and click.key in self._keys
        ]

    def current(self) -> Shown | None:
        """The pair that is asked about; `None` at the end."""
        done = {click.key for click in self.clicks}
        return next((pair for pair in self.pairs if pair.key not in done), None)

    def first_is_left(self, pair: Shown) -> bool:
        """Whether `first` stands on the left: by a hash of seed, annotator and pair."""
        return unit_from(self.seed, "side", self.annotator, pair.key) < 0.5

    def answer(self, key: str, clicked: Clicked) -> bool:
        """Take a click about the current pair; `False` where `key` is of another pair, as after a double
        click, and nothing was written."""
        pair = self.current()
        if pair is None or pair.key != key:
            return False
        left = self.first_is_left(pair)
        answer: Answer
        match clicked:
            case "left":
                answer = "first" if left else "second"
            case "right":
                answer = "second" if left else "first"
            case _:
                answer = clicked
        shown, since = self._since
        seconds = self._clock() - since if shown == key else 0.0
        self.labels.add(pair, answer, annotator=self.annotator, seconds=seconds, tie_first=left)
        return True

    def undo(self) -> bool:
        """Take back the annotator's last click, if it was on a pair of this session; it is asked about next.

        `False` where there is none.
        """
        mine = [click for click in self.labels.clicks if click.annotator == self.annotator]
        last = max(mine, key=lambda click: click.number, default=None)
        if last is None or last.key not in self._keys:
            return False
        return self.labels.undo(self.annotator) is not None

    def state(self) -> dict[str, Any]:
        """What the page shows, as JSON values; the clock of the pair starts when it is first told."""
        pair = self.current()
        clicks = self.clicks
        told: dict[str, Any] = {"total": len(self.pairs), "done": len(clicks), "pair": None}
        if pair is None:
            return told
        if self._since[0] != pair.key:
            self._since = (pair.key, self._clock())
        left, right = (pair.first, pair.second) if self.first_is_left(pair) else (pair.second, pair.first)
        conversation = [turn.as_dict() for turn in pair.prompt]
        shown = {"conversation": conversation, "left": left, "right": right, "notes": pair.notes}
        return told | {"pair": pair.key, **shown}
