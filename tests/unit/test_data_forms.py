"""The forms of data that people have: each file of docs/reference/data-forms.md is read with its meaning
kept, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import DataError, Problem
from rlaif.io.readers import read_prompts, read_responses
from rlaif.io.tables import read_table
from rlaif.jobs.learned_rows import read_demonstrations, read_preferences
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
        "prompt": "Name a fruit.",
        "chosen": [USER, PEAR],
        "rejected": [USER, SPOON],
        "messages": [USER, PEAR],
        "score_chosen": 8.5,
    },
    "HH pairs": {"chosen": f"{HH} A pear.", "rejected": f"{HH} A spoon."},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "Name a fruit."}],
        "chosen": {"from": "gpt", "value": "A pear."},
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
    (item,) = read_responses(
        write(tmp_path / "u.jsonl", {"instruction": "Name a fruit.", "completions": told})
    ).items
    assert [completion.model for completion in item.completions] == ["m1", "m2"]
    (item,) = read_responses(
        write(tmp_path / "a.jsonl", {"instruction": "x", "output": "y", "generator": "m3"})
    ).items
    assert [completion.model for completion in item.completions] == ["m3"]


def test_the_input_of_an_instruction_is_asked_too(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate to French.", "input": text, "output": "…"}
        for text in ("good night", "good day")
    ]
    found = read_prompts(write(tmp_path / "alpaca.jsonl", *rows)).items
    assert [prompt.messages[-1].content for prompt in found] == [
        "Translate to French.\n\ngood night",
        "Translate to French.\n\ngood day",
    ]


def test_a_transcript_is_a_conversation(tmp_path: Path) -> None:
    text = "\n\nHuman: Name a fruit.\n\nAssistant: A pear.\n\nHuman: Another?\n\nAssistant:"
    (prompt,) = read_prompts(write(tmp_path / "hh.jsonl", {"prompt": text})).items
    assert [message.role for message in prompt.messages] == ["user", "assistant", "user"]
    assert prompt.messages[-1].content == "Another?"


def test_a_system_column_is_the_system_message(tmp_path: Path) -> None:
    system = Message("system", "Be brief.")
    (prompt,) = read_prompts(
        write(tmp_path / "p.jsonl", {"system": "Be brief.", "prompt": "Name a fruit."})
    ).items
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
    (prompt,) = read_prompts(
        write(tmp_path / "parts.jsonl", {"prompt": [{"role": "user", "content": parts}]})
    ).items
    assert prompt.messages == FRUIT
    image = [*parts, {"type": "image_url", "image_url": "x"}]
    with pytest.raises(DataError) as error:
        read_prompts(write(tmp_path / "image.jsonl", {"prompt": [{"role": "user", "content": image}]}))
    assert "a part that is not text" in str(error.value)


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
    path.write_text(
        "\n".join(
            [
                "prompt,note",
                *(f"{each},x" for each in good[:5]),
                '"open,x',
                *(f"{each},x" for each in good[5:]),
            ]
        )
    )
    table = read_table(path)
    assert [row.values["prompt"] for row in table.rows] == good
    assert [problem.where for problem in table.problems] == [f"{path}:7"]
    assert table.rows[5].where == f"{path}:8"


def test_cells_of_several_lines_are_still_one_row(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('prompt,note\n"a\nb\nc",x\nd,y\n')
    table = read_table(path)
    assert [(row.where, row.values["prompt"]) for row in table.rows] == [
        (f"{path}:2", "a\nb\nc"),
        (f"{path}:5", "d"),
    ]


def test_text_that_begins_like_a_list_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    texts = ["[{x: 1}] is not JSON. Why?", '[{"a": 1}]', "[{", '[{"role"} what is this?']
    path.write_text("prompt\n" + "".join('"' + text.replace('"', '""') + '"\n' for text in texts))
    assert [prompt.messages[0].content for prompt in read_prompts(path).items] == texts
    path.write_text("prompt\n" + '"[{""role"": ""user"", ""content"": ""Name a fruit.""}]"\n')
    assert read_prompts(path).items[0].messages == FRUIT


def test_a_list_that_was_printed_by_python_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("prompt\n\"[{'role': 'user', 'content': 'Hi'}]\"\n")
    with pytest.raises(DataError, match=r"(?s)not JSON.*JSONL, where text is text"):
        read_prompts(path)


@pytest.mark.parametrize("junk", [b"a\0b", b"caf\xe9", b"\"[{'role': 1\""])
def test_what_an_unread_column_holds_breaks_no_row(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b"prompt,meta\nName a fruit.," + junk + b"\n")
    assert read_prompts(path).items[0].messages == FRUIT
    path.write_bytes(b"prompt,tags\nName a fruit.," + junk + b"\n")
    with pytest.raises(DataError, match="`tags`"):
        read_prompts(path)


def test_a_transcript_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b'prompt\n"\n\nHuman: caf\xe9\n\nAssistant:"\n')
    with pytest.raises(DataError, match="not UTF-8"):
        read_prompts(path)


def test_text_is_made_well_formed_once_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "half \\ud83d", "id": "one"}\n'
        '{"prompt": "whole \\ud83d\\ude00"}\n{"prompt": "x", "\\udc00": {"a": ["\\u0000"]}}\n'
    )
    read = read_prompts(path)
    assert [prompt.messages[0].content for prompt in read.items] == ["half �", "whole 😀", "x"]
    assert any(note.startswith("2 rows contained half a character or a NUL") for note in read.notes)
    assert not read.problems


def test_a_nul_that_a_model_wrote_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "completions.jsonl", {"prompt": "Name a fruit.", "completion": "pe\0ar"})
    read = read_responses(path)
    assert read.items[0].completions[0].text == "pe�ar"
    assert any("NUL" in note for note in read.notes)


def test_an_id_of_a_training_row_is_one_printable_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"id": "a\n# b", "prompt": "q", "chosen": "a", "rejected": "b"})
    with pytest.raises(DataError, match="an id is one line"):
        read_preferences(str(path))


@pytest.mark.parametrize(
    ("columns", "p"),
    [
        ({}, 1.0),
        ({"p_chosen": 0.7}, 0.7),
        ({"p_chosen": None, "log_odds": 1.5}, 0.8175744761936437),
        ({"margin": 1.5, "constitution_digest": "x"}, 0.8175744761936437),
        ({"log_odds": -1.0}, 0.2689414213699951),
        ({"p_chosen": 0.9, "margin": 4.0}, 0.9),
        ({"margin": 0, "constitution_digest": "x"}, 0.5),
        ({"margin": 3.0}, 1.0),
    ],
)
def test_the_label_of_a_row(tmp_path: Path, columns: dict[str, Any], p: float) -> None:
    (pair,) = read_preferences(str(write(tmp_path / "p.jsonl", {**PAIRS["TRL conversational"], **columns})))
    assert pair.p_chosen == pytest.approx(p)


@pytest.mark.parametrize(
    "columns",
    [
        {"weight": 1e308},
        {"weight": -1},
        {"weight": "heavy"},
        {"weight": float("nan")},
        {"weight": True},
        {"p_chosen": 1.5},
        {"margin": 1e308, "constitution_digest": "x"},
        {"p_chosen": float("inf")},
        {"weight": [1]},
        {"log_odds": "x"},
        {"weight": 10**400},
    ],
)
def test_numbers_out_of_bounds_are_refused_in_words(tmp_path: Path, columns: dict[str, Any]) -> None:
    path = write(tmp_path / "p.jsonl", {**PAIRS["TRL plain"], **columns})
    with pytest.raises(DataError, match=f"`{next(iter(columns))}` is "):
        read_preferences(str(path))
    if "weight" in columns:
        path = write(tmp_path / "d.jsonl", {"prompt": "q", "completion": "a", **columns})
        with pytest.raises(DataError, match="`weight` is "):
            read_demonstrations(str(path))


def test_messages_beside_a_pair(tmp_path: Path) -> None:
    row = {"messages": [USER, PEAR], "chosen": "A pear.", "rejected": "A spoon."}
    with pytest.raises(DataError, match="`messages` beside `chosen` and `rejected` ends with an answer"):
        read_preferences(str(write(tmp_path / "p.jsonl", row)))
    (pair,) = read_preferences(str(write(tmp_path / "q.jsonl", {**row, "messages": [USER]})))
    assert pair.prompt == FRUIT
    whole = {**row, "chosen": [USER, PEAR], "rejected": [USER, SPOON]}
    (pair,) = read_preferences(str(write(tmp_path / "r.jsonl", whole)))
    (item,) = read_responses(write(tmp_path / "r.jsonl", whole)).items
    assert pair.prompt == item.prompt.messages == FRUIT


def test_rows_that_are_left_out_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{number}", "completion": "a"} for number in range(3)]
    path = write(
        tmp_path / "d.jsonl",
        *rows,
        {"prompt": "q", "completion": " "},
        {"text": "t"},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": ""}]},
    )
    with pytest.raises(DataError, match="3 of 6 rows cannot be learned from"):
        read_demonstrations(str(path))
    told: list[Problem] = []
    assert len(read_demonstrations(str(path), skipped=told.extend)) == 3
    assert [problem.where.rpartition(":")[2] for problem in told] == ["4", "5", "6"]
    same = {"prompt": "q", "chosen": "a", "rejected": "a"}
    path = write(tmp_path / "p.jsonl", PAIRS["TRL plain"], same, {"prompt": "q"})
    told.clear()
    assert len(read_preferences(str(path), skipped=told.extend)) == 1
    assert len(told) == 2


def test_a_cell_of_json_that_no_reader_knows_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text('prompt\n"[{""name"": ""x""}]"\n"[{""value"": 1}]"\n')
    assert [prompt.messages[0].content for prompt in read_prompts(path).items] == [
        '[{"name": "x"}]',
        '[{"value": 1}]',
    ]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".txt"])
def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setenv("RLAIF_MAX_LINE_MB", "1")
    path = tmp_path / f"p{suffix}"
    path.write_bytes(b"prompt\n" + b"x" * (3 << 20))
    with pytest.raises(DataError, match="the line is too long"):
        read_prompts(path)


def test_training_rows_that_were_mended_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "q", "completion": "a\0", "chosen": "a\0", "rejected": "b"})
    for read in (read_demonstrations, read_preferences):
        told: list[str] = []
        read(str(path), note=told.append)
        assert told == [f"{path}: 1 rows contained half a character or a NUL; it was replaced by U+FFFD"]


def test_completions_that_are_other_objects_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", {"prompt": "q", "completions": [{"text": "a"}, "b"]})
    with pytest.raises(DataError, match=r"`completions\[0\]` is an object without `response`; it has text"):
        read_responses(path)
    path = write(tmp_path / "p.jsonl", {"prompt": "q"})
    with pytest.raises(DataError, match="given by --prompts"):
        read_responses(path)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("history", [["x", "y"]], "earlier turns"), ("tools", [{"name": "f"}], "tool turns are not read")],
)
def test_what_is_part_of_the_question_and_not_read_is_refused(
    tmp_path: Path, column: str, value: Any, said: str
) -> None:
    row = {"instruction": "q", "chosen": "a", "rejected": "b", column: value}
    path = write(tmp_path / "p.jsonl", row)
    for read in (read_prompts, read_responses, read_preferences):
        with pytest.raises(DataError, match=said):
            read(str(path))
    path = write(tmp_path / "d.jsonl", {"instruction": "q", "output": "a", column: value})
    with pytest.raises(DataError, match=said):
        read_demonstrations(str(path))
    native = {"prompt": [USER], "chosen": [PEAR], "rejected": [SPOON], column: value}
    with pytest.raises(DataError, match=said):
        read_preferences(str(write(tmp_path / "n.jsonl", native)))


def test_the_column_system_prompt_is_the_system_message_too(tmp_path: Path) -> None:
    path = write(
        tmp_path / "orca.jsonl",
        {"system_prompt": "Be brief.", "question": "Name a fruit.", "response": "A pear."},
    )
    asked = (Message("system", "Be brief."), *FRUIT)
    assert read_prompts(path).items[0].messages == read_responses(path).items[0].prompt.messages == asked
    assert read_demonstrations(str(path))[0]["prompt"] == [message.as_dict() for message in asked]
    path = write(tmp_path / "two.jsonl", {"system_prompt": "a", "system": "b", "prompt": "q"})
    with pytest.raises(DataError, match="filled and differ"):
        read_prompts(path)


def test_an_answer_that_is_marked_as_bad_is_not_imitated(tmp_path: Path) -> None:
    path = write(
        tmp_path / "kto.jsonl", *({"prompt": "q", "completion": "a", "label": good} for good in (True, False))
    )
    with pytest.raises(DataError, match="its `label` says that the answer is bad"):
        read_demonstrations(str(path))
