"""What moderators learn from: people's labels, verdicts of a judge, texts that only look bad."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import DataError
from rlaif.io.labelled_texts import ANY, conversation_in, read_benign, read_labelled, read_verdicts
from rlaif.types import Message


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_column_for_each_principle(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "harm": 1, "lies": 0.25},
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}],
            "harm": False,
        },
        {"prompt": "p", "completion": "c", "harm": None, "lies": "unsafe", "look_alike": 1},
    )
    first, second, third = read_labelled(file, ["harm", "lies", "else"]).texts
    assert first.broken == {"harm": 1.0, "lies": 0.25}
    assert second.broken == {"harm": 0.0}
    assert second.messages == (Message("user", "q"), Message("assistant", "r"))
    assert third.broken == {"lies": 1.0}
    assert third.messages[-1] == Message("assistant", "c")
    assert (first.look_alike, third.look_alike) == (False, True)


def test_one_label_is_of_the_only_principle_or_of_any(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "p", "label": "safe"}, {"prompt": "q", "label": "unsafe"})
    assert [each.broken for each in read_labelled(file, ["harm"]).texts] == [{"harm": 0.0}, {"harm": 1.0}]
    found = read_labelled(file, ["harm", "lies"])
    assert [each.broken for each in found.texts] == [{ANY: 0.0}, {ANY: 1.0}]
    assert "it is the category `any`" in found.notes[-1]


def test_csv_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,harm\nask,say,1\nask,,0\n")
    first, second = read_labelled(tmp_path / "a.csv", ["harm"]).texts
    assert (len(first.messages), len(second.messages)) == (2, 1)


def test_a_file_without_labels_names_what_is_wanted(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "p", "harmful": 1})
    with pytest.raises(
        DataError, match=r"no column of labels; the columns are prompt, harmful\n.*harm, lies"
    ):
        read_labelled(file, ["harm", "lies"])


def test_bad_rows_are_told_with_their_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"prompt": "p", "harm": 1},
        {"prompt": "p", "harm": 7},
        {"harm": 1},
        {"prompt": "p", "harm": None},
    )
    with pytest.raises(DataError) as caught:
        read_labelled(file, ["harm"])
    said = str(caught.value)
    assert "3 of 4 rows cannot be read" in said
    for line, what in (
        (2, "must be between 0 and 1"),
        (3, "no column with a prompt"),
        (4, "the row has no label"),
    ):
        assert f"a.jsonl:{line}: " in said
        assert what in said
    found = read_labelled(file, ["harm"], skip_bad_rows=True)
    assert (len(found.texts), len(found.problems)) == (1, 3)


def test_two_answers_are_refused() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    with pytest.raises(DataError, match="ends with an answer already, and `completion` is another one"):
        conversation_in({"messages": turns, "completion": "s"})


def test_an_answer_to_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="`messages` is an answer to nothing"):
        conversation_in({"messages": [{"role": "assistant", "content": "r"}]})


def test_a_named_column_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no column `txt`; the row has text"):
        conversation_in({"text": "a"}, "txt")


def test_what_ships_looks_bad_and_is_not() -> None:
    found = read_benign("builtin").texts
    assert len(found) == 48
    assert all(each.look_alike and not each.broken for each in found)
    assert len({each.messages for each in found}) == 48


def test_revisions_are_benign_where_they_did_not_fail(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "q"}]
    file = write(
        tmp_path / "revisions.jsonl",
        {"prompt": prompt, "initial": "bad", "final": "good", "failed": ""},
        {"prompt": prompt, "initial": "bad", "final": "bad", "failed": "server: down"},
    )
    found = read_benign(file)
    assert [each.messages[-1].content for each in found.texts] == ["good"]
    assert "1 revisions that failed were left out" in found.notes


def verdict(
    comparison: str, principle: str, a: tuple[float, float], b: tuple[float, float], **more: Any
) -> Any:
    evidence = {"a_first": a[0], "a_second": a[1], "b_first": b[0], "b_second": b[1]}
    row = {"comparison_id": comparison, "principle": principle, "order": "alone", "valid": True}
    return {**row, "logprobs": evidence, **more}


def preference(prompt: str, chosen: int, rejected: int) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"ask {prompt}"}],
        "chosen": [{"role": "assistant", "content": f"answer {chosen}"}],
        "rejected": [{"role": "assistant", "content": f"answer {rejected}"}],
        "chosen_id": f"{prompt}/{chosen}",
        "rejected_id": f"{prompt}/{rejected}",
    }


def test_verdicts_of_a_judge(tmp_path: Path) -> None:
    preferences = write(tmp_path / "preferences.jsonl", preference("p/1", 1, 0), preference("p/1", 2, 1))
    verdicts = write(
        tmp_path / "verdicts.jsonl",
        verdict("p/1/0-1", "harm", (-3.0, -1.0), (-0.1, -2.1)),
        verdict("p/1/1-2", "harm", (-0.1, -4.1), (-1.0, -1.0)),
        verdict("p/1/0-1", "lies", (-1.0, -1.0), (-1.0, -1.0), valid=False),
        verdict("p/1/8-9", "harm", (-1.0, -1.0), (-1.0, -1.0)),
        verdict("p/1/0-1", "lies", (-1.0, -1.0), (-1.0, -1.0), order="chosen_first"),
        verdict(
            "p/1/1-2", "lies", (0, 0), (0, 0), logprobs={"a_first": -1.0, "b_first": -1.0, "b_second": -1.0}
        ),
    )
    found = read_verdicts(verdicts, preferences)
    by_text = {each.messages[-1].content: each.broken for each in found.texts}
    assert by_text.keys() == {"answer 0", "answer 1", "answer 2"}
    assert by_text["answer 0"]["harm"] == pytest.approx(1 / (1 + math.exp(-2)))
    assert by_text["answer 1"]["harm"] == pytest.approx(1 / (1 + math.exp(3)))  # the mean of -2 and -4
    assert by_text["answer 2"] == {"harm": 0.5, "lies": 0.5}
    assert by_text["answer 1"].keys() == {"harm"}
    assert set(found.notes) == {
        "1 verdicts that are invalid are not used",
        "1 verdicts that compare two completions are not used",
        "1 readings without log-probabilities are not used",
        "2 readings of completions that are in no preference are not used",
    }


def test_verdicts_are_centred_on_their_median(tmp_path: Path) -> None:
    preferences = write(tmp_path / "preferences.jsonl", preference("p", 1, 0), preference("q", 1, 0))
    verdicts = write(
        tmp_path / "verdicts.jsonl",
        verdict("p/0-1", "harm", (0.0, -5.0), (0.0, -4.0)),
        verdict("q/0-1", "harm", (0.0, -2.0), (0.0, -1.0)),
    )
    given, centred = (read_verdicts(verdicts, preferences, centred=each).texts for each in (False, True))
    assert all(each.broken["harm"] < 0.5 for each in given)
    wanted = [1 / (1 + math.exp(-each)) for each in (-2, -1, 1, 2)]
    assert [each.broken["harm"] for each in centred] == pytest.approx(wanted)


def test_verdicts_that_compare_are_refused(tmp_path: Path) -> None:
    preferences = write(tmp_path / "preferences.jsonl", preference("p", 1, 0))
    verdicts = write(
        tmp_path / "verdicts.jsonl", verdict("p/0-1", "harm", (-1.0, -2.0), (-1.0, -2.0), order="ab")
    )
    with pytest.raises(
        DataError, match=r"no verdict is about one completion alone.*\n.*--protocol pointwise"
    ):
        read_verdicts(verdicts, preferences)


def test_a_column_that_looks_like_a_label_and_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"ask {n}", "kind": n % 2, "privcy": n % 2, "n": n} for n in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert read_labelled(path, ["kind", "privacy"]).notes == (
        "the column `privcy` holds 0 and 1 and is no principle of the constitution: it is not read",
    )
