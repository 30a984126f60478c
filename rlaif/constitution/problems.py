"""What is wrong in a constitution file: each problem with its line, what was read, what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError, PydanticKnownError

from rlaif.constitution.form import (
    ID,
    LEAST,
    MOST,
    ConstitutionForm,
    ExampleForm,
    MessageForm,
    PrincipleForm,
    text_of,
)
from rlaif.suggest import did_you_mean
from rlaif.types import TEXT_KEYS
from rlaif.yaml_text import KINDS, NULLS, Fault, Mapping, Node, Scalar, Series, brief, steps

__all__ = ["described", "problems_between_keys"]

QUOTED = re.compile("'([^']*)'")
WRONG_TYPE = "{label} is of the wrong type: read {read}"
OUT_OF_BOUNDS = ("{label} is {read}", f"write a number from {LEAST:g} to {MOST:,.0f}")
TWO_ANSWERS = "write the good answer and then the bad one, e.g. [Yes, No]"
NOT_TWO = ("{label} has {actual_length} items; expected two", TWO_ANSWERS)
MESSAGES = {
    "extra_forbidden": ("{parent} has an unknown key {key}", "{guess}its keys are {keys}"),
    "missing": ("{parent} has no {key}", "an example has {keys}"),
    "missing content": ("{parent} has no {key}", "write both `role` and `content`"),
    "missing role": ("{parent} has no {key}", "write both `role` and `content`"),
    "missing id": ("{parent} has no {key}", "write `id:` and a short name of its own"),
    "missing principles": ("no `principles`", "write `principles:` and below it a list of principles"),
    "model_type": (WRONG_TYPE, "write it as a mapping with the keys {keys}"),
    "bare text": (
        "{label} is a bare text: {read}",
        "write `- id: a-name` and below it `comparison:`, `question:`, or `critique:` and `revision:`",
    ),
    "list_type": (WRONG_TYPE, "write a list: one item per line, each after `- `, or [one, two]"),
    "list_type answers": (WRONG_TYPE, TWO_ANSWERS),
    "too_long": NOT_TWO,
    "too_short": NOT_TWO,
    "too_short principles": (
        "`principles` is empty",
        "write at least one principle: `- id: polite` and below it `comparison: Which response ...?`",
    ),
    "string_type": (WRONG_TYPE, "write one text; quote it if it holds `: ` or begins with [ or {{"),
    "string_too_short": ("{label} is empty", "write its text, or leave the key out"),
    "control_character": (
        "{label} contains a control character",
        "take the escape such as \\0 out of the quoted text",
    ),
    "string_pattern_mismatch": ("{label} is {read}", "write a language tag such as en, zh or pt-BR"),
    "string_pattern_mismatch id": (
        "the id {read} of {parent} is not a plain name",
        "use small letters, digits, dots, hyphens and underscores, a letter or digit first",
    ),
    "literal_error": ("{label} is {read}", "{guess}write {choices}"),
    "float_type": (WRONG_TYPE, "write a number greater than 0, without quotes"),
    "greater_than_equal": OUT_OF_BOUNDS,
    "less_than_equal": OUT_OF_BOUNDS,
    "begin_alike": ("{label} {found}", "write two answers that a judge can tell apart"),
}
"""What is wrong, and the remedy: by the type of pydantic's error and the key, else by the type alone."""


def described(details: Any, tree: Node) -> Fault:
    """One of the errors that pydantic found in `tree`, at its line."""
    location = details["loc"]
    above, key = location[:-1], "".join(map(str, location[-1:]))
    way = steps(tree, location)
    node = way[-1].node if way else tree
    kind = _kind(details["type"], node, location)
    unknown = kind == "extra_forbidden"
    keys = list(_form(above if unknown or kind == "missing" else location).model_fields)
    context = details.get("ctx", {})
    choices = QUOTED.findall(context.get("expected", ""))
    words = {
        "label": _label(location, tree),
        "parent": _label(above, tree),
        "key": brief(key),
        "keys": ", ".join(keys),
        "read": brief(node) if isinstance(node, Scalar) else KINDS[type(node)],
        "choices": " or ".join(choices),
        "guess": did_you_mean(key, keys) if unknown else did_you_mean(str(node).strip(), choices),
    }
    what, remedy = MESSAGES.get(f"{kind} {key}") or MESSAGES[kind]
    line = way[-1].line if unknown else node.line
    return Fault(line, what.format(**words, **context), remedy.format(**words))


def _kind(type: str, node: Node, location: Sequence[Any]) -> str:
    """The type of an error; where a list or a mapping is due, a text or nothing is a case of its own."""
    if isinstance(node, Scalar) and type == "model_type" and location[:1] == ("principles",) and node.strip():
        return "bare text"
    if isinstance(node, Scalar) and type == "list_type" and location == ("principles",) and node in NULLS:
        return "too_short"
    return type


def _form(location: Sequence[Any]) -> type[BaseModel]:
    """The model of the mapping at `location`."""
    match location:
        case ():
            return ConstitutionForm
        case ("principles", *_):
            return PrincipleForm
        case ("examples", _):
            return ExampleForm
    return MessageForm


def _label(location: Sequence[Any], tree: Node) -> str:
    """What stands at `location`, in words."""
    match location:
        case ():
            return "the file"
        case (key,):
            return f"`{key}`"
        case ("principles", place):
            return f"principle {place + 1}"
        case ("principles", place, "id"):
            return f"`id` of principle {place + 1}"
        case ("principles", place, *below):
            principle = _principle(_id(steps(tree, location[:2])[-1].node), place + 1)
            match below:
                case ["tags", _]:
                    return f"a tag of {principle}"
                case ["answers", which]:
                    return f"the {('first', 'second')[which]} of `answers` of {principle}"
            return f"`{below[0]}` of {principle}"
        case (_, place):
            return f"example {place + 1}"
        case (_, place, "conversation", _):
            return f"a message of example {place + 1}"
        case (_, place, "conversation", _, key):
            return f"`{key}` in `conversation` of example {place + 1}"
    return f"`{location[-1]}` of example {location[1] + 1}"


def _principle(id: str, place: int) -> str:
    """A principle by its id where it has one, else by its place."""
    return f"principle `{id}`" if id else f"principle {place}"


def _id(principle: Node) -> str:
    return _text(principle.get("id")) if isinstance(principle, Mapping) else ""


def _text(node: object) -> str:
    """The text of a node; nothing when it has none that can be read."""
    try:
        return text_of(node)
    except (PydanticKnownError, PydanticCustomError):
        return ""


def problems_between_keys(tree: Node) -> Iterator[Fault]:
    """What is wrong between the keys of a file, as far as they can be read; each alone may be right."""
    ids: dict[str, Mapping] = {}
    for place, principle in _mappings(tree, "principles"):
        id = _id(principle)
        yield from _between_texts(principle, _principle(id, place))
        if id in ids:
            what = f"the id `{id}` is taken by the principle at line {ids[id].line}"
            yield Fault(principle.line, what, "give each principle its own id")
        elif id:
            ids[id] = principle
    for place, example in _mappings(tree, "examples"):
        yield from _example(example, f"example {place}", ids)


def _mappings(tree: Node, key: str) -> Iterator[tuple[int, Mapping]]:
    """The mappings in the list at `key` of the file, each with its place from 1."""
    items = tree.get(key) if isinstance(tree, Mapping) else None
    for place, item in enumerate(items if isinstance(items, Series) else (), 1):
        if isinstance(item, Mapping):
            yield place, item


def _between_texts(principle: Mapping, label: str) -> Iterator[Fault]:
    if not any(key in principle for key in TEXT_KEYS):
        yield Fault(principle.line, f"{label} has no text", f"write at least one of {', '.join(TEXT_KEYS)}")
    for key in ("answers", "answer_prefix", "lead"):
        if key in principle and "question" not in principle:
            what = f"{label} has `{key}` but no `question`"
            yield Fault(principle[key].line, what, f"write the question, or leave `{key}` out")
    if "answer_prefix" in principle and "lead" in principle:
        what = f"{label} has both `answer_prefix` and `lead`"
        yield Fault(principle["lead"].line, what, "`lead` is the older name of the same: leave it out")


def _example(example: Mapping, label: str, ids: dict[str, Mapping]) -> Iterator[Fault]:
    turns, named = example.get("conversation"), example.get("principle")
    if isinstance(turns, Series) and not _ends_with_the_user(turns):
        what = f"`conversation` of {label} does not end with the user's turn"
        yield Fault(turns.line, what, "end it with the message that `a` and `b` answer")
    id = _text(named)
    if not isinstance(named, Scalar) or not re.fullmatch(ID, id):
        return
    if id not in ids:
        what = f"{label} names a principle `{id}` that is not here"
        yield Fault(named.line, what, f"{did_you_mean(id, ids)}write an id, or the question itself")
    elif "comparison" not in ids[id]:
        what = f"{label} names `{id}`, which has no `comparison`"
        yield Fault(named.line, what, "give it one, or write the question itself")


def _ends_with_the_user(turns: Series) -> bool:
    last = turns[-1] if turns else None
    return isinstance(last, Mapping) and _text(last.get("role")) == "user"
