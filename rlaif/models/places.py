"""Names of models that stand for the same place."""

from __future__ import annotations

import os
from collections.abc import Iterable

__all__ = ["known_as", "one_place"]


def one_place(name: str) -> str:
    """A model's name; of a folder or file its real path, by whatever path it is named."""
    path = os.path.expanduser(name)
    return os.path.realpath(path) if os.path.exists(path) else name


def known_as(name: str, known: Iterable[str]) -> str:
    """The one of `known` that names the same model as `name`, so that it is held once; else `name`."""
    return next((each for each in known if one_place(each) == one_place(name)), name)
