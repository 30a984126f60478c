"""Text as a block list compares it: characters that read alike are one character.

Every character is replaced by itself: what two texts become, put together, is what the texts put together
become. So a stream can be normalised piece by piece.

1. Width and form: NFKD, so that full-width, circled and bold letters are plain ones.
2. Case: `casefold`.
3. Accents: the combining marks of Latin, Greek and Cyrillic letters are left out. The vowel signs of other
   scripts and the voicing marks of Japanese stay: without them other words would be meant.
4. Look-alikes: Greek and Cyrillic letters that look like a Latin one are that one.
5. What is not seen (zero-width characters, soft hyphens, marks of direction) is left out.
6. Spaces of every kind are one space.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

__all__ = ["alike", "is_joined", "is_letter"]

MARKS = ((0x0300, 0x036F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F))
"""Blocks of combining diacritical marks."""

LOOK_ALIKES = str.maketrans(
    # Cyrillic
    "авгекмнорстухѕіјьѡѵүһҽӏԁԍԛԝ"
    # Greek
    "αβγεζηικμνορστυχϳ",
    "abrekmhopctyxsijbwvyheidgqw" + "abyezhikmvopotuxj",
)
"""A subset of the confusables of Unicode (UTS #39, `confusables.txt`): Greek and Cyrillic letters, in small
form, that it gives a letter of ASCII for; those that only look alike as capitals (В, Н, К, Μ, …) by that one.
Where small and capital form look like different letters (ν and Ν, υ and Υ, η and Η) one had to be chosen:
the small form's, but for η, which has none."""

UNSPACED = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "IDEOGRAPHIC",
    "BOPOMOFO",
    "HANGUL",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)
"""How the names of letters begin whose words are written without spaces, or with endings that are not set
apart."""


def alike(text: str) -> str:
    """`text` as it is compared."""
    return "".join(map(_alike, text))


@lru_cache(maxsize=1 << 16)
def _alike(character: str) -> str:
    if character.isspace():
        return " "
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(each for each in folded if not _unseen(each)).translate(LOOK_ALIKES)


def _unseen(character: str) -> bool:
    code = ord(character)
    return any(low <= code <= high for low, high in MARKS) or unicodedata.category(character) == "Cf"


@lru_cache(maxsize=1 << 16)
def is_letter(character: str) -> bool:
    """Whether it is a part of a word: a letter, a digit, or a sign that belongs to one."""
    return unicodedata.category(character)[0] in "LNM"


@lru_cache(maxsize=1 << 16)
def is_joined(character: str) -> bool:
    """Whether it is a part of words that end where its like ends: not where words are written without
    spaces."""
    return is_letter(character) and not unicodedata.name(character, "").startswith(UNSPACED)
