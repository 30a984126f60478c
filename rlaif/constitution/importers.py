"""Turn JSON files of principles into a constitution: the Constitutional AI paper's two (Bai et al. 2022,
arXiv 2212.08073, appendix C), and that of Hugging Face's llm-swarm.

The repository of the paper keeps its principles in two files that do not refer to each other:

- `RLMadisonInstructions.json`, a list of texts: the comparison principles of the RL stage, each ending in
  `Options:`;
- `CritiqueRevisionInstructions.json`, a mapping: `harmful0` and so on to
  `{"prompt": [CRITIQUE], "edit_request": REVISION}`.

llm-swarm keeps the second kind as a list of `{"critic": CRITIQUE, "revision": REVISION}`, in its
`constitution.json` among few-shot examples as `{"constitutions": [...], "system_chat": [...]}`, of which the
principles are read.

They stay separate principles here, each with the halves it has. What belongs to the paper's prompt layout
(`CritiqueRequest:`, `Critique:`, `Options:` ...) is taken off, since our templates bring their own. The files
carry no licence, so none ships with rlaif.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.errors import ConstitutionError, Problem
from rlaif.files import read_small
from rlaif.types import Constitution, Principle
from rlaif.yaml_text import UNPRINTABLE

__all__ = ["import_cai"]

SCAFFOLD_BEFORE = re.compile(r"^(CritiqueRequest|RevisionRequest)\s*:\s*")
SCAFFOLD_AFTER = re.compile(r"\s*\b(Critique|Revision|Options)\s*:$")
REMEDY = (
    "give RLMadisonInstructions.json (a list of texts), CritiqueRevisionInstructions.json (a mapping) or "
    "llm-swarm's principles "
    '(a list of {"critic", "revision"}); one file of comparisons, one of revisions, or both'
)


def import_cai(paths: Sequence[str | Path], *, name: str = "imported") -> Constitution:
    """Read one or both files, in any order; the revision principles come first.

    Raises:
        ConstitutionError: A file cannot be read, has neither shape or holds an unusable entry, or two files
            are of one kind.
    """
    comparisons: list[Principle] = []
    revisions: list[Principle] = []
    for path in map(Path, paths):
        data = _load(path)
        pairs = _swarm(data)
        if pairs is not None:
            kind, found = revisions, _critics(pairs, path)
        elif isinstance(data, list):
            kind, found = comparisons, _comparisons(data, path)
        else:
            kind, found = revisions, _revisions(data, path)
        if kind:
            raise ConstitutionError("a second file of the same kind", where=str(path), remedy=REMEDY)
        kind += found
    if not comparisons and not revisions:
        raise ConstitutionError("no file to import", remedy=REMEDY)
    files = ", ".join(Path(path).name for path in paths)
    return Constitution(
        name=name, principles=(*revisions, *comparisons), description=f"Imported from {files}."
    )


def _load(path: Path) -> Any:
    """The JSON value of a file: a list or a mapping, not empty."""
    try:
        data = json.loads(read_small(path, error=ConstitutionError))
    except OSError as error:
        raise ConstitutionError(
            f"cannot be read: {error.strerror or error}", where=str(path), remedy=REMEDY
        ) from error
    except json.JSONDecodeError as error:
        raise ConstitutionError(
            f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}", remedy=REMEDY
        ) from error
    # A number of thousands of digits, or thousands of open brackets.
    except (ValueError, RecursionError) as error:
        raise ConstitutionError(f"cannot be read as JSON: {error}", where=str(path), remedy=REMEDY) from error
    if not isinstance(data, list | dict) or not data:
        raise ConstitutionError("neither a list nor a mapping with entries", where=str(path), remedy=REMEDY)
    return data


def _swarm(data: list[Any] | dict[str, Any]) -> list[Any] | None:
    """llm-swarm's list of principles; `None` when it is not of that form."""
    pairs = data.get("constitutions") if isinstance(data, dict) else data
    return pairs if isinstance(pairs, list) and any(_has_half(pair) for pair in pairs) else None


def _has_half(pair: object) -> bool:
    return isinstance(pair, dict) and not {"critic", "revision"}.isdisjoint(pair)


def _critics(pairs: list[Any], path: Path) -> list[Principle]:
    found = [pair if isinstance(pair, dict) else {} for pair in pairs]
    texts = [(_stripped(pair.get("critic")), _stripped(pair.get("revision"))) for pair in found]
    remedy = 'write {"critic": "... critique ...", "revision": "... revision ..."}'
    _check(
        [
            Problem(f"entry {place} is not a critique with its revision", remedy=remedy)
            for place, (critique, revision) in enumerate(texts, 1)
            if not critique or not revision
        ],
        path,
    )
    return [
        Principle(id=f"revision-{place:02d}", critique=critique, revision=revision)
        for place, (critique, revision) in enumerate(texts, 1)
    ]


def _comparisons(data: list[Any], path: Path) -> list[Principle]:
    texts = [_stripped(item) for item in data]
    problems = [
        Problem(
            f"entry {place} is not a text of a comparison principle",
            remedy='write "Please choose the response ... Options:"',
        )
        for place, text in enumerate(texts, 1)
        if not text
    ]
    _check(problems, path)
    return [Principle(id=f"comparison-{place:02d}", comparison=text) for place, text in enumerate(texts, 1)]


def _revisions(data: dict[str, Any], path: Path) -> list[Principle]:
    principles: dict[str, Principle] = {}
    problems = []
    for key, entry in data.items():
        fields = entry if isinstance(entry, dict) else {}
        prompts = fields.get("prompt")
        critique = _stripped(prompts[0]) if isinstance(prompts, list) and len(prompts) == 1 else None
        revision = _stripped(fields.get("edit_request"))
        id = re.sub(r"[^a-z0-9._-]+", "-", key.lower()).strip("-._")
        if not id or not critique or not revision:
            remedy = 'write {"prompt": ["... critique ..."], "edit_request": "... revision ..."}'
            problems.append(Problem(f"entry {key!r} is not a critique with its revision", remedy=remedy))
        elif id in principles:
            problems.append(
                Problem(f"entry {key!r} gives the id `{id}` a second time", remedy="rename the key")
            )
        else:
            principles[id] = Principle(id=id, critique=critique, revision=revision)
    _check(problems, path)
    return list(principles.values())


def _check(problems: list[Problem], path: Path) -> None:
    if problems:
        what = "not a file of principles that is known here"
        raise ConstitutionError(what, where=str(path), remedy=REMEDY, problems=problems[:20])


def _stripped(text: Any) -> str | None:
    """The text without the paper's scaffolding; `None` when it is no printable text, or nothing is left."""
    if not isinstance(text, str) or UNPRINTABLE.search(text):
        return None
    return SCAFFOLD_AFTER.sub("", SCAFFOLD_BEFORE.sub("", text.strip())).strip() or None
