"""YAML of recipes and of `--set`, read within bounds and without surprises.

A recipe is data: mappings, lists, texts, numbers. Aliases are refused, so that a small text cannot unfold
into a large value or into itself; so are tags, deep nesting, second documents, and a key that stands twice,
of which plain YAML keeps the last without a word. Dates stay texts.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from rlaif.errors import ConfigError, Problem

__all__ = ["MOST_CHARACTERS", "MOST_DEPTH", "read_yaml"]

MOST_CHARACTERS = 2_000_000
MOST_DEPTH = 32
LONGEST_NUMBER = 400
"""Characters of a number; Python refuses to convert integers of more than 4,300 digits."""
UNREADABLE = re.compile("[\x00\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """`SafeLoader` without dates: `2024-13-45` is a text, not an error."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str, *, source: str, what: str = "the recipe") -> tuple[yaml.Node | None, Any]:
    """The tree of nodes, for line numbers, and the value of a YAML text.

    Raises:
        ConfigError: It is not valid YAML, or goes beyond the bounds above; with the line.
    """
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"{what} has {len(text):,} characters; at most {MOST_CHARACTERS:,} are read", where=source
        )
    if UNREADABLE.search(text):
        raise ConfigError(f"{what} holds a NUL or half a character", where=source, remedy="save it as UTF-8")
    try:
        _check_events(text, source, what)
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _check_keys(node, source, what)
        return node, yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(
            f"{what} is not valid YAML: {getattr(error, 'problem', None) or error}", where=where
        ) from error
    except (ValueError, OverflowError, TypeError, RecursionError) as error:
        raise ConfigError(f"{what} holds a value that cannot be read: {error}", where=source) from error


def _check_events(text: str, source: str, what: str) -> None:
    """Refuse what must not be unfolded, before anything is built: the events come one by one, at no depth of
    recursion of ours."""
    depth = documents = 0
    event: Any
    for event in yaml.parse(text, Loader=_Loader):
        where = f"{source}:{event.start_mark.line + 1}"
        documents += isinstance(event, yaml.DocumentStartEvent)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MOST_DEPTH:
            raise ConfigError(
                f"{what} is nested deeper than {MOST_DEPTH}", where=where, remedy="write it flatter"
            )
        if documents > 1:
            raise ConfigError(f"{what} holds a second document", where=where, remedy="remove the line `---`")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ConfigError(
                f"{what} uses an anchor or alias (&, *)",
                where=where,
                remedy="write the value out, or quote the text",
            )
        if getattr(event, "tag", None) not in (None, "!"):
            raise ConfigError(f"{what} uses the tag {event.tag}", where=where, remedy="write the plain value")
        plain = (
            isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > LONGEST_NUMBER
        )
        if plain and (event.value[0].isdigit() or event.value[0] in "+-."):
            raise ConfigError(
                f"{what} holds a number of {len(event.value):,} characters",
                where=where,
                remedy="quote a text",
            )


def _check_keys(node: yaml.Node, source: str, what: str) -> None:
    """Refuse mappings with keys that are no plain texts, or that stand twice; every one is told."""
    problems: list[Problem] = []
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if isinstance(here, yaml.SequenceNode):
            waiting += here.value
        if not isinstance(here, yaml.MappingNode):
            continue
        seen: dict[str, int] = {}
        for key, value in here.value:
            waiting.append(value)
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                problems.append(
                    Problem(
                        "a key must be a plain text", where=f"{source}:{line}", remedy="write `name: value`"
                    )
                )
            elif key.value in seen:
                problems.append(
                    Problem(
                        f"the key `{key.value}` stands twice, first in line {seen[key.value]}",
                        where=f"{source}:{line}",
                        remedy="keep one of the two",
                    )
                )
            else:
                seen[key.value] = line
    if problems:
        raise ConfigError(f"{what} has keys that cannot be meant so", where=source, problems=problems[:50])
