"""Regular expressions on texts of strangers: a pattern reads so many characters that it cannot hold a server
up.

Python's `re` backtracks. A repeat inside a repeat, and alternatives in one that begin alike, may take time
that doubles with each character, so they are refused; of others the time grows as a power of the length, and
that power says how much of a text a pattern is shown.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["LONGEST_PATTERN", "Pattern", "compiled"]

LONGEST_PATTERN = 2_000
"""Characters of a pattern."""
SEEN = (4_000, 2_000, 1_000, 500, 250, 100)
"""Characters of a text that patterns are shown, the most that keeps within `MOST_STEPS`."""
MOST_STEPS = 25_000_000
"""Ways to match that may be tried: about a second for the costliest kind."""
BRANCH_COST = 2
"""Steps that an alternative takes, in those of a character of a repeat; measured, it is more for some."""
REPEATS = frozenset({"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"})
_sre: Any = importlib.import_module("re._parser")  # no public interface tells how a pattern is built


class Pattern(NamedTuple):
    """A pattern, and how many characters of a text it is shown."""

    regex: re.Pattern[str]
    seen: int

    def found(self, text: str) -> bool:
        """Whether it is found in what it is shown of `text`, the beginning."""
        return self.regex.search(text[: self.seen]) is not None


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Pattern:
    """A pattern that can be searched within bounds.

    Raises:
        ValueError: It is no regular expression, or could take too long on any text.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"has {len(pattern):,} characters, and at most {LONGEST_PATTERN:,} are read")
    try:
        regex, parts = re.compile(pattern), _sre.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is no regular expression: {error}") from None
    spans = _spans(parts, repeated=False)
    for seen in SEEN:
        if _steps(spans, seen) <= MOST_STEPS:
            return Pattern(regex, seen)
    raise ValueError("has so many repeats in a row that a text could hold the server up for seconds")


def _steps(spans: Sequence[int], seen: int) -> int:
    """In how many ways a pattern may be laid over a text of `seen` characters, from every place: k repeats
    without bound have C(seen + k + 1, k + 1) together, each other one as many as it has lengths."""
    free = sum(span >= seen for span in spans)
    bounded = math.prod(span + 1 for span in spans if span < seen)
    return math.comb(seen + free + 1, free + 1) * bounded


def _spans(parts: Iterable[Any], *, repeated: bool) -> list[int]:
    """By how much each repeat of a parsed pattern may vary, and each choice between alternatives.

    Args:
        repeated: Whether the parts stand in a repeat.

    Raises:
        ValueError: A repeat that varies, or alternatives that begin alike, stand in another.
    """
    found: list[int] = []
    for kind, argument in parts:
        if str(kind) in REPEATS:
            least, most, inner = argument
            if repeated and least != most:
                raise ValueError(
                    "has a repeat inside a repeat, which may take twice as long with each character"
                )
            found += [int(most) - int(least)] if most != least else []
            found += _spans(inner, repeated=repeated or most > 1)
            continue
        inside = _inside(argument)
        if str(kind) == "BRANCH":
            if repeated and not _told_apart(inside):
                raise ValueError(
                    "has alternatives inside a repeat that may begin alike, which may take twice as long "
                    "with each character"
                )
            found += [] if repeated else [BRANCH_COST * len(inside) - 1]
        for each in inside:
            found += _spans(each, repeated=repeated)
    return found


def _told_apart(alternatives: Sequence[Any]) -> bool:
    """Whether the first character of a text says which alternative it can be."""
    firsts = [each[0] if len(each) else None for each in alternatives]
    if not all(first is not None and str(first[0]) == "LITERAL" for first in firsts):
        return False
    return len({chr(first[1]).casefold() for first in firsts if first}) == len(firsts)


def _inside(argument: Any) -> list[Any]:
    """The sequences of parts in an argument of a part: of a group, a look-around, or each of a branch."""
    if isinstance(argument, _sre.SubPattern):
        return [argument]
    if isinstance(argument, tuple | list):
        return [each for item in argument for each in _inside(item)]
    return []
