"""Labels made in parts, each with a journal of its own, and put together: the file that one machine would
have written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from spine import ROOT, Said, call, rows

from rlaif.engines.scripted import ScriptedEngine, pseudo_answer, pseudo_labels
from rlaif.errors import RunError
from rlaif.runs.journal import JOURNAL, Journal
from rlaif.runs.run import read_run

JUDGE = ("--model", "scripted", "--judge", "scripted:spine:swift", "--constitution", "default")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    table = [
        {"prompt": f"Say {number}.", "chosen": f"Gladly: {number}.", "rejected": f"No, not {number}."}
        for number in range(11)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in table))
    return file


def label(work: tuple[object, ...], out: Path, *rest: object) -> Said:
    return call("label", *work, *JUDGE, "--out", out, *rest)


def shards(work: tuple[object, ...], at: Path, count: int) -> list[Path]:
    """The run folders of all shards, each finished."""
    folders = [at / f"{number}-of-{count}" for number in range(1, count + 1)]
    for number, folder in enumerate(folders, start=1):
        said = label(work, folder, "--shard", f"{number}/{count}")
        assert said.status == 0, said.err
        assert (folder / JOURNAL).is_file(), "a shard's answers lie in its folder"
    return folders


def merging(folders: list[Path]) -> list[object]:
    return [part for folder in folders for part in ("--merge", folder)]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("source", ["responses", "sampled"])
def test_shards_put_together_give_the_same_bytes(
    tmp_path: Path, pairs: Path, source: str, count: int
) -> None:
    work: tuple[object, ...] = (
        ("--responses", pairs, "--limit", 10)
        if source == "responses"
        else ("--prompts", "builtin:everyday", "--limit", 7, "--k", 3)
    )
    whole = label(work, tmp_path / "one" / "run")
    assert whole.status == 0, whole.err
    folders = shards(work, tmp_path / "parts", count)
    merged = label(work, tmp_path / "all" / "run", *merging(folders))
    assert merged.status == 0, merged.err
    assert "asked 0 questions" in merged.out
    for name in ("preferences.jsonl", "verdicts.jsonl", "unlabelled.jsonl", "statistics.json"):
        one, other = (tmp_path / each / "run" / "label" / name for each in ("one", "all"))
        assert one.read_bytes() == other.read_bytes(), name
    in_parts = sum(len(rows(folder / "label" / "preferences.jsonl")) for folder in folders)
    assert in_parts == len(rows(tmp_path / "all" / "run" / "label" / "preferences.jsonl")) > 0


def test_what_cannot_be_put_together_is_refused(tmp_path: Path, pairs: Path) -> None:
    work = ("--responses", pairs)
    first, second, third = shards(work, tmp_path / "parts", 3)
    for folders, message in (
        ([first, third], "of 3 shards 2/3 is not named"),
        ([first], "of 3 shards 2/3, 3/3 are not named"),
        ([first, first, second, third], "shard 1/3 is given twice"),
    ):
        said = label(work, tmp_path / "all", *merging(folders))
        assert said.status == 1
        assert message in said.err
    assert not (tmp_path / "all").exists(), "nothing began"
    other = label(("--responses", pairs, "--limit", 4), tmp_path / "all", *merging([first, second, third]))
    assert "the shard is of other work; different: label.limit" in other.err
    both = label(work, tmp_path / "all", "--shard", "1/3", "--merge", first)
    assert both.status == 2
    assert "--shard to do a part, or --merge" in both.err
    whole = label(work, tmp_path / "whole")
    assert whole.status == 0
    assert "this run is not a shard" in label(work, tmp_path / "all", "--merge", tmp_path / "whole").err
    info = json.loads((second / "run.json").read_text())
    (second / "run.json").write_text(json.dumps(info | {"status": "interrupted"}))
    said = label(work, tmp_path / "all", *merging([first, second, third]))
    assert "the shard has not finished: it is interrupted" in said.err
    assert read_run(first).status == "finished"


@pytest.mark.parametrize("count", [2, 7])
def test_odd_rows_are_the_same_in_shards_and_their_counts_add_up(tmp_path: Path, count: int) -> None:
    """Rows twice, rows that cannot be read, and a shard that has nothing to compare."""
    lines = [
        json.dumps({"prompt": f"Say {at}.", "chosen": f"Gladly: {at}.", "rejected": f"No, not {at}."})
        for at in (0, 1, 2, 3, 3, 5, 6, 8, 0, 10)
    ]
    lines[5:5] = ['{"prompt": "cut', json.dumps({"prompt": "Say 6."}), *[same_twice(at) for at in range(3)]]
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(line + "\n" for line in lines))
    work = ("--responses", file, "--skip-bad-rows")
    assert label(work, tmp_path / "one" / "run").status == 0
    folders = shards(work, tmp_path / "parts", count)
    merged = label(work, tmp_path / "all" / "run", *merging(folders))
    assert merged.status == 0, merged.err
    for name in ("preferences.jsonl", "verdicts.jsonl", "statistics.json"):
        one, other = (tmp_path / each / "run" / "label" / name for each in ("one", "all"))
        assert one.read_bytes() == other.read_bytes(), name
    whole, *parts = (counts(folder) for folder in (tmp_path / "one" / "run", *folders))
    assert whole == {name: sum(part[name] for part in parts) for name in whole}
    assert whole["bad_rows"] == 2
    assert whole["identical_pairs"] == 3
    assert (count == 7) == any(not part["comparisons"] for part in parts)


def same_twice(number: int) -> str:
    return json.dumps({"prompt": f"Again {number}.", "chosen": "The same.", "rejected": "The same."})


def counts(run: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((run / "label" / "manifest.json").read_text())["counts"]
    return found


def test_a_shard_whose_labels_are_all_weak_is_one_all_the_same(tmp_path: Path, pairs: Path) -> None:
    work = ("--responses", pairs, "--limit", 3, "--min-strength", 0.49)
    folders = shards(work, tmp_path / "parts", 3)
    assert all(counts(folder)["weak"] == 1 for folder in folders)
    merged = label(work, tmp_path / "all", *merging(folders))
    assert "all 3 labels are weaker than min_strength" in merged.err


# What would be asked anew


@pytest.fixture
def made(tmp_path: Path, pairs: Path) -> tuple[tuple[object, ...], list[Path]]:
    """Work on files of its own, and its two shards."""
    file, principles = tmp_path / "pairs.jsonl", tmp_path / "principles.yaml"
    file.write_bytes(pairs.read_bytes())
    principles.write_text((ROOT / "constitutions" / "default.yaml").read_text())
    work = ("--responses", file, *JUDGE[:-1], principles)
    return work, [part(work, tmp_path / "parts" / str(number), number) for number in (1, 2)]


def part(work: tuple[object, ...], folder: Path, number: int) -> Path:
    assert call("label", *work, "--out", folder, "--shard", f"{number}/2").status == 0
    return folder


def test_shards_of_another_state_of_a_file_are_refused(
    made: tuple[tuple[object, ...], list[Path]], tmp_path: Path
) -> None:
    work, folders = made
    for name, old, new, message in (
        ("pairs.jsonl", "Gladly: 3.", "Gladly: three.", "shard 2/2 is not of what"),
        (
            "principles.yaml",
            "question: ",
            "question: Really, ",
            "made with something else; different: constit",
        ),
    ):
        before = (tmp_path / name).read_text()
        assert old in before
        (tmp_path / name).write_text(before.replace(old, new, 1))
        said = call("label", *work, "--out", tmp_path / "all", *merging(folders))
        assert said.status == 1
        assert message in said.err
        assert not (tmp_path / "all" / "label").exists(), "nothing was asked"
        (tmp_path / name).write_text(before)
    assert call("label", *work, "--out", tmp_path / "all", *merging(folders)).status == 0


def test_a_file_may_lie_elsewhere(made: tuple[tuple[object, ...], list[Path]], tmp_path: Path) -> None:
    work, folders = made
    moved = (tmp_path / "pairs.jsonl").rename(tmp_path / "moved.jsonl")
    said = call("label", "--responses", moved, *work[2:], "--out", tmp_path / "all", *merging(folders))
    assert said.status == 0, said.err
    assert "asked 0 questions" in said.out


def test_shards_by_different_judges_of_one_name_are_refused(
    made: tuple[tuple[object, ...], list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, folders = made
    other = ScriptedEngine(pseudo_answer, pseudo_labels, name="told", revision="2")
    monkeypatch.setattr("spine.swift", lambda: other)
    mixed = [folders[0], part(work, tmp_path / "parts" / "other", 2)]
    said = call("label", *work, "--out", tmp_path / "all", *merging(mixed))
    assert "shards 1 and 2 were not made alike; different: judge" in said.err
    said = call("label", *work, "--out", tmp_path / "all", *merging(folders))
    assert "the shards were made with something else; different: judge" in said.err


def test_a_journal_that_lost_its_answers_is_refused(
    made: tuple[tuple[object, ...], list[Path]], tmp_path: Path
) -> None:
    work, folders = made
    journal = folders[1] / JOURNAL
    kept = journal.rename(tmp_path / "kept")
    said = call("label", *work, "--out", tmp_path / "all", *merging(folders))
    assert f"{journal}: the journal of this shard is not there" in said.err
    with Journal(journal):
        pass
    said = call("label", *work, "--out", tmp_path / "all", *merging(folders))
    assert "the journal of this shard is empty: its answers are lost" in said.err
    kept.rename(journal)
    said = call("label", *work, "--out", folders[0], *merging(folders))
    assert "this is the folder of a shard" in said.err
    assert call("label", *work, "--out", tmp_path / "all", *merging(folders)).status == 0


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/3/4", "-1/3", "1/", "²/3"])
def test_what_is_no_shard_is_refused(tmp_path: Path, pairs: Path, text: str) -> None:
    said = label(("--responses", pairs), tmp_path / "run", f"--shard={text}")
    assert said.status == 1
    assert "is not a shard" in said.err
    assert not (tmp_path / "run").exists()


def test_a_shard_with_nothing_in_it_says_so(tmp_path: Path, pairs: Path) -> None:
    said = label(("--responses", pairs), tmp_path / "run", "--shard", "12/12")
    assert said.status == 1
    assert "shard 12/12 of 11 prompts is empty" in said.err


# Journals


def test_journals_are_merged_and_the_first_answer_stands(tmp_path: Path) -> None:
    for name, values in (("a", {"x": 1, "y": 2}), ("b", {"y": 3, "z": 4})):
        with Journal(tmp_path / name) as journal:
            journal.put_many("reading", values)
    with Journal(tmp_path / "a") as journal:
        merged = journal.merge(tmp_path / "b")
        assert merged == (2, 1, 1)
        assert journal.get_many(["x", "y", "z"]) == {"x": 1, "y": 2, "z": 4}
        assert journal.merge(tmp_path / "b").new == 0
        with pytest.raises(RunError, match="there is no journal"):
            journal.merge(tmp_path / "c")
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 30)
    with Journal(tmp_path / "a") as journal, pytest.raises(RunError, match="not a journal"):
        journal.merge(tmp_path / "text")


def test_journals_are_merged_by_a_command(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Journal(tmp_path / name) as journal:
            journal.put_many("generation", {name: name})
    said = call("journal", "merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "c")
    assert said.status == 0, said.err
    shown = call("journal", "show", tmp_path / "c")
    assert "2 answers" in shown.out
    assert call("journal", "merge", tmp_path / "a", tmp_path / "nosuch", "--into", tmp_path / "c").status == 1
    assert call("journal", "show", tmp_path / "nosuch").status == 1
