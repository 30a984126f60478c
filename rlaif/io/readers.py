"""Read prompts, and completions that were made elsewhere, from any of the formats of `rlaif.io.tables`.

One bad row does not lose the others, and is never dropped in silence: without `skip_bad_rows` the reader
stops and lists every bad row with its line; with it, the rows are in `Read.problems`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from rlaif.errors import DataError, Problem
from rlaif.io.fields import (
    assistant_answer,
    conversation_of,
    is_transcript,
    messages_of,
    prompt_of,
    question_of,
    refuse_unread,
    strings_of,
    text_of,
    with_system,
)
from rlaif.io.rows import (
    CONTEXT_COLUMN,
    OTHER_PROMPT_COLUMNS,
    PROMPT_COLUMN,
    cell,
    claim_id,
    each_row,
    find_columns,
    refuse_bad_rows,
)
from rlaif.io.rubrics import column_notes, joined, with_columns
from rlaif.io.tables import DataTable, Row, read_table
from rlaif.suggest import did_you_mean
from rlaif.types import Completion, Message, Prompt

__all__ = ["Read", "Responses", "read_prompts", "read_responses"]

BUILTIN = Path(__file__).resolve().parents[1] / "data" / "prompts.jsonl"
"""The prompts that ship with rlaif."""
COMPLETION_COLUMNS: tuple[tuple[str, ...], ...] = (
    ("completions",),
    ("responses",),
    ("completion",),
    ("response",),
    ("chosen", "rejected"),
    ("a", "b"),
)
OTHER_COMPLETION_COLUMNS: tuple[tuple[str, ...], ...] = (("output",), ("messages",), ("conversations",))
"""Taken where there is none of the others: Alpaca's and AlpacaEval's, and conversations that end with the
answer."""
CONVERSATIONS = frozenset({"messages", "conversations"})
LIST_COLUMNS = ("completions", "responses")

Item = TypeVar("Item")


class Read(NamedTuple, Generic[Item]):
    """What a file held.

    Attributes:
        items: In the order of the file.
        problems: One for each bad row that was skipped.
        rows: Rows in the file, bad ones and duplicates included.
        notes: What the reader should know, a line each.
    """

    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    rows: int
    notes: tuple[str, ...]


class Responses(NamedTuple):
    """A prompt with completions from a file.

    Attributes:
        pairs: Indices of completions that the file set against each other; empty when it had no pairs.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    pairs: tuple[tuple[int, int], ...]


def read_prompts(
    source: str | Path,
    *,
    prompt_column: str = PROMPT_COLUMN,
    context_column: str = CONTEXT_COLUMN,
    skip_bad_rows: bool = False,
) -> Read[Prompt]:
    """Read prompts from a file, a hub dataset, or `builtin` / `builtin:TAG`.

    A prompt is a text (one user turn) or a list of chat messages that ends with the user's turn. Where a file
    of pairs has no prompt column, the turns of `chosen` before its last are the prompt. The same prompt twice
    is kept once and counted in the notes.

    Raises:
        DataError: The file cannot be read, has no such column, has bad rows (unless `skip_bad_rows`) or
            nothing else.
    """
    tag = str(source).partition(":")[2] if str(source).startswith("builtin:") else ""
    table = read_table(BUILTIN if tag or str(source) == "builtin" else source)
    rows = len(table.rows) + len(table.problems)
    implicit = _prompt_of_pairs(table, prompt_column)
    column, notes = implicit or find_columns(table, source, prompt_column, context_column)
    notes += table.notes
    answered = column in CONVERSATIONS or implicit is not None
    prompts: dict[str, Prompt] = {}  # by fingerprint
    places: dict[str, str] = {}  # by id
    duplicates = 0

    def add(row: Row) -> None:
        nonlocal duplicates
        value = cell(row, column)
        if implicit is not None and len(messages_of(value, column)) == 1:
            raise DataError(
                "the row has no prompt", remedy="add a column `prompt`, or begin both conversations with it"
            )
        asked = question_of(row.values, column, answered=answered)
        prompt = with_columns(prompt_of(asked, row.values, context_column), row.values)
        if (key := prompt.fingerprint()) in prompts:
            prompts[key] = joined(prompts[key], prompt)
            duplicates += 1
            return
        claim_id(prompt.id, row, places)
        prompts[key] = prompt

    problems = each_row(table, add)
    if answers := sum(_answered(row.values.get(column)) for row in table.rows) if answered else 0:
        notes.append(
            f"{answers} of {rows} rows end with an answer, which is not part of the prompt and was left out"
        )
    refuse_bad_rows(problems, rows=rows, source=source, skip=skip_bad_rows)
    if duplicates:
        notes.append(f"{duplicates} of {rows} rows repeat a prompt and were left out")
    notes += column_notes(prompts.values())
    items = [prompt for prompt in prompts.values() if not tag or tag in prompt.tags]
    if not items:
        known = sorted({name for prompt in prompts.values() for name in prompt.tags})
        raise DataError(
            f"no built-in prompt has the tag {tag!r}",
            remedy=f"{did_you_mean(tag, known)}use one of {', '.join(known)}",
        )
    return Read(items=tuple(items), problems=tuple(problems), rows=rows, notes=tuple(notes))


def read_responses(
    source: str | Path,
    *,
    prompt_column: str = PROMPT_COLUMN,
    context_column: str = CONTEXT_COLUMN,
    skip_bad_rows: bool = False,
) -> Read[Responses]:
    """Read completions that were made elsewhere, grouped by prompt.

    A row holds a prompt and either a list (`completions` or `responses`), one completion (`completion` or
    `response`), or a pair (`chosen` and `rejected`, or `a` and `b`). A completion is a text, or chat messages
    that end with the assistant's turn; where there is no prompt column, the turns before it are the prompt
    (TRL's implicit form). An optional `model` column names who wrote them.

    Raises:
        DataError: As `read_prompts`.
    """
    table = read_table(source)
    rows = len(table.rows) + len(table.problems)
    columns = _completion_columns(table, source)
    named = set(table.columns) - (set(columns) & CONVERSATIONS)
    if set(columns) & CONVERSATIONS and PROMPT_COLUMN not in named:
        named -= CONVERSATIONS
    implicit = prompt_column == PROMPT_COLUMN and not {PROMPT_COLUMN, *OTHER_PROMPT_COLUMNS} & named
    also = {*columns, "model", "generator"}
    column, notes = (
        ("", []) if implicit else find_columns(table, source, prompt_column, context_column, also=also)
    )
    notes += table.notes
    gathered: dict[str, _Gathered] = {}  # by fingerprint
    places: dict[str, str] = {}

    def add(row: Row) -> None:
        messages, texts = _completions(row, columns, column)
        writers = _writers(row, columns, len(texts))
        prompt = with_columns(prompt_of(messages, row.values, context_column), row.values)
        key = prompt.fingerprint()
        if key not in gathered:
            claim_id(prompt.id, row, places)
            gathered[key] = _Gathered(prompt)
        gathered[key].prompt = joined(gathered[key].prompt, prompt)
        gathered[key].add(texts, writers, paired=len(columns) == 2)

    problems = each_row(table, add)
    refuse_bad_rows(problems, rows=rows, source=source, skip=skip_bad_rows)
    items = tuple(each.responses() for each in gathered.values())
    notes += column_notes(item.prompt for item in items)
    return Read(items=items, problems=tuple(problems), rows=rows, notes=tuple(notes))


class _Gathered:
    """The completions of one prompt, as its rows come."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.texts: list[tuple[str, str]] = []  # (text, model)
        self.pairs: list[tuple[int, int]] = []

    def add(self, texts: Sequence[str], models: Sequence[str], *, paired: bool) -> None:
        """Samples are all kept; a text that stands in several pairs is one completion."""
        if not paired:
            self.texts += zip(texts, models, strict=True)
            return
        a = self._place((texts[0], models[0]), other=-1)
        self.pairs.append((a, self._place((texts[1], models[1]), other=a)))

    def _place(self, text: tuple[str, str], *, other: int) -> int:
        for index, known in enumerate(self.texts):
            if known == text and index != other:
                return index
        self.texts.append(text)
        return len(self.texts) - 1

    def responses(self) -> Responses:
        completions = tuple(
            Completion(
                id=f"{self.prompt.id}/{index}",
                prompt_id=self.prompt.id,
                index=index,
                text=text,
                finish="given",
                model=model,
            )
            for index, (text, model) in enumerate(self.texts)
        )
        return Responses(prompt=self.prompt, completions=completions, pairs=tuple(self.pairs))


def _prompt_of_pairs(table: DataTable, asked: str) -> tuple[str, list[str]] | None:
    """The column `chosen`, where a file of pairs has no column for the prompt: TRL's implicit form, and
    HH."""
    named = set(table.columns)
    if asked != PROMPT_COLUMN or "chosen" not in named or {PROMPT_COLUMN, *OTHER_PROMPT_COLUMNS} & named:
        return None
    return "chosen", ["no column `prompt`; the prompts are the turns of `chosen` before its last"]


def _answered(turns: object) -> bool:
    """Whether a conversation ends with the assistant's turn."""
    if is_transcript(turns):
        return True
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, dict) and (last.get("role") == "assistant" or last.get("from") == "gpt")


def _writers(row: Row, columns: Sequence[str], count: int) -> list[str]:
    """Who wrote each of a row's completions: the objects of UltraFeedback say it themselves."""
    named = next((name for name in ("policy", "model", "generator") if row.values.get(name)), None)
    default = text_of(row.values[named], named) if named else "given"
    items = row.values.get(columns[0])
    if columns[0] not in LIST_COLUMNS or not isinstance(items, list):
        return [default] * count
    return [
        text_of(item["model"], "model") if isinstance(item, dict) and item.get("model") else default
        for item in items
    ]


def _completion_columns(table: DataTable, source: str | Path) -> tuple[str, ...]:
    """The column or the two columns that hold completions."""
    columns = table.columns
    found = [names for names in COMPLETION_COLUMNS if set(names) <= set(columns)]
    found = found or [names for names in OTHER_COMPLETION_COLUMNS if set(names) <= set(columns)][:1]
    if len(found) > 1:
        listed = " or ".join("+".join(names) for names in found)
        raise DataError(
            f"several columns hold completions: {listed}",
            where=str(source),
            remedy="keep one of them in the file",
        )
    if not found and table.rows:
        listed = ", ".join("+".join(names) for names in COMPLETION_COLUMNS)
        prompts = (
            "; prompts to answer first are given by --prompts"
            if {PROMPT_COLUMN, *OTHER_PROMPT_COLUMNS} & set(columns)
            else ""
        )
        raise DataError(
            f"no column holds completions; the columns are {', '.join(columns) or 'none'}",
            where=str(source),
            remedy=f"name them as one of: {listed}{prompts}",
        )
    return found[0] if found else COMPLETION_COLUMNS[0]


def _completions(row: Row, columns: Sequence[str], column: str) -> tuple[tuple[Message, ...], list[str]]:
    """The prompt's messages and the texts of a row's completions.

    Args:
        column: Holds the prompt; empty when the turns before the completions are it.
    """
    refuse_unread(row.values)
    asked = cell(row, column) if column else None
    cells = [(name, cell(row, name)) for name in columns]
    if columns[0] in LIST_COLUMNS:
        cells = _listed(*cells[0])
    found = [(name, *assistant_answer(value, name, asked=asked)) for name, value in cells]
    if column in CONVERSATIONS and all(before for _, before, _ in found):
        column = ""  # both sides bring the conversation, which this column only repeats
    prompt = question_of(row.values, column) if column else None
    if prompt is None:
        name, before, _ = found[0]
        if not before:
            raise DataError(
                f"there is no prompt: no prompt column, and `{name}` is one turn",
                remedy="add a column `prompt`",
            )
        prompt = with_system(conversation_of([message.as_dict() for message in before], name), row.values)
    for name, before, _ in found:
        if before and with_system(before, row.values) != prompt:
            raise DataError(
                f"the turns of `{name}` before the last differ from the prompt",
                remedy="keep only the assistant's turn",
            )
    return prompt, [text for _, _, text in found]


def _listed(name: str, value: object) -> list[tuple[str, object]]:
    items = list(strings_of(value, name)) if isinstance(value, str) else value
    if not isinstance(items, list) or not items:
        raise DataError(f"`{name}` is not a list of completions", remedy='write ["…", "…"]')
    return [
        (f"{name}[{position}]", _text_in(item, f"{name}[{position}]")) for position, item in enumerate(items)
    ]


def _text_in(item: object, name: str) -> object:
    """UltraFeedback's completions are objects that hold the text as `response`."""
    if not isinstance(item, dict) or {"role", "from"} & item.keys():
        return item
    if "response" not in item:
        held = ", ".join(map(str, item)) or "nothing"
        what = f"`{name}` is an object without `response`; it has {held}"
        raise DataError(what, remedy='write a text, or {"model": "…", "response": "…"} as UltraFeedback does')
    return item["response"]
