"""Read block lists from YAML and text files; every problem of a file is told with its line."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from rlaif.errors import ConfigError
from rlaif.files import read_small
from rlaif.moderation.blocklist import BlockList, Entry, Where
from rlaif.text import one_line
from rlaif.yaml_text import KINDS, Fault, Mapping, Node, Scalar, Series, brief, problems_of, read_tree

__all__ = ["load_block_list", "parse_block_list"]

LONGEST = 200
"""Characters of a word."""
LONGEST_REGEX = 2_000
LONGEST_NAME = 100
WHERE = get_args(Where)
TOP_KEYS = ("name", "where", "entries")
WORD_KEYS = ("word", "where", "spaced")
REGEX_KEYS = ("regex", "where")
BOOLEANS = {"true": True, "True": True, "false": False, "False": False}


def load_block_list(path: Path) -> BlockList:
    """The block list in a file: YAML, or words a line where its name ends in `.txt`.

    Raises:
        ConfigError: There is no such file, or it is no block list; every problem is listed.
    """
    try:
        text = read_small(path, error=ConfigError)
    except OSError as error:
        raise ConfigError(
            f"the block list cannot be read ({error.strerror or error})",
            where=str(path),
            remedy="name a block list (YAML or .txt)",
        ) from error
    if path.suffix.lower() == ".txt":
        entries, faults = _lines(text)
        return _checked(path.stem, entries, faults, str(path))
    return parse_block_list(text, source=str(path), name=path.stem)


def parse_block_list(text: str, *, source: str, name: str) -> BlockList:
    """The block list that a YAML text holds.

    Args:
        source: Names it in messages.
        name: Its category where the text names none.

    Raises:
        ConfigError: It holds none; every problem is listed.
    """
    tree, faults = read_tree(text)
    if not isinstance(tree, Mapping):
        what = f"{KINDS[type(tree)]} instead of a mapping" if tree is not None else "the file holds no list"
        extra = [] if faults else [Fault(1, what, "write `entries:` and a list of words")]
        return _checked(name, [], [*faults, *extra], source)
    faults += _unknown(tree, TOP_KEYS)
    given = tree.get("name")
    if given is not None:
        name = given if isinstance(given, Scalar) else ""
    if not name.strip() or len(name) > LONGEST_NAME:
        line = tree.line_of("name") if "name" in tree else 1
        faults.append(
            Fault(line, f"a name of no or too many characters (at most {LONGEST_NAME})", "write one")
        )
    where = _where(tree, "both", faults)
    listed = tree.get("entries")
    if not isinstance(listed, Series):
        line = tree.line_of("entries") if "entries" in tree else 1
        faults.append(Fault(line, "no list of entries", "write `entries:` and a list of words"))
        return _checked(name, [], faults, source)
    entries = [entry for node in listed if (entry := _entry(node, where, faults)) is not None]
    return _checked(str(name), entries, faults, source)


def _checked(name: str, entries: list[Entry], faults: list[Fault], source: str) -> BlockList:
    """The list, or all that is wrong with it."""
    if not faults and not entries:
        faults = [Fault(1, "there are no entries", "write a word a line, or leave the file out")]
    if faults:
        raise ConfigError(
            f"{len(faults)} problem{'s' * (len(faults) > 1)} in a block list",
            where=source,
            problems=problems_of(faults, source, len(faults)),
        )
    return BlockList(one_line(name.strip()), tuple(entries))


def _lines(text: str) -> tuple[list[Entry], list[Fault]]:
    """The words of a text file."""
    entries, faults = [], list[Fault]()
    for number, line in enumerate(text.split("\n"), 1):
        word = line.partition("#")[0].strip()
        if word:
            entry = Entry(word)
            faults += _unfit(entry, number)
            entries.append(entry)
    return entries, faults


def _entry(node: Node, where: Where, faults: list[Fault]) -> Entry | None:
    """One entry; what is wrong with it is added to `faults`."""
    if isinstance(node, Scalar):
        entry, line = Entry(str(node), where), node.line
    elif not isinstance(node, Mapping) or ("word" in node) == ("regex" in node):
        faults.append(Fault(node.line, "an entry that is no word", "write a word, `word: …` or `regex: …`"))
        return None
    else:
        kind, keys = ("regex", REGEX_KEYS) if "regex" in node else ("word", WORD_KEYS)
        line = node.line_of(kind)
        faults += _unknown(node, keys)
        text = node[kind]
        if not isinstance(text, Scalar):
            faults.append(Fault(line, f"{KINDS[type(text)]} for `{kind}`", "write a text"))
            return None
        spaced = _spaced(node, faults)
        entry = Entry(str(text), _where(node, where, faults), regex=kind == "regex", spaced=spaced)
    faults += _unfit(entry, line)
    return entry


def _where(node: Mapping, default: Where, faults: list[Fault]) -> Where:
    value = node.get("where")
    if value is None:
        return default
    for known in WHERE:
        if value == known:
            return known  # type: ignore[no-any-return]
    shown = brief(str(value)) if isinstance(value, Scalar) else KINDS[type(value)]
    faults.append(Fault(node.line_of("where"), f"`where` is {shown}", f"write {', '.join(WHERE)}"))
    return default


def _spaced(node: Mapping, faults: list[Fault]) -> bool:
    value = node.get("spaced")
    if value is None:
        return False
    if not isinstance(value, Scalar) or value not in BOOLEANS:
        faults.append(Fault(node.line_of("spaced"), "`spaced` is neither true nor false", "write true"))
        return False
    return BOOLEANS[str(value)]


def _unknown(node: Mapping, keys: tuple[str, ...]) -> Iterator[Fault]:
    for key in node:
        if key not in keys:
            what = f"a key {brief(key)} that is not known here"
            yield Fault(node.line_of(key), what, f"the keys are {', '.join(keys)}")


def _unfit(entry: Entry, line: int) -> Iterator[Fault]:
    """Why nothing, or everything, would be found by an entry."""
    if entry.regex:
        yield from _unfit_regex(entry.text, line)
    elif len(entry.text) > LONGEST:
        yield Fault(line, f"a word of {len(entry.text):,} characters", f"write {LONGEST} at most")
    elif not any(not character.isspace() for character in entry.found_as):
        yield Fault(line, "a word that nothing is left of", "write one with letters that are seen")
    elif entry.spaced and len(entry.found_as) < 2:
        yield Fault(line, "a spaced word of one letter", "take `spaced` out")


def _unfit_regex(text: str, line: int) -> Iterator[Fault]:
    if len(text) > LONGEST_REGEX:
        yield Fault(line, f"a regex of {len(text):,} characters", f"write {LONGEST_REGEX:,} at most")
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        yield Fault(line, f"not a regex of Python: {error}", "mend it; quote it in single quotes")
        return
    if pattern.search(""):
        yield Fault(
            line, f"the regex {brief(text)} matches an empty text", "write one that needs a character"
        )
