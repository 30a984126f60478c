r"""Block lists: words and patterns that may not stand in a prompt, in an answer, or in either.

    name: composers            # the category; the file's name where left out
    where: answer              # prompt, answer or both (the default); an entry may say otherwise
    entries:
      - Wagner                 # a word, or several
      - word: 瓦格纳
        where: both
      - word: Wagner
        spaced: true           # also w a g n e r, w.a.g.n.e.r, w-a-g-n-e-r
      - regex: '\bop\. ?\d+\b' # of Python; reads the text as it is written

or a text file with a word a line, and `#` before a remark.

A word is found whatever its case, width, accents and look-alike letters are (see `alike`), and only as a
whole: `Art` is not in `party`. Where words are written without spaces, as in Chinese, there is no such bound.
Whether `bad` at the end of what was read is a word or begins `badge` is known with the next token: until then
a watch is undecided, and its text is held.

A regex sees at most the last 512 characters before a piece of text, of at most 512 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from rlaif.digest import digest
from rlaif.moderation.alike import alike, is_joined, is_letter
from rlaif.moderation.base import Scores
from rlaif.types import Message

if TYPE_CHECKING:
    import torch

__all__ = ["BlockList", "Entry", "Where"]

Where = Literal["prompt", "answer", "both"]

REACH = 512
"""Characters before a piece of text that a match of a regex may begin in, and of such a piece."""
PATIENCE = 64
"""Characters for which a match of a regex that goes on with the text may be undecided."""
SPACES = re.compile("  +")
MOST_BETWEEN = 3
"""Characters between the letters of a word that is `spaced`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that may not be said.

    Attributes:
        text: A word, or a regex.
        spaced: Whether a word is also found with spaces or punctuation between its letters.
    """

    text: str
    where: Where = "both"
    regex: bool = False
    spaced: bool = False

    @property
    def found_as(self) -> str:
        """What is looked for in a text that was made `alike`."""
        letters = " ".join(alike(self.text).split())
        return "".join(filter(is_letter, letters)) if self.spaced else letters


class _Terms(NamedTuple):
    """What is looked for in one kind of text."""

    words: frozenset[str]
    spaced: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> _Terms:
        """Those of some entries; a word that is `spaced` is looked for as it is, too."""
        listed = list(entries)
        return cls(
            words=frozenset(each.found_as for each in listed if not (each.regex or each.spaced)),
            spaced=frozenset(each.found_as for each in listed if each.spaced and not each.regex),
            patterns=tuple(re.compile(each.text) for each in listed if each.regex),
        )


@dataclass(frozen=True)
class BlockList:
    """A moderator of one category; its scores are 0 and 1."""

    name: str
    entries: tuple[Entry, ...]
    layers: tuple[int, ...] = field(default=(), init=False)

    @property
    def categories(self) -> tuple[str, ...]:
        """Its name."""
        return (self.name,)

    @property
    def thresholds(self) -> Scores:
        """1: what was found is flagged."""
        return {self.name: 1.0}

    @cached_property
    def digest(self) -> str:
        """16 hex digits of what it looks for."""
        rows = [[each.text, each.where, each.regex, each.spaced] for each in self.entries]
        return digest([self.name, rows])[:16]

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[Scores]:
        """1 where a message holds an entry: entries for answers are looked for in a last message that is the
        assistant's, those for prompts in all others, whoever wrote them."""
        return [{self.name: float(self._in(conversation))} for conversation in conversations]

    def watch(self, messages: Sequence[Message]) -> _BlockWatch:
        """Begin to read an answer, which continues the last message where that is the assistant's."""
        begun = messages[-1].content if messages and messages[-1].role == "assistant" else ""
        return _BlockWatch(self.name, self._answers, begun)

    def _in(self, conversation: Sequence[Message]) -> bool:
        answered = bool(conversation) and conversation[-1].role == "assistant"
        prompts = conversation[:-1] if answered else conversation
        found = any(_found(self._prompts, message.content) for message in prompts)
        return found or (answered and _found(self._answers, conversation[-1].content))

    @cached_property
    def _prompts(self) -> _Terms:
        return _Terms.of(each for each in self.entries if each.where != "answer")

    @cached_property
    def _answers(self) -> _Terms:
        return _Terms.of(each for each in self.entries if each.where != "prompt")


class _BlockWatch:
    """Looks for entries in an answer while it is written."""

    def __init__(self, name: str, terms: _Terms, begun: str) -> None:
        self._name = name
        self._search = _Search(terms)
        self._search.push(begun)

    @property
    def undecided(self) -> bool:
        """Whether what it has read may still turn out to be an entry."""
        return self._search.undecided

    def push(self, text: str, states: torch.Tensor | None) -> Scores:
        """1 where an entry ends in what the token added."""
        return {self._name: float(self._search.push(text))}

    def close(self) -> Scores:
        """1 where the answer ends with an entry that was undecided."""
        return {self._name: float(self._search.close())}


class _Search:
    """One text, read piece by piece."""

    def __init__(self, terms: _Terms) -> None:
        self._reels = [_Reel(terms.words), _Reel(terms.spaced, letters_only=True)]
        self._patterns = _PatternSearch(terms.patterns)

    @property
    def undecided(self) -> bool:
        return self._patterns.undecided or any(reel.undecided for reel in self._reels)

    def push(self, text: str) -> bool:
        """Whether a term was found that ends in `text`, or is decided by it."""
        found = False
        for at in range(0, len(text), REACH):
            piece = text[at : at + REACH]
            found |= self._patterns.push(piece)
            for reel in self._reels:
                found |= reel.push(piece)
        return found

    def close(self) -> bool:
        """Whether the text ends with a term."""
        return self.undecided


class _Reel:
    """The end of a text that was made `alike`, searched for whole words.

    Args:
        letters_only: Leave out what stands between letters, up to three characters.

    Attributes:
        undecided: Whether the text ends with a word that may go on.
    """

    def __init__(self, words: frozenset[str], *, letters_only: bool = False) -> None:
        self.undecided = False
        self._words = words
        self._lengths = sorted({len(word) for word in words})
        self._ends = {word[-2:] for word in words}
        self._kept = max(self._lengths, default=0) + 1
        self._letters_only = letters_only
        self._text = ""
        self._joined: list[bool] = []
        """For each character, whether it directly follows the one before it."""
        self._gap = 0
        """Characters that were left out since the last letter."""

    def push(self, piece: str) -> bool:
        """Whether a word was found that ends in `piece`, or that ended before it."""
        if not self._words:
            return False
        start, waited = len(self._text), self.undecided
        self._add(alike(piece))
        size = len(self._text)
        ends = range(start if waited else start + 1, size)
        found = any(self._ends_at(end) and self._is_apart(end) for end in self._likely(ends))
        last = (waited or size > start) and self._ends_at(size)
        self.undecided = last and not self._gap and is_joined(self._text[-1])
        self._text, self._joined = self._text[-self._kept :], self._joined[-self._kept :]
        return found or (last and not self.undecided)

    def _add(self, text: str) -> None:
        if not self._letters_only:
            text = SPACES.sub(" ", text)
            self._text += text[1:] if text.startswith(" ") and self._text.endswith(" ") else text
            self._joined += [True] * (len(self._text) - len(self._joined))
            return
        added = []
        for character in text:
            if not is_letter(character):
                self._gap += 1
                continue
            if self._gap > MOST_BETWEEN:
                added.append(" ")
                self._joined.append(False)
            added.append(character)
            self._joined.append(not self._gap)
            self._gap = 0
        self._text += "".join(added)

    def _likely(self, ends: range) -> list[int]:
        """Those before which stands how a word ends."""
        text, likely = self._text, self._ends
        return [end for end in ends if text[max(0, end - 2) : end] in likely or text[end - 1] in likely]

    def _ends_at(self, end: int) -> bool:
        """Whether a word ends before the character at `end`, whatever follows."""
        text = self._text
        return any(
            end >= length and text[end - length : end] in self._words and self._is_apart(end - length)
            for length in self._lengths
        )

    def _is_apart(self, at: int) -> bool:
        """Whether the character at `at` does not continue the word before it."""
        if at == 0 or not self._joined[at]:
            return True
        return not (is_joined(self._text[at - 1]) and is_joined(self._text[at]))


class _PatternSearch:
    """A text searched for regexes.

    Attributes:
        undecided: Whether all matches end where the text does, so that what follows may undo them.
    """

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self.undecided = False
        self._patterns = tuple(patterns)
        self._text = ""
        self._waited = 0
        """Characters read since it is undecided."""

    def push(self, piece: str) -> bool:
        """Whether there is a match that goes on no more."""
        if not self._patterns:
            return False
        # `^` does not match at the `pos` of a search, so nothing is lost with text that nobody can match.
        self._text = self._text[-4 * REACH :] + piece
        start = max(0, len(self._text) - len(piece) - REACH)
        ends = [found.end() for pattern in self._patterns for found in pattern.finditer(self._text, start)]
        self._waited = self._waited + len(piece) if self.undecided else 0
        found = any(end < len(self._text) or self._waited > PATIENCE for end in ends)
        self.undecided = bool(ends) and not found
        return found


def _found(terms: _Terms, text: str) -> bool:
    """Whether a whole text holds one of the terms."""
    search = _Search(terms)
    return search.push(text) or search.close()
