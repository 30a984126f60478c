"""Read, check and write constitutions: YAML files of principles.

    name: courtesy
    language: en               # chooses the prompt templates
    protocol: pairwise         # or pointwise
    principles:
      - id: polite
        critique: Identify where the assistant's last response is rude.
        revision: Rewrite the response so that it is polite.
        comparison: Which response is more polite?
        question: Is the response polite?
        answers: [Yes, No]     # the good one first
        answer_prefix: "Answer:"   # how the judge's answer begins, up to one of `answers`
        weight: 1
        tags: [tone]
    examples:                  # worked pairwise judgements for the judge to read first
      - conversation: Where is the station?
        a: Straight on.
        b: Look at a map, will you.
        principle: polite      # an id, or a question written out
        answer: A

A principle needs an id and at least one of the four texts. The reader reports every problem of a file at
once, each with its line and a remedy. `Constitution.digest` covers the meaning: comments, key order, tags and
the description are not in it.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from rlaif.errors import PROBLEMS_LISTED, ConstitutionError, Problem, first_problems
from rlaif.files import read_whole
from rlaif.resources import find
from rlaif.text import count_of
from rlaif.types import Constitution, Principle, Protocol
from rlaif.yaml_text import Fault, problems_of, read_tree

__all__ = ["Half", "MAX_BYTES", "load_constitution", "parse_constitution", "require", "to_yaml"]

Half = Literal["critique_revision", "comparison", "question"]

MAX_BYTES = 64 * 1024 * 1024
"""Largest file read. 100,000 principles with all their texts are about 25 MiB."""

EMPTY = (
    "the file is empty",
    "write `principles:` with at least one principle, as constitutions/default.yaml does",
)
UNUSUAL_BREAK = re.compile("[\r\x85\u2028\u2029\ufeff]")


def load_constitution(source: str | Path) -> Constitution:
    """Read a constitution from a file, or a shipped one by name (`default`, `constitutions/warmth.yaml`).

    Raises:
        ConfigError: There is no such file, or it is a folder.
        ConstitutionError: The file cannot be read as a constitution; every problem is listed.
    """
    path = find("constitutions", source)
    text = _read(path)
    if path.suffix.lower() == ".json" and text.lstrip()[:1] in ("[", "{") and '"principles"' not in text:
        remedy = (
            "if it is a file of the Constitutional AI paper, convert it: rlaif constitution import "
            f"{path} --out my.yaml"
        )
        raise ConstitutionError("a JSON file without principles", where=str(path), remedy=remedy)
    return parse_constitution(text, source=str(path))


def parse_constitution(text: str, *, source: str) -> Constitution:
    """Read a constitution from YAML text; `source` names it in messages, and in `name` where the text gives
    none.

    Raises:
        ConstitutionError: The text cannot be read as a constitution; every problem is listed.
    """
    # The models and pydantic take a tenth of a second to import, which help need not pay.
    from pydantic import ValidationError

    from rlaif.constitution.form import ConstitutionForm
    from rlaif.constitution.problems import described, problems_between_keys

    with _without_collecting():
        tree, faults = read_tree(text)
        if tree is None:
            raise _refusal(faults or [Fault(1, *EMPTY)], source)
        faults += problems_between_keys(tree)
        try:
            form = ConstitutionForm.model_validate(tree)
        except ValidationError as error:
            count = len(faults) + error.error_count()
            faults += [
                described(details, tree) for details in error.errors(include_url=False)[:PROBLEMS_LISTED]
            ]
            raise _refusal(faults, source, count) from None
        if faults:
            raise _refusal(faults, source)
        return form.value(source)


def require(constitution: Constitution, half: Half | None, *, source: str = "") -> tuple[Principle, ...]:
    """The principles that a stage can use, checked for the half it needs; none where it needs none.

    A principle written for the other side alone is left aside: one with only critique or revision takes no
    part in judging, and one with only comparison or question takes none in revising (the Constitutional AI
    paper keeps two such lists). Any other principle that lacks the half is an error, and so is a constitution
    that has none left.

    Raises:
        ConstitutionError: Names every principle that lacks the half, and what to add to it.
    """
    if half is None:
        return ()
    needed = ("critique", "revision") if half == "critique_revision" else (half,)
    side = ("critique", "revision") if half == "critique_revision" else ("comparison", "question")
    concerned = [principle for principle in constitution.principles if _has_any(principle, side)]
    problems = [
        Problem(f"principle `{principle.id}` has no {_quoted(missing, ' and no ')}", remedy=_to_add(missing))
        for principle in concerned or constitution.principles
        if (missing := [key for key in needed if getattr(principle, key) is None])
    ]
    if problems:
        what = f"constitution `{constitution.name}` lacks what this stage needs: {_quoted(needed, ' and ')}"
        remedy = "add the texts below" + (
            "" if half == "critique_revision" else f", or judge with --protocol {_other(half)}"
        )
        raise ConstitutionError(
            what, where=source, remedy=remedy, problems=first_problems(problems, len(problems))
        )
    return tuple(concerned)


def to_yaml(constitution: Constitution) -> str:
    """The constitution as YAML that `parse_constitution` reads back to an equal one."""
    head: dict[str, Any] = {"name": constitution.name}
    if constitution.description:
        head["description"] = constitution.description
    head |= {"language": constitution.language, "protocol": constitution.protocol}
    head["principles"] = [_principle_dict(principle) for principle in constitution.principles]
    if constitution.examples:
        head["examples"] = [example.meaning() for example in constitution.examples]
    return yaml.dump(head, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes texts with unusual line breaks in double quotes, escaped; in single quotes PyYAML would lose
    them."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if UNUSUAL_BREAK.search(text) else None
    )


_Dumper.add_representer(str, _text)


def _refusal(faults: list[Fault], source: str, count: int = 0) -> ConstitutionError:
    """The error for `count` problems, of which the first ones are given: all of them when it is left out."""
    count = count or len(faults)
    what = f"{source} cannot be used: {count_of(count, 'problem')}"
    return ConstitutionError(what, problems=problems_of(faults, source, count))


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Pause the cycle collector: a tree of millions of values without a cycle would be walked over and over,
    at half the speed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _has_any(principle: Principle, keys: tuple[str, ...]) -> bool:
    return any(getattr(principle, key) is not None for key in keys)


def _quoted(keys: Sequence[str], between: str) -> str:
    return between.join(f"`{key}`" for key in keys)


def _to_add(missing: list[str]) -> str:
    lines = {
        "critique": "critique: Identify how the assistant's last response ...",
        "revision": "revision: Rewrite the assistant's last response so that ...",
        "comparison": "comparison: Which response ...?",
        "question": "question: Is the response ...?",
    }
    return "add " + " and ".join(f"`{lines[key]}`" for key in missing)


def _other(half: Half) -> Protocol:
    return "pointwise" if half == "comparison" else "pairwise"


def _principle_dict(principle: Principle) -> dict[str, Any]:
    meaning = principle.meaning()
    meaning["answer_prefix"] = meaning.pop("lead")  # which the digest names as version 0.1.0 did
    values = {key: value for key, value in meaning.items() if value is not None}
    return values | ({"tags": list(principle.tags)} if principle.tags else {})


def _read(path: Path) -> str:
    """The text of a file.

    Raises:
        ConstitutionError: It cannot be opened, is too large, or is not UTF-8.
    """
    try:
        data = read_whole(path, error=ConstitutionError, limit=MAX_BYTES)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ConstitutionError(what, where=str(path), remedy="check the file's permissions") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise ConstitutionError(
            what, where=f"{path}:{line}", remedy="save the file as UTF-8 in your editor"
        ) from error
