"""The name that was probably meant, where a name is unknown.

Every error about an unknown name (a command, a setting, a kind of stage, a principle, a shipped file) begins
its remedy here, so that all of them read alike. Names are compared as `difflib` does, without regard to case,
hyphens and underscores; the comparison takes quadratic time, so that only so many names of such a length are
looked at.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

from rlaif.text import one_line

__all__ = ["did_you_mean", "nearest"]

MOST_NAMES = 1000
LONGEST_NAME = 100


def nearest(asked: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is spelled most like `asked`; `None` when none is near."""
    if len(asked) > LONGEST_NAME:
        return None
    spelled: dict[str, str] = {}
    for name in islice((name for name in known if len(name) <= LONGEST_NAME), MOST_NAMES):
        spelled.setdefault(_plain(name), name)
    close = difflib.get_close_matches(_plain(asked), spelled, n=1)
    return spelled[close[0]] if close else None


def did_you_mean(asked: str, known: Iterable[str]) -> str:
    """``did you mean `label`? ``, for the beginning of a remedy; empty when no name is near."""
    name = nearest(asked, known)
    return f"did you mean `{one_line(name)}`? " if name is not None else ""


def _plain(name: str) -> str:
    return name.casefold().replace("_", "-")
