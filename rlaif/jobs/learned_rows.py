"""What training stages learn from: preferences and demonstrations of files and of stages, with what is left
out counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.finetune import DpoConfig, SftConfig
from rlaif.config.judge import JudgeConfig
from rlaif.config.labelling import BaseStage
from rlaif.config.ppo import PpoConfig
from rlaif.config.reward import PreferenceFile, RewardConfig
from rlaif.digest import digest
from rlaif.errors import DataError, Problem
from rlaif.io.tables import read_table
from rlaif.io.training_rows import demonstration_of, preference_of
from rlaif.jobs.context import RunContext
from rlaif.models.shared_base import SharedBase
from rlaif.results.preferences import PreferencePair, pairs_from_rows
from rlaif.reward.model import TurnFormat
from rlaif.text import count_of

__all__ = [
    "ReadRows",
    "SkippingStage",
    "label_files",
    "pairs_digest",
    "read_demonstrations",
    "read_preferences",
    "read_rows",
    "renderable",
    "skipper",
    "with_texts",
]

SkippingStage = RewardConfig | JudgeConfig | DpoConfig | SftConfig | PpoConfig


def skipper(
    config: SkippingStage, source: str, context: RunContext
) -> Callable[[Sequence[Problem]], None] | None:
    """What is done about rows that cannot be learned from: told, counted and left out where the settings say
    so, else an error."""

    def tell(problems: Sequence[Problem]) -> None:
        context.leave_out(config.name, source, len(problems))
        if problems:
            what = f"{source}: {count_of(len(problems), 'row')} left out (skip_bad_rows)"
            context.progress.note(f"{config.name}: {what}; the first: {problems[0]}")

    return tell if config.skip_bad_rows else None


def renderable(
    pairs: Sequence[PreferencePair], base: SharedBase, config: RewardConfig | DpoConfig, context: RunContext
) -> list[PreferencePair]:
    """The pairs whose prompt the chat template takes; the others are bad rows like any others.

    Raises:
        DataError: The settings do not allow to leave them out, or there are no others.
    """
    refused = TurnFormat(base).refusals([pair.conversation(pair.chosen) for pair in pairs])
    problems = [
        Problem(said, where=f"{pairs[at].source or 'preferences'}, {pairs[at].id}")
        for at, said in refused.items()
    ]
    good = [pair for at, pair in enumerate(pairs) if at not in refused]
    skipped = skipper(config, "the chat template", context)
    if problems and good and skipped is not None:
        skipped(problems)
    elif problems:
        raise DataError(
            f"{len(problems)} of {len(pairs)} preferences cannot be trained on",
            problems=problems[:20],
            where=config.name,
            remedy="correct or remove them, or go on without them: --skip-bad-rows (skip_bad_rows: true)",
        )
    return good


def read_preferences(
    source: str,
    *,
    weight: float = 1.0,
    hard: bool = False,
    skipped: Callable[[Sequence[Problem]], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[PreferencePair]:
    """Preferences from a file or a hub dataset.

    Args:
        skipped: Told of rows that cannot be read or learned from, which are then left out; without it they
            are an error.
        note: Told what else the reader noticed.

    Raises:
        DataError: It cannot be read, or has rows that cannot be trained on; all are listed.
    """
    rows, places, problems = read_rows(source, preference_of, note=note)
    bad = [*problems]
    if problems and (skipped is None or not rows):
        raise _unreadable(source, problems, good=len(rows))
    pairs = pairs_from_rows(
        rows, source=source, weight=weight, hard=hard, skipped=bad.extend if skipped else None, places=places
    )
    if skipped is not None:
        skipped(bad)
    return pairs


def read_demonstrations(
    source: str,
    *,
    skipped: Callable[[Sequence[Problem]], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Rows to imitate from a file or a hub dataset, with `prompt` and `completion` as lists of messages.

    Args:
        skipped, note: As for `read_preferences`.

    Raises:
        DataError: It cannot be read, or has rows that there is nothing to learn from; they are listed.
    """
    rows, places, problems = read_rows(source, demonstration_of, note=note)
    empty = [not row["completion"][-1]["content"].strip() for row in rows]
    problems += [
        Problem("the completion is empty", where=place)
        for place, bare in zip(places, empty, strict=True)
        if bare
    ]
    good = [row for row, bare in zip(rows, empty, strict=True) if not bare]
    if problems and (skipped is None or not good):
        raise _unreadable(source, problems, good=len(good))
    if skipped is not None:
        skipped(problems)
    return good


def _unreadable(source: str, problems: Sequence[Problem], *, good: int) -> DataError:
    what = f"{len(problems)} of {good + len(problems)} rows cannot be learned from"
    remedy = "correct or remove them, or go on without them: --skip-bad-rows (skip_bad_rows: true)"
    return DataError(
        what,
        where=source,
        problems=problems[:20],
        remedy=remedy if good else "correct them, or name another file",
    )


class ReadRows(NamedTuple):
    """Rows in our form, where each stands, and a problem for each that cannot be brought into it."""

    rows: list[dict[str, Any]]
    places: list[str]
    problems: list[Problem]


def read_rows(
    source: str, form: Callable[[Mapping[str, Any]], dict[str, Any]], *, note: Callable[[str], None] | None
) -> ReadRows:
    """The rows of a file or a hub dataset, each brought into our form."""
    table = read_table(source)
    if note is not None:
        for line in table.notes:
            note(f"{source}: {line}")
    found = ReadRows(rows=[], places=[], problems=list(table.problems))
    for row in table.rows:
        try:
            found.rows.append(form(row.values))
        except DataError as error:
            found.problems.append(Problem(error.what, where=row.where, remedy=error.remedy))
        else:
            found.places.append(row.where)
    return found


def label_files(
    config: BaseStage, named: str | None, files: Sequence[PreferenceFile], context: RunContext
) -> Iterator[PreferenceFile]:
    """The preferences of the label stage that `config` reads from, and the files beside or instead of it."""
    if named or not files:
        folder = context.folder_of(config, "label", named)
        yield PreferenceFile(
            file=str(next(path for path in sorted(folder.iterdir()) if path.stem == "preferences"))
        )
    yield from files


def with_texts(file: str) -> str:
    """The preferences that lie beside a `verdicts.jsonl`, which has no texts; any other file itself.

    Raises:
        DataError: There are none.
    """
    path = Path(file)
    if path.name != "verdicts.jsonl":
        return file
    beside = [path.with_name(f"preferences.{form}") for form in ("jsonl", "parquet")]
    found = [each for each in beside if each.is_file()]
    if not found:
        raise DataError(
            "there are no preferences beside the verdicts, which have no texts",
            where=file,
            remedy="name the verdicts of a finished label stage, or its preferences file",
        )
    return str(found[0])


def pairs_digest(pairs: Sequence[PreferencePair]) -> str:
    """Digest of all that the pairs say, wherever they lie."""
    return digest([repr(replace(pair, source="")) for pair in pairs])
