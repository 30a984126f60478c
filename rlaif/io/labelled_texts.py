"""Read what moderators learn from: texts with a label for each principle, of people or of a judge, and texts
that only look bad."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rlaif.errors import DataError, Problem
from rlaif.io.fields import completion_of, messages_of, number_of, text_of, with_system
from rlaif.io.rows import each_row, refuse_bad_rows
from rlaif.io.tables import Row, read_table
from rlaif.labels import sigmoid
from rlaif.suggest import did_you_mean
from rlaif.types import Message

__all__ = [
    "ANY",
    "LabelledText",
    "LabelledTexts",
    "conversation_in",
    "read_benign",
    "read_labelled",
    "read_verdicts",
]

ANY = "any"
"""The category of a file with one `label`, where the constitution has several principles."""
LABEL = "label"
LOOK_ALIKE = "look_alike"
PROMPTS = ("messages", "prompt", "conversations", "question", "instruction", "text")
ANSWERS = ("completion", "response", "final", "answer", "output")
WORDS = {
    **dict.fromkeys(("unsafe", "broken", "harmful", "flagged", "true", "yes"), 1.0),
    **dict.fromkeys(("safe", "kept", "harmless", "ok", "false", "no"), 0.0),
}
BUILTIN = Path(__file__).resolve().parents[1] / "data" / "look_alikes.jsonl"
"""Harmless prompts with alarming words, which ship with rlaif."""


class LabelledText(NamedTuple):
    """A text and what is known of it.

    Attributes:
        broken: By category, 0 to 1.
    """

    messages: tuple[Message, ...]
    broken: Mapping[str, float]
    where: str
    look_alike: bool = False


class LabelledTexts(NamedTuple):
    """What a file held."""

    texts: tuple[LabelledText, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def conversation_in(row: Mapping[str, Any], text_column: str | None = None) -> tuple[Message, ...]:
    """The text of a row: a prompt, or a prompt and its answer.

    The prompt is a text or a list of messages (`prompt`, `messages`, …); the answer is a column of its own
    (`completion`, `response`, …), or the last message.

    Args:
        text_column: The column that holds the prompt; found by its name when left out.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    column = text_column or next((name for name in PROMPTS if row.get(name) not in (None, "")), "")
    if not column or column not in row:
        raise DataError(
            f"no column {f'`{text_column}`' if text_column else 'with a prompt'}; the row has "
            f"{', '.join(row) or 'none'}",
            remedy=f"{did_you_mean(text_column, list(row)) if text_column else ''}name the column "
            "`prompt` or `messages`",
        )
    messages = with_system(messages_of(row[column], column), row)
    answer = next((name for name in ANSWERS if name != column and row.get(name) not in (None, "")), None)
    if answer is None and len(messages) == 1 and messages[0].role == "assistant":
        raise DataError(
            f"`{column}` is an answer to nothing", remedy="begin with what was asked, as the user's turn"
        )
    if answer is None:
        return messages
    if messages[-1].role == "assistant":
        raise DataError(
            f"`{column}` ends with an answer already, and `{answer}` is another one",
            remedy="keep one of the two",
        )
    _, text = completion_of(row[answer], answer)
    return (*messages, Message("assistant", text))


def read_labelled(
    source: str | Path, principles: Sequence[str], *, skip_bad_rows: bool = False
) -> LabelledTexts:
    """Read people's labels: a column for each principle that is known, or one `label`; 1 is broken.

    Raises:
        DataError: The file cannot be read, has no column of labels, or has bad rows (unless `skip_bad_rows`).
    """
    table = read_table(source)
    columns = [name for name in principles if name in table.columns]
    single = not columns and LABEL in table.columns
    if not columns and not single:
        raise DataError(
            f"no column of labels; the columns are {', '.join(table.columns) or 'none'}",
            where=str(source),
            remedy=f"name a column after each principle ({', '.join(principles)}), or give one `{LABEL}`",
        )
    category = principles[0] if len(principles) == 1 else ANY
    names = {LABEL: category} if single else {name: name for name in columns}
    found: list[LabelledText] = []

    def add(row: Row) -> None:
        broken = {
            to: value
            for name, to in names.items()
            if (value := _label(row.values.get(name), name)) is not None
        }
        if not broken:
            raise DataError("the row has no label", remedy=f"fill in {' or '.join(f'`{n}`' for n in names)}")
        look_alike = (_label(row.values.get(LOOK_ALIKE), LOOK_ALIKE) or 0) > 0.5
        found.append(LabelledText(conversation_in(row.values), broken, row.where, look_alike))

    problems = each_row(table, add)
    rows = len(table.rows) + len(table.problems)
    refuse_bad_rows(problems, rows=rows, source=source, skip=skip_bad_rows)
    notes = list(table.notes)
    if single and category == ANY:
        notes.append(f"one column `{LABEL}` for {len(principles)} principles: it is the category `{ANY}`")
    known = {*principles, *names, LOOK_ALIKE}
    notes += [
        f"the column `{name}` holds 0 and 1 and is no principle of the constitution: it is not read"
        for name in table.columns
        if name not in known and _is_flag([row.values.get(name) for row in table.rows])
    ]
    return LabelledTexts(tuple(found), tuple(problems), tuple(notes))


def _is_flag(values: Sequence[object]) -> bool:
    """Whether a column holds nothing but 0 and 1, as a label that is misspelt would."""
    given = {str(value).strip().casefold() for value in values if value not in (None, "")}
    return bool(given) and given <= {"0", "1", "0.0", "1.0", "true", "false"}


def read_benign(source: str | Path, *, skip_bad_rows: bool = False) -> LabelledTexts:
    """Read texts that break nothing: `builtin`, prompts, exchanges, or the revisions of a revise stage (its
    `revisions.jsonl`, of which the final ones are taken).

    Raises:
        DataError: The file cannot be read, or has bad rows (unless `skip_bad_rows`).
    """
    table = read_table(BUILTIN if str(source) == "builtin" else source)
    found: list[LabelledText] = []
    failed = 0

    def add(row: Row) -> None:
        nonlocal failed
        if row.values.get("failed"):
            failed += 1
            return
        found.append(LabelledText(conversation_in(row.values), {}, row.where, True))

    problems = each_row(table, add)
    rows = len(table.rows) + len(table.problems)
    refuse_bad_rows(problems, rows=rows, source=source, skip=skip_bad_rows)
    told = [f"{failed} revisions that failed were left out"] if failed else []
    return LabelledTexts(tuple(found), tuple(problems), (*table.notes, *told))


def read_verdicts(verdicts: Path, preferences: Path, *, centred: bool = False) -> LabelledTexts:
    """Read a judge's pointwise verdicts: how probable it is that each completion breaks each principle.

    Verdicts hold no texts: those are in the preferences of the same stage. A completion that was judged in
    several comparisons has the mean of its log-odds.

    Args:
        verdicts: `verdicts.jsonl` of a label stage.
        preferences: `preferences.jsonl` (or `.parquet`) beside it.
        centred: Take the log-odds of each principle relative to their median over the texts.

    Raises:
        DataError: A file cannot be read, or no verdict is about one completion alone.
    """
    completions = _completions(preferences)
    log_odds, left = _readings(verdicts, completions)
    if not log_odds:
        raise DataError(
            "no verdict is about one completion alone, with its text",
            where=str(verdicts),
            remedy="label with a constitution of `question`s: rlaif label --protocol pointwise",
        )
    means = {
        completion: {name: math.fsum(values) / len(values) for name, values in own.items()}
        for completion, own in log_odds.items()
    }
    middle = _medians(means.values()) if centred else {}
    texts = tuple(
        LabelledText(
            completions[completion],
            {name: sigmoid(value - middle.get(name, 0.0)) for name, value in own.items()},
            f"{verdicts.name}, {completion}",
        )
        for completion, own in means.items()
    )
    notes = tuple(f"{count:,} {what} are not used" for what, count in left.items())
    return LabelledTexts(texts, (), notes)


def _readings(
    verdicts: Path, completions: Collection[str]
) -> tuple[dict[str, dict[str, list[float]]], Counter[str]]:
    """By completion and principle, the log-odds that it is broken; what is not used, with its count."""
    log_odds: dict[str, dict[str, list[float]]] = {}
    left = Counter[str]()
    for row in read_table(verdicts).rows:
        if row.values.get("order") != "alone":
            left["verdicts that compare two completions"] += 1
            continue
        if not row.values.get("valid"):
            left["verdicts that are invalid"] += 1
            continue
        found = _sides(row)
        left["readings without log-probabilities"] += 2 - len(found)
        for completion, value in found:
            if completion in completions:
                own = log_odds.setdefault(completion, {})
                own.setdefault(str(row.values["principle"]), []).append(value)
            else:
                left["readings of completions that are in no preference"] += 1
    return log_odds, +left


def _medians(found: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each principle's values."""
    values: dict[str, list[float]] = {}
    for own in found:
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    return {name: median(each) for name, each in values.items()}


def _completions(preferences: Path) -> dict[str, tuple[Message, ...]]:
    """The exchange of each completion, by its id."""
    found: dict[str, tuple[Message, ...]] = {}
    for row in read_table(preferences).rows:
        prompt = messages_of(row.values["prompt"], "prompt")
        for side in ("chosen", "rejected"):
            _, text = completion_of(row.values[side], side)
            found[str(row.values[f"{side}_id"])] = (*prompt, Message("assistant", text))
    return found


def _sides(row: Row) -> list[tuple[str, float]]:
    """The id of each completion of a pointwise verdict whose log-probabilities were noted, and the log-odds
    that it breaks the principle: of the bad answer, which the question lists second."""
    prompt, _, numbers = str(row.values["comparison_id"]).rpartition("/")
    evidence = row.values.get("logprobs") or {}
    return [
        (f"{prompt}/{number}", float(evidence[f"{side}_second"]) - float(evidence[f"{side}_first"]))
        for side, number in zip("ab", numbers.split("-"), strict=True)
        if {f"{side}_first", f"{side}_second"} <= evidence.keys()
    ]


def _label(value: object, column: str) -> float | None:
    """A label from 0 to 1; `None` where nothing is said."""
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (known := WORDS.get(text_of(value, column).strip().lower())) is not None:
        return known
    return number_of(value, column, default=0.0, most=1.0)
