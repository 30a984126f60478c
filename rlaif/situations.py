"""The grid that prompts are written from: who asks, about what, how hard, and requests written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

import yaml

from rlaif.errors import ConfigError

__all__ = ["Difficulty", "Persona", "Situations", "load_situations"]


class Persona(NamedTuple):
    """Somebody, as a writer is told (`noun`) and as they put it themselves (`says`)."""

    noun: str
    says: str


class Difficulty(NamedTuple):
    """How hard a prompt makes it to keep a principle: its name, and what the person does."""

    name: str
    how: str


class Situations(NamedTuple):
    """The grid in one language.

    Attributes:
        seeds: By the tag of a principle (`any` for others), requests with `{who}` and `{topic}` to fill in.
    """

    language: str
    personas: tuple[Persona, ...]
    topics: tuple[str, ...]
    difficulties: tuple[Difficulty, ...]
    seeds: Mapping[str, tuple[str, ...]]


@lru_cache(maxsize=4)
def load_situations(language: str) -> Situations:
    """The shipped grid of a language, `en` or `zh`.

    Raises:
        ConfigError: There is none in that language.
    """
    content = yaml.safe_load(files("rlaif").joinpath("data/situations.yaml").read_text(encoding="utf-8"))
    name = language.partition("-")[0]
    if name not in content:
        raise ConfigError(
            f"there are no situations in the language {language!r} to write prompts from",
            remedy=f"the languages are {', '.join(content)}; write the prompts in one of them and translate",
        )
    own = content[name]
    return Situations(
        language=name,
        personas=tuple(Persona(**each) for each in own["personas"]),
        topics=tuple(own["topics"]),
        difficulties=tuple(Difficulty(**each) for each in own["difficulties"]),
        seeds={tag: tuple(each) for tag, each in own["seeds"].items()},
    )
