"""What is wrong in a file of directives: each problem with its line, what was read, what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError, PydanticKnownError

from rlaif.constitution.form import text_of
from rlaif.directives.form import SOURCES, BothForm, ConditionForm, DirectiveForm, DirectivesForm, SideForm
from rlaif.suggest import did_you_mean
from rlaif.yaml_text import KINDS, Fault, Mapping, Node, Scalar, Series, brief, steps

__all__ = ["described", "problems_between_keys"]

ACTS = ("prior", "answer", "both_sides", "blocked_message")
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
MESSAGES = {
    "extra_forbidden": ("{parent} has an unknown key {key}", "{guess}its keys are {keys}"),
    "missing": ("{parent} has no `{name}`", "its keys are {keys}"),
    "model_type": ("{label} is of the wrong type: read {read}", "write it as a mapping with the keys {keys}"),
    "list_type": ("{label} is of the wrong type: read {read}", "write a list, each item after `- `"),
    "too_short": ("{label} has too few items", "write one directive at least; `answers` are two"),
    "too_long": ("{label} has too many items", "write the good answer and then the bad one: [Yes, No]"),
    "string_type": (
        "{label} is of the wrong type: read {read}",
        "write one text; quote it if it holds `: ` or begins with [ or {{",
    ),
    "string_too_short": ("{label} is empty", "write its text, or leave the key out"),
    "control_character": ("{label} contains a control character", "take it out of the quoted text"),
    "string_pattern_mismatch": (
        "{label} is {read}",
        "use small letters, digits, dots, hyphens and underscores, a letter or digit first; a language is "
        "a tag such as en",
    ),
}
"""What is wrong, and the remedy, by the type of pydantic's error."""
REMEDIES = {
    "regex": "write a pattern without such repeats, as `(?i)\\bopening hours\\b`",
    "always": "write `always: true`, or another condition",
    "threshold": "write a number such as 0.8",
    "from": "write the day as 2026-12-31, UTC",
    "until": "write the day as 2026-12-31, UTC",
    "answers": "write two answers that differ from their first letter on",
}
SHORTER = "write a shorter text"


def described(details: Any, tree: Node) -> Fault:
    """One of the errors that pydantic found in `tree`, at its line."""
    location = details["loc"]
    above, name = location[:-1], str(location[-1]) if location else ""
    way = steps(tree, location)
    node = way[-1].node if way else tree
    kind = details["type"]
    unknown = kind == "extra_forbidden"
    if kind == "wrong":
        what = f"{_label(location, tree)} {details['ctx']['said']}"
        too_long = "characters" in details["ctx"]["said"] and name != "regex"
        return Fault(node.line, what, SHORTER if too_long else REMEDIES.get(name, SHORTER))
    keys = _keys(above if unknown or kind == "missing" else location)
    words = {
        "label": _label(location, tree),
        "parent": _label(above, tree),
        "key": brief(name),
        "name": name,
        "keys": ", ".join(keys),
        "read": brief(node) if isinstance(node, Scalar) else KINDS[type(node)],
        "guess": did_you_mean(name, keys),
    }
    what, remedy = MESSAGES[kind]
    return Fault(way[-1].line if unknown else node.line, what.format(**words), remedy.format(**words))


def _keys(location: Sequence[Any]) -> list[str]:
    """The keys that the mapping at `location` may have."""
    form: type[BaseModel]
    match location:
        case ():
            form = DirectivesForm
        case (_, _):
            form = DirectiveForm
        case (_, _, "when"):
            form = ConditionForm
        case (_, _, "both_sides"):
            form = BothForm
        case _:
            form = SideForm
    return [field.alias or name for name, field in form.model_fields.items()]


def _label(location: Sequence[Any], tree: Node) -> str:
    """What stands at `location`, in words."""
    match location:
        case ():
            return "the file"
        case (key,):
            return f"`{key}`"
        case (_, place):
            return _named(steps(tree, location)[-1].node, int(place) + 1)
    named = _named(steps(tree, location[:2])[-1].node, location[1] + 1)
    key = ".".join(str(part) for part in location[2:] if not isinstance(part, int))
    return f"`{key}` of {named}"


def _named(node: Node, place: int) -> str:
    """A directive by its id where it has one, else by its place."""
    id = _text(node.get("id")) if isinstance(node, Mapping) else ""
    return f"directive `{id}`" if id else f"directive {place}"


def _text(node: object) -> str:
    """The text of a node; nothing when it has none that can be read."""
    try:
        return text_of(node)
    except (PydanticKnownError, PydanticCustomError):
        return ""


def problems_between_keys(tree: Node) -> Iterator[Fault]:
    """What is wrong between the keys of a file, as far as they can be read; each alone may be right."""
    ids: dict[str, int] = {}
    items = tree.get("directives") if isinstance(tree, Mapping) else None
    for place, item in enumerate(items if isinstance(items, Series) else (), 1):
        if not isinstance(item, Mapping):
            continue
        label, id = _named(item, place), _text(item.get("id"))
        if id in ids:
            what = f"the id `{id}` is taken by the directive at line {ids[id]}"
            yield Fault(item.line, what, "give each directive its own id")
        elif id:
            ids[id] = item.line
        yield from _acts(item, label)
        yield from _dates(item, label)
        if isinstance(when := item.get("when"), Mapping):
            yield from _condition(when, label)


def _acts(item: Mapping, label: str) -> Iterator[Fault]:
    acts = [key for key in ACTS if key in item]
    if not acts:
        yield Fault(item.line, f"{label} does nothing", f"write one of {', '.join(ACTS)}")
    if len(answering := [key for key in acts if key != "blocked_message"]) > 1:
        what = f"{label} has {' and '.join(f'`{key}`' for key in answering)}, of which one could act"
        yield Fault(item.line, what, "make them directives of their own")
    if "answer" in acts:
        for key in ("blocked_message", "question"):
            if key in item:
                what = f"{label} has `{key}` beside `answer`, where it would have no effect"
                yield Fault(item[key].line, what, f"leave `{key}` out: a fixed answer is what it is")
    for key in ("answers", "answer_prefix"):
        if key in item and "question" not in item:
            yield Fault(item[key].line, f"{label} has `{key}` but no `question`", "write the question")


def _dates(item: Mapping, label: str) -> Iterator[Fault]:
    since, until = _text(item.get("from")), _text(item.get("until"))
    # Days that are written as days compare as texts do.
    if DAY.fullmatch(since) and DAY.fullmatch(until) and until < since:
        what = f"{label} ends on {until}, before it begins on {since}"
        yield Fault(item["until"].line, what, "exchange the two days; both are within")


def _condition(when: Mapping, label: str) -> Iterator[Fault]:
    named = [key for key in SOURCES if key in when]
    if len(named) != 1:
        found = " and ".join(f"`{key}`" for key in named) or "none"
        what = f"`when` of {label} has {found} where one condition is due"
        yield Fault(when.line, what, f"write one of {', '.join(SOURCES)}")
    if "threshold" in when and named and named[0] in ("always", "regex"):
        what = f"`when` of {label} has a `threshold`, which `{named[0]}` does not read"
        yield Fault(when["threshold"].line, what, "leave it out")
