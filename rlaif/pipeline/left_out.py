"""Rows that a training stage leaves out, when its settings allow it: counted in the manifest, and the first of them named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlaif.errors import DataError, Problem
from rlaif.models.reward_model import TurnFormat
from rlaif.models.shared_base import SharedBase
from rlaif.progress import Progress
from rlaif.stages.preferences import PreferencePair

__all__ = ["LeftOut"]

SHOWN = 20
REMEDY = "correct or remove them, or go on without them: --skip-bad-rows (skip_bad_rows: true)"


class LeftOut:
    """What one stage leaves out.

    Args:
        stage: Its name.
        allowed: Whether its settings allow it; else a bad row is an error.
        progress: Hears how many there were in each file, and which was the first.

    Attributes:
        count: Rows that were left out so far.
    """

    def __init__(self, stage: str, *, allowed: bool, progress: Progress) -> None:
        self.count = 0
        self._stage = stage
        self._allowed = allowed
        self._progress = progress

    @property
    def skipped(self) -> Callable[[Sequence[Problem]], None] | None:
        """What readers call with the rows that they leave out; `None` where that is not allowed."""
        return self._note if self._allowed else None

    def without(self, problems: Sequence[Problem], *, good: int, where: str) -> None:
        """Leave rows out, or refuse them.

        Args:
            good: Rows beside them that can be learned from.

        Raises:
            DataError: It is not allowed, or nothing else is there.
        """
        if not problems:
            return
        if not self._allowed or not good:
            what = f"{len(problems)} of {len(problems) + good} rows cannot be learned from"
            raise DataError(what, where=where, problems=problems[:SHOWN], remedy=REMEDY)
        self._note(problems)

    def pairs(self, pairs: Sequence[PreferencePair], base: SharedBase) -> list[PreferencePair]:
        """The pairs whose prompt the chat template takes.

        Raises:
            DataError: As `without`.
        """
        refused = TurnFormat(base).refusals([pair.conversation(pair.chosen) for pair in pairs])
        problems = [Problem(said, where=f"{pairs[at].source or 'preferences'}, {pairs[at].id}") for at, said in refused.items()]
        good = [pair for at, pair in enumerate(pairs) if at not in refused]
        self.without(problems, good=len(good), where=self._stage)
        return good

    def _note(self, problems: Sequence[Problem]) -> None:
        self.count += len(problems)
        self._progress.note(f"{self._stage}: {len(problems)} rows are left out (skip_bad_rows); the first: {problems[0]}")
