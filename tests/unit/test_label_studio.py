"""Pairs to Label Studio and labels back: nothing turns round, and the counts add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from spine import call, rows

from rlaif.collect.labels_file import LabelsFile
from rlaif.collect.pairs import read_pairs
from rlaif.jobs.audit_files import read_audit_pairs


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "chosen": [{"role": "assistant", "content": f"good {number} <b>"}],
            "rejected": [{"role": "assistant", "content": f"bad {number}"}],
            "p_chosen": 0.9,
        }
        for number in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def annotated(task: dict[str, Any], selected: str | None, who: object = 7, **about: Any) -> dict[str, Any]:
    """The task as Label Studio exports it once somebody has clicked."""
    value = {"selected": selected}
    part = {"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": value}
    return {**task, "annotations": [{"completed_by": who, "result": [part] if selected else [], **about}]}


def test_what_a_person_chose_there_is_what_is_chosen_here(pairs: Path, tmp_path: Path) -> None:
    assert call("collect", "export", pairs, "--out", tmp_path / "tasks.json").status == 0
    ElementTree.parse(tmp_path / "tasks.xml")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    sides = ["left" if task["data"]["text1"].startswith("good") else "right" for task in tasks]
    assert {"left", "right"} == set(sides)
    export = tmp_path / "export.json"
    export.write_text(
        json.dumps([annotated(t, side, lead_time=3.25) for t, side in zip(tasks, sides, strict=True)])
    )
    found = call("collect", "import", export, "--out", tmp_path / "labels.jsonl")
    assert found.status == 0, found.err
    assert "8 annotations: 8 labels, 0 ties, 0 skipped, 0 known before" in found.out
    got = rows(tmp_path / "labels.jsonl")
    assert all(row["chosen"][0]["content"].startswith("good") for row in got)
    assert {row["annotator"] for row in got} == {"7"}
    assert got[0]["seconds"] == 3.2
    assert read_audit_pairs(tmp_path / "labels.jsonl").labelled
    again = call("collect", "import", export, "--out", tmp_path / "labels.jsonl")
    assert "0 labels, 0 ties, 0 skipped, 8 known before" in again.out


def test_our_labels_survive_the_way_there_and_back(pairs: Path, tmp_path: Path) -> None:
    shown = read_pairs(pairs).pairs
    with LabelsFile(tmp_path / "mine.jsonl") as file:
        for pair, answer in zip(shown, ("first", "second", "equal", "skip"), strict=False):
            file.add(pair, answer, annotator="ada", seconds=1, tie_first=True)  # type: ignore[arg-type]
    out = tmp_path / "tasks.json"
    said = call("collect", "export", pairs, "--labels", tmp_path / "mine.jsonl", "--out", out)
    assert "8 tasks with 3 annotations" in said.out
    assert call("collect", "import", out, "--out", tmp_path / "back.jsonl").status == 0
    kept = ("prompt", "p_chosen", "annotator")
    mine, back = (rows(tmp_path / name) for name in ("mine.jsonl", "back.jsonl"))
    key = [[str(row[name]) for name in kept] for row in mine]
    assert sorted(key) == sorted([str(row[name]) for name in kept] for row in back)
    chosen = {row["chosen"][0]["content"] for row in mine if row["p_chosen"] == 1}
    assert chosen == {row["chosen"][0]["content"] for row in back if row["p_chosen"] == 1}


def test_other_projects_and_what_nobody_decided(tmp_path: Path) -> None:
    data = {"question": "Which?", "answer1": "one", "answer2": "two"}
    tasks = [
        annotated({"id": 1, "data": data}, "right", {"email": "ada@example.org"}),
        annotated({"id": 2, "data": {**data, "answer1": "three"}}, "left", was_cancelled=True),
        annotated({"id": 3, "data": {**data, "answer1": "four"}}, None),
        {"id": 4, "data": {**data, "answer1": "five"}, "annotations": []},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = call("collect", "import", tmp_path / "export.json", "--out", tmp_path / "labels.jsonl")
    assert found.status == 0, found.err
    assert "3 annotations: 1 label, 0 ties, 2 skipped" in found.out
    (row,) = rows(tmp_path / "labels.jsonl")
    assert (row["chosen"][0]["content"], row["annotator"]) == ("two", "ada@example.org")


def test_odd_annotations_break_nothing(tmp_path: Path) -> None:
    """A side counts before the choice of another tag; what is no number of seconds is none; equal texts are no
    pair."""
    data = {"prompt": "Which?", "text1": "one", "text2": "two"}
    side = {"type": "pairwise", "to_name": "text1,text2", "value": {"selected": "left"}}
    flag = {"from_name": "flags", "type": "choices", "value": {"choices": ["Both"]}}
    odd: list[tuple[str, list[Any], Any]] = [
        ("1", [flag, side], 3),
        (
            "2",
            [{**side, "value": {"selected": ["left"]}}, {**flag, "value": {"choices": 4}}, side],
            float("inf"),
        ),
        ("3", [{**side, "to_name": "text1,text1"}], 10**400),
        ("4", [flag], -1),
    ]
    tasks = [
        {
            "data": {**data, "prompt": prompt},
            "annotations": [{"completed_by": " ", "result": r, "lead_time": t}],
        }
        for prompt, r, t in odd
    ]
    tasks.append(annotated({"data": {**data, "text2": "one "}}, "left"))
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    found = call("collect", "import", tmp_path / "export.json", "--out", tmp_path / "labels.jsonl")
    assert "5 annotations: 3 labels, 1 tie, 1 skipped" in found.out, found.err
    labels = rows(tmp_path / "labels.jsonl")
    assert [row["chosen"][0]["content"] for row in labels[:3]] == ["one"] * 3
    assert [row["seconds"] for row in labels] == [3, 0, 0, 0]
    assert {row["annotator"] for row in labels} == {"label-studio"}


def test_an_export_writes_over_nothing_that_it_reads(pairs: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    with LabelsFile(labels) as file:
        file.add(read_pairs(pairs).pairs[0], "first", annotator="ada", seconds=1.0, tie_first=True)
    before = labels.read_bytes()
    for out, said in ((labels, "would be written over"), (tmp_path / "tasks.xml", "end the name in .json")):
        found = call("collect", "export", pairs, "--labels", labels, "--out", out)
        assert (found.status, said in found.err) == (1, True)
    assert labels.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ('{"a": 1}', "not a list of tasks"),
        ('[{"id": 5, "annotations": [{"result": []}]}]', "no data"),
        ('[{"data": {"prompt": "x", "text1": "a"}, "annotations": [{}]}]', "known pair of texts"),
        ('[{"data": {"text1": "a", "text2": "b"}, "annotations": [{}]}]', "no prompt"),
        ('[{"data": {"prompt": "x", "text1": 1, "text2": "b"}, "annotations": [{}]}]', "no string"),
        ('[{"data": {"prompt": "x", "text1": "a", "text2": "b"}, "annotations": [1]}]', "no object"),
        (
            '[{"data": {"prompt": "x", "text1": "a", "text2": "b"}, "annotations": 1}]',
            "`annotations` is no list",
        ),
        (
            '[{"data": {"prompt": "x", "text1": "a", "text2": "b"}, "annotations": [{"result": 1}]}]',
            "`result` is no list",
        ),
        ('[{"data": {"prompt": " ", "text1": "a", "text2": "b"}, "annotations": [{}]}]', "no prompt"),
        (
            '[{"data": {"rlaif": {"prompt": [{"role": "bogus", "content": "x"}]}, "text1": "a", "text2": "b"},'
            ' "annotations": [{}]}]',
            'is "bogus"',
        ),
        ('[{"prompt": "x", "text1": "a", "text2": "b", "better": {"selected": "left"}}]', "no data"),
    ],
)
def test_what_is_no_export_is_refused_and_nothing_is_written(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "export.json").write_text(content)
    found = call("collect", "import", tmp_path / "export.json", "--out", tmp_path / "labels.jsonl")
    assert found.status == 1
    assert said in found.err
    assert not (tmp_path / "labels.jsonl").exists()
