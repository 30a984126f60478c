"""Text of one completion while its tokens come: what was given out is never taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlaif.text import well_formed

__all__ = ["TextStream"]

UNFINISHED = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character, or not yet."""


class TextStream:
    """Decodes tokens one by one, holds back what may still change, and ends at the first stop string.

    A few tokens are decoded again at each push instead of all of them: those since the last place where the
    text ended with a whole character, and those before them, which some tokenizers need to place spaces.

    Args:
        stops: Strings that end the text and are not part of it.

    Attributes:
        stopped: Whether a stop string was found; nothing is given out after it.
        added: What the last push added to the text, also where it is held back as the possible beginning of a
            stop string. What a stop string that is found cuts off is not in it.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self.added = ""
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._tokens: list[int] = []
        self._start = 0
        """First token that is decoded again."""
        self._settled = 0
        """Tokens before this one end with a whole character."""
        self._given = 0
        """Characters of the decoded text that were passed on already."""
        self._held = ""
        """Text that may be the beginning of a stop string."""

    def push(self, token: int) -> str:
        """Add a token; returns the text that is certain now."""
        self._tokens.append(token)
        text = self._decoded(self._start)
        certain = text.rstrip(UNFINISHED)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if certain == text:
            self._start, self._settled = self._settled, len(self._tokens)
            self._given = len(self._decoded(self._start))
        return self._until_stop(piece)

    def close(self) -> str:
        """The rest of the text, when no more tokens come."""
        rest = self._until_stop(self._decoded(self._start)[self._given :])
        held, self._held = self._held, ""
        return "" if self.stopped else rest + held

    def _decoded(self, start: int) -> str:
        return str(
            self._tokenizer.decode(
                self._tokens[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _until_stop(self, piece: str) -> str:
        """What of the text held back and `piece` may be given out."""
        self.added = ""
        if self.stopped:
            return ""
        text, known = self._held + piece, len(self._held)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            self.added = well_formed(text[known : min(found)])
            return well_formed(text[: min(found)])
        self.added = well_formed(piece)
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return well_formed(text[: len(text) - keep])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, `stop` itself excluded."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
