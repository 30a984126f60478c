"""The table of docs/reference/data-forms.md, tried cell by cell: each file is read with its meaning kept, or
refused in words."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rlaif.errors import DataError
from rlaif.io.readers import read_prompts, read_responses
from rlaif.jobs.learned_rows import read_demonstrations, read_preferences
from rlaif.types import Message

ROOT = Path(__file__).resolve().parents[2]
FORMS = ROOT / "tests" / "fixtures" / "forms"
ASKED = (Message("user", "Name a fruit."),)
OTHERS: Mapping[str, tuple[Message, ...]] = {
    "alpaca.jsonl": (Message("user", "Name one.\n\nFruit"),),
    "system-column-pairs.jsonl": (Message("system", "Be brief."), *ASKED),
    "system-column-answer.jsonl": (Message("system", "Be brief."), *ASKED),
    "language-modelling.jsonl": (Message("user", "Name a fruit. A pear."),),
}
"""Prompts of the files that ask otherwise."""


class Cell(NamedTuple):
    """A cell of the table: a file, where it is read, and whether it can be."""

    file: str
    place: str
    read: bool


def cells() -> Iterator[Cell]:
    lines = (ROOT / "docs" / "reference" / "data-forms.md").read_text("utf-8").splitlines()
    header, _, *table = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")
    )
    for row in table:
        named = dict(zip(header, row, strict=True))
        for place in READ:
            assert named[place] in ("yes", "no")
            yield Cell(file=named["file"], place=place, read=named[place] == "yes")


def prompts(path: Path, asked: tuple[Message, ...]) -> None:
    (prompt,) = read_prompts(path).items
    assert prompt.messages == asked


def responses(path: Path, asked: tuple[Message, ...]) -> None:
    (item,) = read_responses(path).items
    assert item.prompt.messages == asked
    assert [each.text for each in item.completions] in (["A pear."], ["A pear.", "A spoon."])


def preferences(path: Path, asked: tuple[Message, ...]) -> None:
    (pair,) = read_preferences(str(path))
    assert (pair.prompt, pair.chosen, pair.rejected) == (asked, "A pear.", "A spoon.")
    assert pair.p_chosen == pytest.approx(0.9 if path.name == "pairs.csv" else 1.0)


def demonstrations(path: Path, asked: tuple[Message, ...]) -> None:
    (row,) = read_demonstrations(str(path))
    assert row["prompt"] == [message.as_dict() for message in asked]
    assert row["completion"] == [{"role": "assistant", "content": "A pear."}]


READ: dict[str, Callable[[Path, tuple[Message, ...]], None]] = {
    "prompts": prompts,
    "responses": responses,
    "preferences": preferences,
    "demonstrations": demonstrations,
}
ZSTANDARD = sys.version_info >= (3, 14) or importlib.util.find_spec("zstandard") is not None
TABLE = [cell for cell in cells() if ZSTANDARD or not cell.file.endswith(".zst")]


def test_the_table_and_the_files_are_the_same() -> None:
    assert {cell.file for cell in cells()} == {path.name for path in FORMS.iterdir()}
    assert len(TABLE) > 100


@pytest.mark.parametrize("cell", TABLE, ids=[f"{cell.file}-{cell.place}" for cell in TABLE])
def test_every_cell_of_the_table(cell: Cell) -> None:
    path, asked = FORMS / cell.file, OTHERS.get(cell.file, ASKED)
    if cell.read:
        READ[cell.place](path, asked)
        return
    with pytest.raises(DataError) as caught:
        READ[cell.place](path, asked)
    assert "→" in str(caught.value)
    assert "quotation marks" not in str(caught.value)
    if cell.file.startswith("tool"):
        assert "tool turns are not read" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "read", "said"),
    [
        ("ultrafeedback-raw.jsonl", read_preferences, "raw UltraFeedback.*rlaif label --responses"),
        ("ultrafeedback-raw.jsonl", read_demonstrations, "raw UltraFeedback"),
        ("pair-without-choice.jsonl", read_preferences, "pair without a choice.*rlaif label --responses"),
        ("messages.jsonl", read_preferences, "demonstration.*rlaif sft"),
        ("trl-plain.jsonl", read_demonstrations, "preference.*rlaif dpo"),
        ("language-modelling.jsonl", read_demonstrations, "language-modelling"),
        ("hh-prompt.jsonl", read_preferences, "no `chosen` and `rejected`"),
    ],
)
def test_the_nearest_form_is_named(file: str, read: Callable[[str], Any], said: str) -> None:
    with pytest.raises(DataError, match=f"(?s){said}"):
        read(str(FORMS / file))
