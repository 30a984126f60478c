"""Pairs to and from Label Studio: tasks with its `Pairwise` tag, and the annotations that it exports as JSON.

Label Studio's pairwise control knows left and right; a tie is the choice `equal` of a `Choices` tag beside
it, as the configuration that is written with the tasks has it. Exports of other configurations are read where
their result names the two texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.collect.labels_file import Answer, Click, LabelsFile
from rlaif.collect.pairs import Shown, shown_pair
from rlaif.digest import unit_from
from rlaif.errors import DataError
from rlaif.files import read_whole
from rlaif.io.fields import conversation_of
from rlaif.text import well_formed
from rlaif.types import Message

__all__ = ["CONFIG", "Imported", "export_tasks", "import_annotations"]

CONFIG = """<View>
  <Header value="Which answer is better?"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="better" toName="text1,text2"/>
  <View style="display: grid; grid-template: auto/1fr 1fr; column-gap: 1em">
    <Text name="text1" value="$text1"/>
    <Text name="text2" value="$text2"/>
  </View>
  <Choices name="tie" toName="prompt"><Choice value="equal"/></Choices>
</View>
"""
"""The labelling configuration that the tasks of `export_tasks` are for."""
OURS = "rlaif"
"""Key of a task's data that holds the conversation as messages."""
PROMPTS = ("prompt", "question", "instruction", "text")
TEXTS = (("text1", "text2"), ("answer1", "answer2"), ("response1", "response2"), ("a", "b"))
TIES = frozenset({"equal", "tie", "same", "both"})
LONGEST = 1e9
"""Seconds that are believed of one annotation."""
SIDES: Mapping[str, int] = {"left": 0, "right": 1}


class Imported(NamedTuple):
    """What became of the annotations of a file; the counts add up to all of them.

    Attributes:
        skipped: Cancelled, without a choice, or of a pair whose texts are the same.
        repeated: Of an annotator who had labelled the pair before.
    """

    labels: int
    ties: int
    skipped: int
    repeated: int


def export_tasks(pairs: Sequence[Shown], clicks: Sequence[Click], *, seed: int) -> list[dict[str, Any]]:
    """Tasks for Label Studio's import, with an annotation for each click on a pair (skips are left out); the
    sides are drawn by `seed`."""
    by_pair: dict[str, list[Click]] = {}
    for click in clicks:
        by_pair.setdefault(click.key, []).append(click)
    return [_task(pair, by_pair.get(pair.key, ()), turned=_turned(pair, seed)) for pair in pairs]


def import_annotations(source: Path, out: LabelsFile) -> Imported:
    """Append the annotations of a JSON export to `out`, each on the disk before the next.

    Raises:
        DataError: The file is no export of pairwise annotations; nothing is written then.
    """
    found = list(_annotations(_tasks(source), source))
    known = {(click.key, click.annotator) for click in out.clicks}
    counts = dict.fromkeys(Imported._fields, 0)
    for pair, annotator, answer, seconds in found:
        if answer == "skip":
            counts["skipped"] += 1
        elif (pair.key, annotator) in known:
            counts["repeated"] += 1
        else:
            known.add((pair.key, annotator))
            tie_first = unit_from("tie", pair.key) < 0.5
            out.add(pair, answer, annotator=annotator, seconds=seconds, tie_first=tie_first)
            counts["ties" if answer == "equal" else "labels"] += 1
    return Imported(**counts)


# Tasks out --------------------------------------------------------------------------------------------------


def _turned(pair: Shown, seed: int) -> bool:
    return unit_from(seed, "label-studio", pair.key) < 0.5


def _task(pair: Shown, clicks: Sequence[Click], *, turned: bool) -> dict[str, Any]:
    left, right = (pair.second, pair.first) if turned else (pair.first, pair.second)
    task: dict[str, Any] = {
        "data": {
            "prompt": "\n\n".join(f"{turn.role}: {turn.content}" for turn in pair.prompt),
            "text1": left,
            "text2": right,
            "id": pair.source_id,
            OURS: {"prompt": [turn.as_dict() for turn in pair.prompt]},
        }
    }
    told = [_annotation(click, turned=turned) for click in clicks if click.answer != "skip"]
    return task | ({"annotations": told} if told else {})


def _annotation(click: Click, *, turned: bool) -> dict[str, Any]:
    if click.answer == "equal":
        value = {"choices": ["equal"]}
        result = {"from_name": "tie", "to_name": "prompt", "type": "choices", "value": value}
    else:
        side = "left" if (click.answer == "first") != turned else "right"
        result = {
            "from_name": "better",
            "to_name": "text1,text2",
            "type": "pairwise",
            "value": {"selected": side},
        }
    return {"completed_by": {"email": click.annotator}, "result": [result]}


# Annotations in ---------------------------------------------------------------------------------------------


def _tasks(source: Path) -> list[Mapping[str, Any]]:
    try:
        tasks = json.loads(read_whole(source))
    except (ValueError, RecursionError) as error:
        raise _no_export(f"it is not JSON ({error})", source) from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise _no_export("it is not a list of tasks", source)
    return tasks


def _annotations(
    tasks: Sequence[Mapping[str, Any]], source: Path
) -> Iterator[tuple[Shown, str, Answer, float]]:
    for number, task in enumerate(tasks, 1):
        where = f"{source}, task {task.get('id', number)}"
        if "annotations" not in task and "data" not in task:
            raise _no_export("the task has no data", where)
        for each in _listed(task, "annotations", where):
            if not isinstance(each, dict):
                raise _no_export("an annotation is no object", where)
            results = [part for part in _listed(each, "result", where) if isinstance(part, dict)]
            pair, sides = _pair(task, results, where)
            idle = each.get("was_cancelled") or pair.first.strip() == pair.second.strip()
            answer = "skip" if idle else _answer(results, pair, sides)
            yield pair, _annotator(each), answer, _seconds(each.get("lead_time"))


def _listed(holder: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = holder.get(key) or []
    if not isinstance(found, list):
        raise _no_export(f"`{key}` is no list", where)
    return found


def _seconds(value: object) -> float:
    """What an annotation took; 0 where it does not say."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= LONGEST else 0.0


def _pair(
    task: Mapping[str, Any], results: Sequence[Mapping[str, Any]], where: str
) -> tuple[Shown, tuple[str, str]]:
    """The pair of a task, and its texts from left to right."""
    data = task.get("data")
    if not isinstance(data, dict):
        raise _no_export("the task has no data", where)
    named = next((part["to_name"] for part in results if part.get("type") == "pairwise"), "")
    keys = tuple(each.strip() for each in str(named).split(","))
    choices = [pair for pair in (keys, *TEXTS) if len(set(pair)) == 2 and all(name in data for name in pair)]
    if not choices:
        raise _no_export(f"none of its data is a known pair of texts ({', '.join(map(str, data))})", where)
    left, right = (_text(data[name], where) for name in choices[0])
    prompt = _prompt(data, where)
    id = str(data.get("id") or task.get("id") or "")
    return shown_pair(prompt, left, right, source_id=id), (left, right)


def _prompt(data: Mapping[str, Any], where: str) -> list[Message]:
    own = data.get(OURS)
    if isinstance(own, dict) and isinstance(own.get("prompt"), list):
        try:
            return list(conversation_of(own["prompt"], "prompt"))
        except DataError as error:
            raise _no_export(f"its conversation is damaged: {error.what}", where) from error
    text = next((data[name] for name in PROMPTS if isinstance(data.get(name), str)), None)
    if text is None or not text.strip():
        raise _no_export(f"its data has no prompt (one of {', '.join(PROMPTS)})", where)
    return [Message("user", _text(text, where))]


def _answer(results: Sequence[Mapping[str, Any]], pair: Shown, sides: tuple[str, str]) -> Answer:
    """A side that was selected counts before any choice: a `Choices` tag may be about something else."""
    values = [(part.get("type"), part["value"]) for part in results if isinstance(part.get("value"), dict)]
    for kind, value in values:
        side = SIDES.get(str(value.get("selected")))
        if kind == "pairwise" and side is not None:
            return "first" if sides[side] == pair.first else "second"
    chosen = [value["choices"] for _, value in values if isinstance(value.get("choices"), list)]
    return "equal" if {str(each).lower() for each in chain.from_iterable(chosen)} & TIES else "skip"


def _annotator(annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by")
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return well_formed(str("" if who is None else who)).strip()[:100] or "label-studio"


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _no_export("a text is no string", where)
    return well_formed(value)


def _no_export(why: str, where: Path | str) -> DataError:
    remedy = "export the project from Label Studio as JSON (not JSON-MIN)"
    return DataError(f"this is no Label Studio export of pairs: {why}", where=str(where), remedy=remedy)
