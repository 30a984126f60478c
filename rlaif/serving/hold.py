"""What of an answer may leave the server: nothing that has not been scored, with what follows it.

The last tokens of an answer are held back until a moderator has scored the windows that contain them. The
guarantee, for a hold of H tokens: the text of a token goes out when that token and the H - 1 tokens after it
were scored without a flag, or when the answer has ended and all of it was. So of a passage that spans at most
H tokens, and is flagged at its last one, nothing leaves the server, not even its beginning. H = 1 lets go
what stands before the flagged token; a passage longer than H shows all but its last H tokens.

What it does not give: it is as good as the moderator. What is flagged only when more than H tokens have
passed has gone out in part. A moderator that reads hidden states scores a token when the model has read it,
one step after it was drawn, and the hold is counted in scored tokens, so its text waits a step longer.

With a judge to ask (a cascade), tokens that were flagged and those that are held because of them wait until
it has answered, while the row goes on being sampled. The judge's answer counts for the flags up to where it
was asked; what is flagged after that is asked again, at most once in H tokens.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from rlaif.moderation.base import Scores, Watch, flagged
from rlaif.moderation.deciding import Deciding

if TYPE_CHECKING:
    import torch

__all__ = ["Ask", "Flag", "Hold", "flags_of"]


class Flag(NamedTuple):
    """A category that a score reached the threshold of."""

    category: str
    score: float


Ask = Callable[[Sequence[Flag], str], "Future[bool] | None"]
"""Asks a judge whether an answer, as far as it goes, breaks what it was flagged for; None where it cannot be
asked about one of the flags."""


class _Piece(NamedTuple):
    """Text that came with a token."""

    token: int
    text: str
    drawn: float


class Hold:
    """The text of one answer on its way out.

    Args:
        watch: Scores its tokens.
        thresholds: For each category, the score from which on it is flagged.
        size: H, see above.
        reads_states: Whether a token is scored when the model has read it, and not when it is drawn.
        ask: Asks a judge before an answer is blocked.
        clock: Seconds, for the times that text was held.

    Attributes:
        blocked: What the answer was blocked for; nothing goes out any more.
        held: Seconds that each piece of text was held back.
        scored: Tokens scored.
    """

    def __init__(
        self,
        watch: Watch,
        thresholds: Scores,
        size: int,
        *,
        reads_states: bool = False,
        ask: Ask | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.blocked: Flag | None = None
        self.held: list[float] = []
        self.scored = 0
        self.reads_states = reads_states
        self._watch, self._thresholds, self._size = watch, thresholds, size
        self._deciding = watch if isinstance(watch, Deciding) else None
        self._ask, self._clock = ask, clock
        self._drawn = 0
        self._ended = self._closed = False
        self._unread: deque[str] = deque()
        self._pieces: deque[_Piece] = deque()
        self._text = ""
        self._undecided_since = 0
        self._flags: list[tuple[int, Flag]] = []
        """Flags that the judge has not excused, with the token that each was raised at."""
        self._asked = 0
        """The token up to which the judge was asked."""
        self._answer: Future[bool] | None = None

    @property
    def unread(self) -> bool:
        """Whether tokens were drawn that have not been scored."""
        return bool(self._unread) and self.blocked is None

    @property
    def open(self) -> bool:
        """Whether it is not known yet what becomes of text that is held."""
        return self.blocked is None and bool(
            self._unread or self._flags or self._undecided_since or not self._ended
        )

    @property
    def answered(self) -> bool:
        """Whether the judge has answered, and `settle` will act on it."""
        return self._answer is not None and self._answer.done()

    def draw(self, added: str, piece: str) -> None:
        """A token was drawn.

        Args:
            added: What it added to the text, for the moderator.
            piece: What of the text may go out with it: later than it was added where it might be the
                beginning of a stop string.
        """
        self._drawn += 1
        self._unread.append(added)
        self._pieces.append(_Piece(self._drawn, piece, self._clock()))

    def end(self, piece: str = "") -> None:
        """No more tokens are drawn; `piece` is what of the text goes out with the end."""
        self._ended = True
        self._pieces.append(_Piece(self._drawn, piece, self._clock()))
        self.settle()

    def read(self, states: torch.Tensor | None) -> None:
        """Score the oldest token that has not been.

        Args:
            states: Its hidden states (L, H), where the moderator reads any.

        Raises:
            ModelError: The moderator cannot.
        """
        added = self._unread.popleft()
        self.scored += 1
        self._text += added
        self._note(self._watch.push(added, states))
        self.settle()

    def settle(self) -> None:
        """Act on what has become known: the end of the answer, and the judge's."""
        if self._ended and not self._unread and not self._closed:
            self._closed = True
            if self._deciding is not None and self._deciding.undecided:
                self._note(self._deciding.close())
        if self._answer is not None and self._answer.done():
            breaks, self._answer = self._answer.result(), None
            if breaks:
                self._block(max((flag for at, flag in self._flags if at <= self._asked), key=_score))
            self._flags = [(at, flag) for at, flag in self._flags if at > self._asked]
        if self._flags and self._answer is None and self.blocked is None:
            self._ask_judge()

    def drop(self) -> None:
        """Nobody waits for the answer any more: a judge that has not begun to think is not asked."""
        if self._answer is not None:
            self._answer.cancel()

    def release(self) -> str:
        """The text that may go out now."""
        last = self._clear() - self._size + 1
        if self.blocked is None and self._ended and not self.open:
            last = self._drawn
        found = []
        while self._pieces and self._pieces[0].token <= last:
            piece = self._pieces.popleft()
            found.append(piece.text)
            if piece.text:
                self.held.append(self._clock() - piece.drawn)
        return "".join(found)

    def _clear(self) -> int:
        """How many tokens, from the first one on, were scored without a flag that stands."""
        bounds = [self.scored, *(at - 1 for at, _ in self._flags)]
        if self._undecided_since:
            bounds.append(self._undecided_since - 1)
        return min(bounds)

    def _note(self, scores: Scores) -> None:
        """Take in the scores of the last token."""
        undecided = self._deciding is not None and self._deciding.undecided and not self._closed
        self._undecided_since = (self._undecided_since or self.scored) if undecided else 0
        flags = flags_of(scores, self._thresholds)
        if flags and self._ask is None:
            self._block(flags[0])
        self._flags += [(self.scored, flag) for flag in flags]

    def _ask_judge(self) -> None:
        """Ask about the flags that stand, unless the last question was but a few tokens ago."""
        assert self._ask is not None
        if self._asked and self.scored - self._asked < self._size and not (self._ended and not self._unread):
            return
        flags = {flag.category: flag for _, flag in self._flags}
        self._asked = self.scored
        self._answer = self._ask(list(flags.values()), self._text)
        if self._answer is None:
            self._block(max(flags.values(), key=_score))

    def _block(self, flag: Flag) -> None:
        self.blocked = flag
        self._pieces.clear()
        self._flags.clear()


def flags_of(scores: Scores, thresholds: Scores) -> list[Flag]:
    """The categories whose score reaches their threshold, the highest score first."""
    found = [Flag(name, float(scores[name])) for name in flagged(scores, thresholds)]
    return sorted(found, key=_score, reverse=True)


def _score(flag: Flag) -> float:
    return flag.score
