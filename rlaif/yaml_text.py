"""YAML from outside, read within bounds, with the line of every value: recipes, `--set`, constitutions.

Such a file is data: mappings, lists, texts and numbers. Aliases are refused, so that a small text cannot
unfold into a large value or into itself; so are tags (`!!python/object`), merge keys, deep nesting, second
documents, and a key that stands twice, of which plain YAML keeps the last without a word.

`read_tree` makes `dict`s, `list`s and `str`s that know their lines, with the scalars as they are written;
`plain_value` turns them into numbers and the like. The tree is built from libyaml's events rather than with
`yaml.compose`: that takes half the time on 100,000 principles and cannot overflow the stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import yaml
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from rlaif.errors import Problem, first_problems

__all__ = [
    "KINDS",
    "MOST_DEPTH",
    "UNPRINTABLE",
    "Fault",
    "Mapping",
    "Node",
    "Scalar",
    "Series",
    "Step",
    "brief",
    "plain_value",
    "problems_of",
    "read_tree",
    "steps",
]

MOST_DEPTH = 32
"""Deepest nesting read; a constitution needs 5, a recipe 6, and a JSON Schema for a server some more."""
LONGEST_NUMBER = 400
"""Characters of a number; Python refuses to convert integers of more than 4,300 digits."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NULLS = frozenset({"", "~", "null", "Null", "NULL"})
PLAIN_TAGS = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"})
RESOLVED_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null"))
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
TAB_INDENT = re.compile(r" *\t")
CLOSE = "close the quotation; in single quotes an apostrophe is written twice"
HINTS = {
    "mapping values are not allowed": "quote a text that holds `: `, or begin it with `>-` and a new "
    "indented line",
    "cannot start any token": "quote a text that begins with @, ` or %",
    "quoted scalar": CLOSE,
    "unexpected end of stream": CLOSE,
    "could not find expected ':'": "write `key: value`; indent the further lines of a long text more than "
    "its key",
    "did not find expected": "look here and just above for an open quotation or bracket, or for odd "
    "indentation",
}
"""What helps against an error of libyaml, by a part of its message."""


class Scalar(str):
    """A text, a number or nothing, as written: `Yes` is not yet `True`."""

    __slots__ = ("line", "quoted")
    line: int
    quoted: bool
    """Whether YAML takes it for a text whatever it holds."""

    @property
    def is_null(self) -> bool:
        return not self.quoted and self in NULLS


class Series(list["Node"]):
    """A YAML list."""

    __slots__ = ("line",)
    line: int


class Mapping(dict[str, "Node"]):
    """A YAML mapping, in the order of the file. Its keys are `Scalar`s."""

    __slots__ = ("line",)
    line: int

    def line_of(self, name: str) -> int:
        """The line of a key."""
        return next(key.line for key in self if key == name and isinstance(key, Scalar))


Node = Scalar | Series | Mapping
KINDS = {Scalar: "a text", Series: "a list", Mapping: "a mapping of keys to values"}


class Fault(NamedTuple):
    """Something wrong at a line, from 1."""

    line: int
    what: str
    remedy: str


class Step(NamedTuple):
    """One part of the way from the root of a tree to a value: a key or the place in a list."""

    name: str
    line: int
    node: Node


def read_tree(text: str) -> tuple[Node | None, list[Fault]]:
    """The tree of a YAML text of one document, and all that is wrong with its YAML.

    The tree is `None` when the text holds nothing, or cannot be read. Beside faults it is what could be read.
    """
    if UNPRINTABLE.search(text):
        return None, list(_unprintable(text))
    faults: list[Fault] = []
    try:
        return _tree(yaml.parse(text, Loader=LOADER), faults), faults
    except yaml.YAMLError as error:
        return None, [*faults, *_syntax(error, text)]


def plain_value(node: Node | None, faults: list[Fault]) -> Any:
    """The tree as plain Python values: numbers, `true` and `null` as YAML reads them, dates as texts.

    A number that Python cannot convert is added to `faults`.
    """
    return _Plain(faults).value(node)


def steps(tree: Node | None, location: Iterable[object]) -> list[Step]:
    """The way that the keys and places of `location` lead, as pydantic names them; parts that are not in the
    tree (the tags of unions, a key that was left out) are passed over."""
    found: list[Step] = []
    node = tree
    for part in location:
        if isinstance(node, Mapping) and part in node:
            name = str(part)
            line, node = node.line_of(name), node[name]
            found.append(Step(name, line, node))
        elif isinstance(node, Series) and isinstance(part, int) and part < len(node):
            node = node[part]
            found.append(Step(str(part), node.line, node))
    return found


def problems_of(faults: Iterable[Fault], source: str, count: int) -> list[Problem]:
    """The first of `count` problems of a file, in the order of its lines, and how many more there are."""
    ordered = sorted(faults, key=lambda fault: fault.line)
    return first_problems(
        [Problem(what, where=f"{source}:{line}", remedy=remedy) for line, what, remedy in ordered], count
    )


def brief(text: str) -> str:
    """A text as an error quotes it: on one line, at most 60 characters."""
    flat = " ".join(text.split())
    return f"`{flat[:57]}...`" if len(flat) > 60 else f"`{flat}`"


def _tree(events: Iterator[Any], faults: list[Fault]) -> Node | None:
    """Step through the events with a stack of open collections: `children[-1]` gathers what the innermost one
    holds."""
    children: list[list[Node]] = [[]]
    lines: list[int] = []
    for event in events:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            if event.anchor is not None or event.tag is not None:
                _refuse(event, faults)
            children[-1].append(_scalar(event.value, event, quoted=bool(event.style or event.tag)))
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            _refuse(event, faults)
            lines.append(event.start_mark.line + 1)
            children.append([])
            if len(lines) > MOST_DEPTH:
                what = f"nested more than {MOST_DEPTH} levels deep"
                faults.append(Fault(lines[-1], what, "quote a text that begins with [ or {"))
                return None
        elif kind is yaml.MappingEndEvent:
            held = children.pop()
            children[-1].append(_mapping(lines.pop(), held, faults))
        elif kind is yaml.SequenceEndEvent:
            series = Series(children.pop())
            series.line = lines.pop()
            children[-1].append(series)
        elif kind is yaml.AliasEvent:
            _refuse(event, faults)
            children[-1].append(_scalar("*alias", event, quoted=True))
        elif kind is yaml.DocumentStartEvent and children[0]:
            what = "a second YAML document begins here"
            remedy = "keep one document a file; take the `---` out"
            faults.append(Fault(event.start_mark.line + 1, what, remedy))
            return None
    # A document of nothing but comments parses as an empty scalar.
    root = children[0][0] if children[0] else None
    return None if isinstance(root, Scalar) and root.is_null else root


def _scalar(text: str, event: Any, *, quoted: bool) -> Scalar:
    # Attributes, not arguments: a `__new__` of ours would take half as long again on a large file.
    scalar = Scalar(text)
    scalar.line = event.start_mark.line + 1
    scalar.quoted = quoted
    return scalar


def _mapping(line: int, held: Sequence[Node], faults: list[Fault]) -> Mapping:
    """The mapping of keys and values in turn; of a key that stands twice, the first counts."""
    mapping = Mapping()
    mapping.line = line
    for key, value in zip(held[::2], held[1::2], strict=True):
        if not isinstance(key, Scalar):
            faults.append(Fault(key.line, f"{KINDS[type(key)]} for a key", "write `name: value`"))
        elif key == "<<" and not key.quoted:
            faults.append(Fault(key.line, "a YAML merge key `<<`", "write the keys out where they are meant"))
        elif key in mapping:
            what = f"the key {brief(key)} appears twice, first in line {mapping[key].line}"
            faults.append(Fault(key.line, what, "keep one of the two"))
        else:
            mapping[key] = value
    return mapping


def _refuse(event: Any, faults: list[Fault]) -> None:
    """Note an anchor, an alias or a tag."""
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent):
        remedy = "write the text out where it is meant; quote a text that begins with *"
        faults.append(Fault(line, f"a YAML alias `*{event.anchor}`", remedy))
        return
    if event.anchor is not None:
        remedy = "take it out; quote a text that begins with &"
        faults.append(Fault(line, f"a YAML anchor `&{event.anchor}`", remedy))
    if event.tag not in PLAIN_TAGS:
        remedy = "take it out: values are texts, numbers, lists and mappings"
        faults.append(Fault(line, f"a YAML tag {brief(event.tag)}", remedy))


def _unprintable(text: str) -> Iterator[Fault]:
    for line, content in enumerate(LINE_BREAK.split(text), 1):
        if found := UNPRINTABLE.search(content):
            what = f"a control character (U+{ord(found.group()):04X})"
            yield Fault(line, what, "delete it; the file may not be a text file")


def _syntax(error: yaml.YAMLError, text: str) -> Iterator[Fault]:
    """What stopped the parser, and every line indented with a tab, which is the usual cause."""
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else 1
    tabs = [at for at, content in enumerate(LINE_BREAK.split(text), 1) if TAB_INDENT.match(content)]
    for at in tabs:
        yield Fault(at, "a tab in the indentation", "indent with spaces; YAML does not allow tabs there")
    if line not in tabs:
        problem = str(getattr(error, "problem", None) or error)
        hints = (hint for part, hint in HINTS.items() if part in problem)
        yield Fault(line, f"not valid YAML: {problem}", next(hints, "look at this line and the one above it"))


class _Plain(SafeConstructor, Resolver):
    """Reads scalars as YAML 1.1 does, but for dates (`2024-13-45` is a text, not an error), `=` and `<<`."""

    def __init__(self, faults: list[Fault]) -> None:
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self._faults = faults

    def value(self, node: Node | None) -> Any:
        if isinstance(node, Mapping):
            return {str(key): self.value(below) for key, below in node.items()}
        if isinstance(node, Series):
            return [self.value(below) for below in node]
        return None if node is None else self._scalar(node)

    def _scalar(self, scalar: Scalar) -> Any:
        text = str(scalar)
        if scalar.quoted:
            return text
        if len(text) > LONGEST_NUMBER and (text[0].isdigit() or text[0] in "+-."):
            return self._unreadable(scalar, f"a number of {len(text):,} characters")
        tag = self.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        try:
            return self.construct_object(yaml.ScalarNode(tag, text))
        except ValueError as error:  # `0x_`
            return self._unreadable(scalar, f"a value that cannot be read: {error}")

    def _unreadable(self, scalar: Scalar, what: str) -> None:
        self._faults.append(Fault(scalar.line, what, "quote a text"))


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in RESOLVED_TAGS]
    for first, resolvers in Resolver.yaml_implicit_resolvers.items()
}
