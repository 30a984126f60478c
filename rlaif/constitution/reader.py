"""From the YAML tree to a `Constitution`: which keys there are, and what may stand in each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, cast

from rlaif.constitution.yaml_text import NULLS, Mapping, Node, Report, Scalar, Series, brief
from rlaif.suggest import did_you_mean
from rlaif.types import Answers, Constitution, Example, Message, Principle, Protocol, Role

__all__ = [
    "EXAMPLE_KEYS",
    "ID",
    "LANGUAGE",
    "PRINCIPLE_KEYS",
    "PROTOCOLS",
    "ROLES",
    "TEXT_KEYS",
    "TOP_KEYS",
    "read_constitution",
]

TOP_KEYS = ("name", "description", "language", "protocol", "principles", "examples")
TEXT_KEYS = ("critique", "revision", "comparison", "question")
PRINCIPLE_KEYS = ("id", *TEXT_KEYS, "answers", "answer_prefix", "lead", "weight", "tags")
PREFIX_KEYS = ("answer_prefix", "lead")
"""The present name of a key, and the one that it had in version 0.1.0."""
EXAMPLE_KEYS = ("conversation", "a", "b", "principle", "answer")
ROLES = ("system", "user", "assistant")
PROTOCOLS = ("pairwise", "pointwise")
ID = re.compile(r"[a-z0-9][a-z0-9._-]*")
LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")


def read_constitution(root: Node, report: Report) -> Constitution | None:
    fields = report.fields(root, "the file", TOP_KEYS)
    if fields is None:
        return None
    name = report.text(fields["name"], "`name`") if "name" in fields else Path(report.source).stem
    principles = _principles(root, fields.get("principles"), report)
    examples = report.series(fields["examples"], "`examples`") if "examples" in fields else []
    asked = {principle.id: principle.comparison for principle in principles}
    return Constitution(
        name=name or "",
        principles=principles,
        description=_description(fields.get("description"), report),
        language=_language(fields.get("language"), report),
        protocol=cast("Protocol", _choice(fields.get("protocol"), "`protocol`", PROTOCOLS, report)),
        examples=tuple(_example(node, place, asked, report) for place, node in enumerate(examples, 1)),
    )


def _description(node: Node | None, report: Report) -> str:
    return "" if node is None else report.text(node, "`description`") or ""


def _language(node: Node | None, report: Report) -> str:
    text = "en" if node is None else report.text(node, "`language`")
    if node is not None and text is not None and not LANGUAGE.fullmatch(text):
        report.add(node.line, f"`language` is {brief(text)}", "write a language tag such as en, zh or pt-BR")
    return text or ""


def _choice(node: Node | None, what: str, allowed: tuple[str, ...], report: Report) -> str:
    """One of a few words; the first one when the key is not there."""
    text = allowed[0] if node is None else report.text(node, what)
    if node is not None and text is not None and text not in allowed:
        report.add(
            node.line,
            f"{what} is {brief(text)}",
            f"{did_you_mean(text, allowed)}write {' or '.join(allowed)}",
        )
    return text or ""


def _principles(root: Node, node: Node | None, report: Report) -> tuple[Principle, ...]:
    if node is None:
        report.add(root.line, "no `principles`", "write `principles:` and below it a list of principles")
        return ()
    if (isinstance(node, Series) and not node.items) or (isinstance(node, Scalar) and node.text in NULLS):
        remedy = "write at least one principle: `- id: polite` and below it `comparison: Which response ...?`"
        report.add(node.line, "`principles` is empty", remedy)
        return ()
    lines: dict[str, int] = {}
    found = []
    for place, item in enumerate(report.series(node, "`principles`"), 1):
        principle = _principle(item, place, report)
        if principle is None:
            continue
        if principle.id in lines:
            what = f"the id `{principle.id}` is taken by the principle at line {lines[principle.id]}"
            report.add(item.line, what, "give each principle its own id")
        elif principle.id:
            lines[principle.id] = item.line
        found.append(principle)
    return tuple(found)


def _principle(node: Node, place: int, report: Report) -> Principle | None:
    if isinstance(node, Scalar) and node.text.strip():
        remedy = (
            "write `- id: a-name` and below it `comparison:`, `question:`, or `critique:` and `revision:`"
        )
        report.add(node.line, f"principle {place} is a bare text: {brief(node.text)}", remedy)
        return None
    fields = report.fields(node, f"principle {place}", PRINCIPLE_KEYS)
    if fields is None:
        return None
    id = _id(fields.get("id"), node.line, place, report)
    label = f"principle `{id}`" if id else f"principle {place}"
    texts = {key: report.text(fields[key], f"`{key}` of {label}") for key in TEXT_KEYS if key in fields}
    if not texts:
        report.add(node.line, f"{label} has no text", f"write at least one of {', '.join(TEXT_KEYS)}")
    for key in ("answers", *PREFIX_KEYS):
        if key in fields and "question" not in fields:
            report.add(
                fields[key].line,
                f"{label} has `{key}` but no `question`",
                f"write the question, or leave `{key}` out",
            )
    answers = _answers(fields["answers"], label, report) if "answers" in fields else None
    prefixes = {key: report.text(fields[key], f"`{key}` of {label}") for key in PREFIX_KEYS if key in fields}
    if len(prefixes) > 1:
        report.add(
            fields["lead"].line,
            f"{label} has both `answer_prefix` and `lead`",
            "`lead` is the older name of the same: leave it out",
        )
    prefix = next(iter(prefixes.values()), None)
    weight = report.number(fields["weight"], f"`weight` of {label}") if "weight" in fields else 1.0
    tags = report.series(fields["tags"], f"`tags` of {label}") if "tags" in fields else []
    words = tuple(word for tag in tags if (word := report.text(tag, f"a tag of {label}")))
    return Principle(id=id, answers=answers, answer_prefix=prefix, weight=weight or 1.0, tags=words, **texts)


def _id(node: Node | None, line: int, place: int, report: Report) -> str:
    if node is None:
        report.add(line, f"principle {place} has no `id`", "write `id:` and a short name of its own")
        return ""
    id = report.text(node, f"`id` of principle {place}")
    if id is not None and not ID.fullmatch(id):
        remedy = "use small letters, digits, dots, hyphens and underscores, a letter or digit first"
        report.add(node.line, f"the id {brief(id)} of principle {place} is not a plain name", remedy)
    return id or ""


def _answers(node: Node, label: str, report: Report) -> Answers | None:
    what = f"`answers` of {label}"
    remedy = "write the good answer and then the bad one, e.g. [Yes, No]"
    if isinstance(node, Mapping | Scalar):
        report.wrong_type(node, what, remedy)
        return None
    if len(node.items) != 2:
        report.add(node.line, f"{what} has {len(node.items)} items; two are due", remedy)
        return None
    good = report.text(node.items[0], f"the first of {what}")
    bad = report.text(node.items[1], f"the second of {what}")
    if good is None or bad is None:
        return None
    short, long = sorted((good.casefold(), bad.casefold()), key=len)
    if long.startswith(short):
        found = "are equal" if short == long else "begin alike: one is the beginning of the other"
        report.add(
            node.line,
            f"{what} {found}: {brief(good)}, {brief(bad)}",
            "write two answers that a judge can tell apart",
        )
    return Answers(good, bad)


def _example(node: Node, place: int, asked: dict[str, str | None], report: Report) -> Example:
    label = f"example {place}"
    fields = report.fields(node, label, EXAMPLE_KEYS) or {}
    if isinstance(node, Mapping):
        for key in EXAMPLE_KEYS:
            if key not in fields:
                report.add(node.line, f"{label} has no `{key}`", f"an example has {', '.join(EXAMPLE_KEYS)}")
    texts = {
        key: report.text(fields[key], f"`{key}` of {label}") or "" for key in ("a", "b") if key in fields
    }
    answer = _choice(fields.get("answer"), f"`answer` of {label}", ("A", "B"), report)
    conversation = _conversation(fields["conversation"], label, report) if "conversation" in fields else ()
    principle = _asked(fields["principle"], label, asked, report) if "principle" in fields else ""
    return Example(
        conversation=conversation,
        a=texts.get("a", ""),
        b=texts.get("b", ""),
        principle=principle,
        answer=cast("Literal['A', 'B']", answer),
    )


def _asked(node: Node, label: str, asked: dict[str, str | None], report: Report) -> str:
    """The question an example answers: written out, or the `comparison` of the principle it names."""
    text = report.text(node, f"`principle` of {label}") or ""
    if not ID.fullmatch(text):
        return text
    if text not in asked:
        guess = did_you_mean(text, asked)
        what = f"{label} names a principle `{text}` that is not here"
        report.add(node.line, what, f"{guess}write an id, or the question itself")
    elif asked[text] is None:
        what = f"{label} names `{text}`, which has no `comparison`"
        report.add(node.line, what, "give it one, or write the question itself")
    return asked.get(text) or text


def _conversation(node: Node, label: str, report: Report) -> tuple[Message, ...]:
    what = f"`conversation` of {label}"
    if isinstance(node, Scalar):
        text = report.text(node, what)
        return (Message("user", text),) if text is not None else ()
    messages = []
    for item in report.series(node, what):
        fields = report.fields(item, f"a message of {label}", ("role", "content"))
        if fields is None:
            continue
        missing = [key for key in ("role", "content") if key not in fields]
        if missing:
            report.add(
                item.line, f"a message of {label} has no `{missing[0]}`", "write both `role` and `content`"
            )
            continue
        role = _choice(fields["role"], f"`role` in {what}", ROLES, report)
        messages.append(
            Message(cast("Role", role), report.text(fields["content"], f"`content` in {what}") or "")
        )
    if not messages or messages[-1].role != "user":
        report.add(
            node.line,
            f"{what} does not end with the user's turn",
            "end it with the message that `a` and `b` answer",
        )
    return tuple(messages)
