"""YAML that knows its line numbers, and a reader that reports every problem of a file at once.

`compose` turns text into a tree of three node types. It builds the tree from libyaml's events rather than
with `yaml.compose`: that takes half the time on 100,000 principles, cannot overflow the stack, and leaves the
text of an unquoted scalar as written (`Yes` is not `True`). Aliases are refused, so that a small file cannot
unfold into a large one; so are tags (`!!python/object`), deep nesting and second documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from rlaif.errors import ConstitutionError, Problem
from rlaif.suggest import did_you_mean

__all__ = [
    "MAX_DEPTH",
    "NULLS",
    "PROBLEMS_LISTED",
    "Mapping",
    "Node",
    "Report",
    "Scalar",
    "Series",
    "UNPRINTABLE",
    "brief",
    "compose",
    "first_problems",
]

MAX_DEPTH = 16
"""Deepest nesting read; a constitution needs 5."""

PROBLEMS_LISTED = 50
"""Problems of one file that are spelled out; the rest are counted."""

LEAST, MOST = 1e-6, 1e6
"""Bounds of a weight: only how weights compare matters, and sums of larger ones lose the small ones."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NULLS = frozenset({"", "~", "null", "Null", "NULL"})
PLAIN_TAGS = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"})
UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
TAB_INDENT = re.compile(r" *\t")
NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Scalar(NamedTuple):
    """A text, a number or nothing, as written; `quoted` says whether YAML would read it as text whatever it
    holds."""

    line: int
    text: str
    quoted: bool


class Series(NamedTuple):
    """A YAML list."""

    line: int
    items: list[Any]


class Mapping(NamedTuple):
    """A YAML mapping, its pairs in order; keys may repeat, for the reader to report."""

    line: int
    pairs: list[tuple[Any, Any]]


Node = Scalar | Series | Mapping
LEAST, MOST = 1e-6, 1e6
"""Bounds of a weight: a principle of less or more would never, or always, be drawn."""
KINDS = {Scalar: "a text", Series: "a list", Mapping: "a mapping of keys to values"}


class Report:
    """The problems of one file, and the reading functions that add to them."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[tuple[int, Problem]] = []
        self.count = 0

    def add(self, line: int, what: str, remedy: str) -> None:
        """Note a problem at a line (from 1); beyond the first 50 they are counted only."""
        self.count += 1
        if len(self.problems) < PROBLEMS_LISTED:
            self.problems.append((line, Problem(what, where=f"{self.source}:{line}", remedy=remedy)))

    def finish(self) -> None:
        """Raise what was found, in the order of the lines.

        Raises:
            ConstitutionError: A problem was noted.
        """
        if self.count:
            problems = "1 problem" if self.count == 1 else f"{self.count} problems"
            ordered = [problem for _, problem in sorted(self.problems, key=lambda pair: pair[0])]
            raise ConstitutionError(
                f"{self.source} cannot be used: {problems}", problems=first_problems(ordered, self.count)
            )

    def fields(self, node: Node, what: str, allowed: Sequence[str]) -> dict[str, Node] | None:
        """The values of a mapping by key, unknown and repeated keys reported; `None` when the node is no
        mapping."""
        if not isinstance(node, Mapping):
            self.wrong_type(node, what, f"write it as a mapping with the keys {', '.join(allowed)}")
            return None
        fields: dict[str, Node] = {}
        for key, value in node.pairs:
            if not isinstance(key, Scalar):
                self.add(
                    key.line, f"{what} has {KINDS[type(key)]} for a key", f"its keys are {', '.join(allowed)}"
                )
            elif key.text not in allowed:
                guess = did_you_mean(key.text, allowed)
                self.add(
                    key.line,
                    f"{what} has an unknown key {brief(key.text)}",
                    f"{guess}its keys are {', '.join(allowed)}",
                )
            elif key.text in fields:
                first = fields[key.text].line
                self.add(
                    key.line, f"{what} has `{key.text}` twice (first at line {first})", "keep one of the two"
                )
            else:
                fields[key.text] = value
        return fields

    def series(self, node: Node, what: str) -> list[Node]:
        """The items of a list; empty, and reported, when the node is no list."""
        if isinstance(node, Series):
            return node.items
        self.wrong_type(node, what, "write a list: one item a line, each after `- `, or [one, two]")
        return []

    def text(self, node: Node, what: str) -> str | None:
        """A text, its ends stripped; `None`, and reported, when it is empty or no text."""
        if not isinstance(node, Scalar):
            self.wrong_type(node, what, "write one text; quote it if it holds `: ` or begins with [ or {")
            return None
        stripped = node.text.strip()
        if not stripped or (not node.quoted and node.text in NULLS):
            self.add(node.line, f"{what} is empty", "write its text, or leave the key out")
            return None
        if UNPRINTABLE.search(stripped):
            self.add(
                node.line,
                f"{what} holds a control character",
                "take the escape such as \\0 out of the quoted text",
            )
            return None
        return stripped

    def number(self, node: Node, what: str) -> float | None:
        """A number from `LEAST` to `MOST`; `None`, and reported, when it is anything else."""
        if not isinstance(node, Scalar) or node.quoted or not NUMBER.fullmatch(node.text):
            self.wrong_type(node, what, "write a number greater than 0, without quotes")
            return None
        value = float(re.sub(r"\.(?=inf|nan)", "", node.text.lower()))
        if not LEAST <= value <= MOST:
            self.add(
                node.line, f"{what} is {brief(node.text)}", f"write a number from {LEAST:g} to {MOST:,.0f}"
            )
            return None
        return value

    def wrong_type(self, node: Node, what: str, remedy: str) -> None:
        """Note that a node is of the wrong type, saying what was read."""
        read = brief(node.text) if isinstance(node, Scalar) else KINDS[type(node)]
        self.add(node.line, f"{what} is of the wrong type: read {read}", remedy)


def first_problems(problems: Sequence[Problem], count: int) -> list[Problem]:
    """The first 50 of `count` problems, and a line that says how many more there are."""
    listed = list(problems[:PROBLEMS_LISTED])
    rest = count - len(listed)
    return [*listed, Problem(f"… and {rest} more")] if rest else listed


def brief(text: str) -> str:
    """A text as an error quotes it: on one line, at most 60 characters."""
    flat = " ".join(text.split())
    return f"`{flat[:57]}...`" if len(flat) > 60 else f"`{flat}`"


def compose(text: str, report: Report) -> Node | None:
    """The tree of a YAML text of one document; `None` when the text cannot be read (reported) or holds
    nothing (not reported)."""
    if UNPRINTABLE.search(text):
        for line, content in enumerate(LINE_BREAK.split(text), 1):
            for character in UNPRINTABLE.findall(content)[:1]:
                report.add(
                    line,
                    f"a control character (U+{ord(character):04X})",
                    "delete it; the file may not be a text file",
                )
        return None
    try:
        return _build(yaml.parse(text, Loader=LOADER), report)
    except yaml.YAMLError as error:
        _report_syntax(error, text, report)
    return None


def _build(events: Iterator[Any], report: Report) -> Node | None:
    """Step through the events with a stack of open collections: `children[-1]` gathers what the innermost one
    holds."""
    children: list[list[Any]] = [[]]
    lines: list[int] = []
    for event in events:
        kind = type(event)
        if kind is yaml.ScalarEvent:
            line = event.start_mark.line + 1
            if event.anchor is not None or event.tag is not None:
                _refuse(event, report)
            children[-1].append(Scalar(line, event.value, bool(event.style)))
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            _refuse(event, report)
            lines.append(event.start_mark.line + 1)
            children.append([])
            if len(lines) > MAX_DEPTH:
                remedy = "a constitution needs 5; quote a text that begins with [ or {"
                report.add(lines[-1], f"nested more than {MAX_DEPTH} levels deep", remedy)
                return None
        elif kind is yaml.MappingEndEvent:
            held = children.pop()
            children[-1].append(Mapping(lines.pop(), list(zip(held[::2], held[1::2], strict=True))))
        elif kind is yaml.SequenceEndEvent:
            held = children.pop()
            children[-1].append(Series(lines.pop(), held))
        elif kind is yaml.AliasEvent:
            _refuse(event, report)
            children[-1].append(Scalar(event.start_mark.line + 1, "*alias", True))
        elif kind is yaml.DocumentStartEvent and children[0]:
            remedy = "keep one document a file; take the `---` out"
            report.add(event.start_mark.line + 1, "a second YAML document begins here", remedy)
            return None
    return _root(children[0])


def _root(roots: Sequence[Node]) -> Node | None:
    """The one node of the document; a document of nothing but comments parses as an empty scalar."""
    root = roots[0] if roots else None
    return None if isinstance(root, Scalar) and root.text in NULLS and not root.quoted else root


def _refuse(event: Any, report: Report) -> None:
    """Report an anchor, an alias or a tag."""
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent):
        remedy = "write the text out where it is meant; quote a text that begins with *"
        report.add(line, f"a YAML alias `*{event.anchor}`", remedy)
        return
    if event.anchor is not None:
        report.add(line, f"a YAML anchor `&{event.anchor}`", "take it out; quote a text that begins with &")
    if event.tag not in PLAIN_TAGS:
        report.add(
            line,
            f"a YAML tag {brief(event.tag)}",
            "take it out: values are texts, numbers, lists and mappings",
        )


def _report_syntax(error: yaml.YAMLError, text: str, report: Report) -> None:
    """Report what stopped the parser, and every line indented with a tab, which is the usual cause."""
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else 1
    tabs = [at for at, content in enumerate(LINE_BREAK.split(text), 1) if TAB_INDENT.match(content)]
    for at in tabs:
        report.add(at, "a tab in the indentation", "indent with spaces; YAML does not allow tabs there")
    if line not in tabs:
        problem = str(getattr(error, "problem", None) or error)
        report.add(line, f"not valid YAML: {problem}", _hint(problem))


def _hint(problem: str) -> str:
    hints: Iterable[tuple[str, str]] = (
        (
            "mapping values are not allowed",
            "quote a text that holds `: `, or begin it with `>-` and a new indented line",
        ),
        ("cannot start any token", "quote a text that begins with @, ` or %"),
        ("quoted scalar", "close the quotation; in single quotes an apostrophe is written twice"),
        ("unexpected end of stream", "close the quotation; in single quotes an apostrophe is written twice"),
        (
            "could not find expected ':'",
            "write `key: value`; indent the further lines of a long text more than its key",
        ),
        (
            "did not find expected",
            "look here and just above for an open quotation or bracket, or for odd indentation",
        ),
    )
    return next((hint for start, hint in hints if start in problem), "look at this line and the one above it")
