"""Feedback from use: prompts and people's preferences that arrive from elsewhere while rounds go on.

OUT/feedback/round-N.json                what round N took, and what it left out
OUT/feedback/round-N-prompts.jsonl       the rows themselves, as they came
OUT/feedback/round-N-preferences-I.jsonl

A file may grow: each round takes the rows that no earlier round took. What a round has taken stays fixed, so
that a run that was interrupted goes on with the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.reward import PreferenceFile
from rlaif.config.rounds import FeedbackSettings
from rlaif.digest import digest
from rlaif.errors import DataError
from rlaif.io.tables import read_table
from rlaif.io.writers import write_rows, write_text
from rlaif.progress import Progress
from rlaif.runs.disk import read_json_object, run_errors
from rlaif.text import count_of

__all__ = ["NO_FEEDBACK", "Feedback", "take_feedback"]

NOT_CONTENT = ("id", "pair_id", "prompt_id")
SHOWN = 5


class Feedback(NamedTuple):
    """What a round takes from elsewhere.

    Attributes:
        prompts: Files of prompts, taken whole.
        preferences: Files of preferences, each with its weight.
    """

    prompts: tuple[str, ...] = ()
    preferences: tuple[PreferenceFile, ...] = ()


NO_FEEDBACK = Feedback()


def take_feedback(
    settings: FeedbackSettings | None, folder: Path, number: int, progress: Progress, *, needed: bool = False
) -> Feedback:
    """What round `number` takes; written into `folder` and taken from there from then on.

    Args:
        needed: Whether the round has nothing else to learn from.

    Raises:
        DataError: A file cannot be read, a row has a time that is none, or no preference is new though they
            are needed: then nothing was taken.
    """
    if settings is None:
        return NO_FEEDBACK
    record = folder / f"round-{number}.json"
    if (found := read_json_object(record)) is not None:
        return _read(found)
    with run_errors("make the folder of feedback", folder):
        folder.mkdir(parents=True, exist_ok=True)
    known, counts, prompts, preferences = _known(folder, number), dict[str, Any](), list[str](), list[Any]()
    for file in settings.prompts:
        if written := _taken(file, "prompts", settings, folder, number, len(prompts), known, counts):
            prompts.append(written)
    for each in settings.preferences:
        where = (folder, number, len(preferences))
        if written := _taken(each.file, "preferences", settings, *where, known, counts):
            preferences.append({"file": written, "weight": each.weight})
    for file, count in counts.items():
        progress.note(f"feedback from {file}: {_words(count)}")
    if needed and not preferences:
        raise DataError(
            f"round {number} has nothing to learn from: no preference has come that no earlier round took",
            where=", ".join(each.file for each in settings.preferences) or "rounds.feedback",
            remedy="export or collect more and give the same command again, or add a `label` stage",
        )
    values = {"prompts": prompts, "preferences": preferences, "counts": counts, "rows": sorted(known)}
    write_text(record, json.dumps(values, ensure_ascii=False, indent=1) + "\n")
    return _read(values)


def _taken(
    file: str,
    kind: str,
    settings: FeedbackSettings,
    folder: Path,
    number: int,
    place: int,
    known: set[str],
    counts: dict[str, Any],
) -> str | None:
    """The file with the rows of `file` that are new and in time; `None` where there are none. Their digests
    are added to `known`."""
    table = read_table(file)
    if table.problems:
        raise DataError(
            f"{count_of(len(table.problems), 'row')} of the feedback cannot be read",
            where=file,
            problems=table.problems[:SHOWN],
            remedy="mend or take them out; nothing was taken yet",
        )
    count, rows = Counter(rows=len(table.rows), taken=0), []
    for row in table.rows:
        if reason := _why_not(row.values, row.where, settings):
            count[reason] += 1
            continue
        key = digest(
            [kind, {name: row.values[name] for name in sorted(row.values) if name not in NOT_CONTENT}]
        )
        if key in known:
            count["known"] += 1
            continue
        known.add(key)
        rows.append(row.values)
    count["taken"] = len(rows)
    counts[file] = dict(count)
    if not rows:
        return None
    path = folder / f"round-{number}-{kind}-{place}.jsonl"
    write_rows(path, rows, "jsonl")
    return str(path)


def _why_not(values: Mapping[str, Any], where: str, settings: FeedbackSettings) -> str:
    """Why a row is left out: it has no time where a range is asked for, or lies outside; empty otherwise."""
    if settings.since is None and settings.until is None:
        return ""
    given = values.get(settings.time_column)
    if given in (None, ""):
        return "without_time"
    day = _day(given, where)
    early = settings.since is not None and day < settings.since
    late = settings.until is not None and day > settings.until
    return "out_of_range" if early or late else ""


def _day(value: object, where: str) -> date:
    """The day of a time, UTC: ISO 8601, or seconds since 1970.

    Raises:
        DataError: It is neither.
    """
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC).date()
        found = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        return (found.astimezone(UTC) if found.tzinfo else found).date()
    except (ValueError, OverflowError, OSError):
        raise DataError(
            f"{value!r} is no time", where=where, remedy="write 2026-11-27T12:00:00Z, or seconds since 1970"
        ) from None


def _known(folder: Path, number: int) -> set[str]:
    """Digests of the rows that earlier rounds took."""
    records = (read_json_object(folder / f"round-{at}.json") for at in range(1, number))
    return {key for record in records if record is not None for key in record["rows"]}


def _read(values: Mapping[str, Any]) -> Feedback:
    return Feedback(
        tuple(map(str, values["prompts"])), tuple(PreferenceFile(**each) for each in values["preferences"])
    )


def _words(count: Mapping[str, int]) -> str:
    names = {
        "known": "taken before or twice",
        "out_of_range": "out of the range of dates",
        "without_time": "without a time",
    }
    left = [f"{count[name]} {words}" for name, words in names.items() if count.get(name)]
    return ", ".join([f"{count['taken']} of {count_of(count['rows'], 'row')} taken", *left])
