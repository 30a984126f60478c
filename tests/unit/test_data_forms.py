"""The forms of data that people have: each file of docs/reference/data-forms.md is read with its meaning kept, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import DataError
from rlaif.runs.readers import read_prompts, read_responses
from rlaif.runs.tables import read_table
from rlaif.types import Message

USER = {"role": "user", "content": "Name a fruit."}
PEAR = {"role": "assistant", "content": "A pear."}
SPOON = {"role": "assistant", "content": "A spoon."}
FRUIT = (Message("user", "Name a fruit."),)
HH = "\n\nHuman: Name a fruit.\n\nAssistant:"

PAIRS: dict[str, dict[str, Any]] = {
    "TRL plain": {"prompt": "Name a fruit.", "chosen": "A pear.", "rejected": "A spoon."},
    "TRL conversational": {"prompt": [USER], "chosen": [PEAR], "rejected": [SPOON]},
    "TRL implicit": {"chosen": [USER, PEAR], "rejected": [USER, SPOON]},
    "UltraFeedback binarised": {
        "prompt": "Name a fruit.", "chosen": [USER, PEAR], "rejected": [USER, SPOON], "messages": [USER, PEAR], "score_chosen": 8.5,
    },
    "HH pairs": {"chosen": f"{HH} A pear.", "rejected": f"{HH} A spoon."},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Name a fruit."}], "chosen": {"from": "gpt", "value": "A pear."},
        "rejected": {"from": "gpt", "value": "A spoon."},
    },
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", PAIRS)
def test_pairs_of_every_form(tmp_path: Path, form: str) -> None:
    (item,) = read_responses(write(tmp_path / "pairs.jsonl", PAIRS[form])).items
    assert item.prompt.messages == FRUIT
    assert [completion.text for completion in item.completions] == ["A pear.", "A spoon."]
    assert item.pairs == ((0, 1),)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Name a fruit.", "completions": [{"model": "m1", "response": "A pear."}]},
        {"messages": [USER, PEAR]},
        {"conversations": [{"from": "human", "value": "Name a fruit."}, {"from": "gpt", "value": "A pear."}]},
        {"instruction": "Name a fruit.", "input": "", "output": "A pear."},
        {"instruction": "Name a fruit.", "output": "A pear.", "generator": "m1"},
    ],
)
def test_completions_of_every_form(tmp_path: Path, row: dict[str, Any]) -> None:
    (item,) = read_responses(write(tmp_path / "completions.jsonl", row)).items
    assert item.prompt.messages == FRUIT
    assert [completion.text for completion in item.completions] == ["A pear."]


def test_the_writer_of_a_completion_is_kept(tmp_path: Path) -> None:
    told = [{"model": "m1", "response": "A pear."}, {"model": "m2", "response": "A spoon."}]
    (item,) = read_responses(write(tmp_path / "u.jsonl", {"instruction": "Name a fruit.", "completions": told})).items
    assert [completion.model for completion in item.completions] == ["m1", "m2"]
    (item,) = read_responses(write(tmp_path / "a.jsonl", {"instruction": "x", "output": "y", "generator": "m3"})).items
    assert [completion.model for completion in item.completions] == ["m3"]


def test_the_input_of_an_instruction_is_asked_too(tmp_path: Path) -> None:
    rows = [{"instruction": "Translate to French.", "input": text, "output": "…"} for text in ("good night", "good day")]
    found = read_prompts(write(tmp_path / "alpaca.jsonl", *rows)).items
    assert [prompt.messages[-1].content for prompt in found] == [
        "Translate to French.\n\ngood night", "Translate to French.\n\ngood day",
    ]


def test_a_transcript_is_a_conversation(tmp_path: Path) -> None:
    text = "\n\nHuman: Name a fruit.\n\nAssistant: A pear.\n\nHuman: Another?\n\nAssistant:"
    (prompt,) = read_prompts(write(tmp_path / "hh.jsonl", {"prompt": text})).items
    assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.messages[-1].content == "Another?"


def test_a_system_column_is_the_system_message(tmp_path: Path) -> None:
    system = Message("system", "Be brief.")
    (prompt,) = read_prompts(write(tmp_path / "p.jsonl", {"system": "Be brief.", "prompt": "Name a fruit."})).items
    assert prompt.messages == (system, *FRUIT)
    row = {"system": "Be brief.", "chosen": [USER, PEAR], "rejected": [USER, SPOON]}
    (item,) = read_responses(write(tmp_path / "r.jsonl", row)).items
    assert item.prompt.messages == (system, *FRUIT)
    told = {"system": "Be long.", "prompt": [{"role": "system", "content": "Be brief."}, USER]}
    with pytest.raises(DataError) as error:
        read_prompts(write(tmp_path / "two.jsonl", told))
    assert "differ" in str(error.value)


def test_content_in_parts_is_joined_and_a_part_that_is_no_text_refused(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a fruit."}]
    (prompt,) = read_prompts(write(tmp_path / "parts.jsonl", {"prompt": [{"role": "user", "content": parts}]})).items
    assert prompt.messages == FRUIT
    image = [*parts, {"type": "image_url", "image_url": "x"}]
    with pytest.raises(DataError) as error:
        read_prompts(write(tmp_path / "image.jsonl", {"prompt": [{"role": "user", "content": image}]}))
    assert "no text" in str(error.value)


def test_a_prompt_of_messages_leaves_the_answer_out_and_says_so(tmp_path: Path) -> None:
    read = read_prompts(write(tmp_path / "sft.jsonl", {"messages": [USER, PEAR]}))
    assert read.items[0].messages == FRUIT
    assert any("answer" in note for note in read.notes)


def test_a_column_that_is_not_read_breaks_no_row(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt,meta\nName a fruit.,\"[{'source': 'web'}]\"\n")
    assert read_prompts(path).items[0].messages == FRUIT
    path.write_text("prompt\n\"[{'role': 'user', 'content': 'Hi'}]\"\n")
    with pytest.raises(DataError) as error:
        read_prompts(path)
    assert "not JSON" in str(error.value)


def test_a_quotation_mark_that_is_not_closed_costs_its_own_row_only(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    good = [f"prompt {number}" for number in range(1000)]
    path.write_text("\n".join(["prompt,note", *(f"{each},x" for each in good[:5]), '"open,x', *(f"{each},x" for each in good[5:])]))
    table = read_table(path)
    assert [row.values["prompt"] for row in table.rows] == good
    assert [problem.where for problem in table.problems] == [f"{path}:7"]
    assert table.rows[5].where == f"{path}:8"


def test_cells_of_several_lines_are_still_one_row(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('prompt,note\n"a\nb\nc",x\nd,y\n')
    table = read_table(path)
    assert [(row.where, row.values["prompt"]) for row in table.rows] == [(f"{path}:2", "a\nb\nc"), (f"{path}:5", "d")]
