"""Regular expressions on texts of strangers: a pattern reads so many characters that it cannot hold a server
up.

Python's `re` backtracks. A repeat inside a repeat may take time that doubles with each character, so it is
refused; of others the time grows as a power of the length, and that power says how much of a text a pattern
is shown.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["LONGEST_PATTERN", "Pattern", "compiled"]

LONGEST_PATTERN = 2_000
"""Characters of a pattern."""
SEEN = (4_000, 2_000, 1_000, 500, 250, 100)
"""Characters of a text that patterns are shown, the most that keeps within `MOST_STEPS`."""
MOST_STEPS = 200_000_000
"""Ways to match that may be tried, at most: about a second."""
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
        if seen * _ways(spans, seen) <= MOST_STEPS:
            return Pattern(regex, seen)
    raise ValueError("has so many repeats in a row that a text could hold the server up for seconds")


def _ways(spans: Iterable[int], seen: int) -> int:
    ways = 1
    for span in spans:
        ways *= min(span, seen) + 1
    return ways


def _spans(parts: Iterable[Any], *, repeated: bool) -> list[int]:
    """By how much each repeat of a parsed pattern may vary.

    Args:
        repeated: Whether the parts stand in a repeat.

    Raises:
        ValueError: A repeat that varies stands in another.
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
        else:
            for inner in _inside(argument):
                found += _spans(inner, repeated=repeated)
    return found


def _inside(argument: Any) -> list[Any]:
    """The sequences of parts in an argument of a part: of a group, a look-around, or each of a branch."""
    if isinstance(argument, _sre.SubPattern):
        return [argument]
    if isinstance(argument, tuple | list):
        return [each for item in argument for each in _inside(item)]
    return []
