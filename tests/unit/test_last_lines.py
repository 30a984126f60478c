"""What a run says at its end: what happened, in the words of a reader, and nothing about what did not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from spine import call

from rlaif.cli.dry_run import IMAGINED
from rlaif.cli.execute import questions
from rlaif.cli.show import show
from rlaif.config import parse_recipe
from rlaif.engines.journaled import NullMemo
from rlaif.jobs.compare import CompareJob
from rlaif.jobs.context import RunContext
from rlaif.progress import NoProgress
from rlaif.report.labels import labelled, warnings_about
from rlaif.report.training import step_line, step_table
from rlaif.runs.manifest import Manifest
from rlaif.text import count_of

MANIFEST = Manifest(
    stage="compare",
    kind="compare",
    key="k",
    parts={},
    config={},
    models={},
    started="",
    finished="",
    seconds=0.0,
    counts={},
    outputs={},
)
NONE = {"unlabelled": 0, "not_best_worst": 0, "identical_pairs": 0, "repeated_pairs": 0, "pairs_not_drawn": 0}


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"comparisons": 36, "preferences": 36}, "36 comparisons labelled, none left out"),
        ({"comparisons": 1, "preferences": 1}, "1 comparison labelled, none left out"),
        (
            {"comparisons": 36, "preferences": 30, "unlabelled": 6},
            "30 of 36 comparisons labelled, 6 without a label",
        ),
        (
            {"comparisons": 9, "preferences": 9, "identical_pairs": 2, "pairs_not_drawn": 3},
            "9 comparisons labelled, none left out; not judged: 2 identical pairs, 3 pairs not drawn",
        ),
    ],
)
def test_what_became_of_the_comparisons(counts: dict[str, int], line: str) -> None:
    assert labelled(NONE | counts) == line


def test_questions() -> None:
    assert questions(144, 0) == "asked 144 questions"
    assert questions(1, 2) == "asked 1 question, 2 more had an answer already (of this run or an earlier one)"
    assert [count_of(count, "principle") for count in (0, 1, 2)] == [
        "0 principles",
        "1 principle",
        "2 principles",
    ]


def test_steps_count_from_one_and_zero_has_no_sign() -> None:
    step = {"step": 0, "reward": 0.5, "kl": -0.0001}
    assert step_line(step, 3).startswith("step 1 of 3  reward 0.500  kl 0.000  ")
    assert step_table([step]).rows == [["1", "0.500", "0.000"]]


def test_a_dry_run_shows_a_prompt_without_its_stand_ins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("label", "revise"):
        said = call(command, "--model", "scripted", "--limit", "2", "--dry-run")
        assert said.status == 0
        assert "word word" not in said.out
        assert "(a completion of this run)" in said.out
        assert "about - " not in said.out
    assert IMAGINED.search("In other words, word for word") is None


def test_a_comparison_does_not_repeat_the_table_of_the_evaluation(tmp_path: Path) -> None:
    table = {"header": ["measure", "start"], "rows": [["length", "3"], ["sampled tokens", "24"]]}
    tables = [{"title": title, **table} for title in ("Policies", "Differences")]
    (tmp_path / "comparison.json").write_text(
        json.dumps({"tables": tables, "verdict": ["`a` wins [52, 60]"]})
    )
    with_it, without = Console(width=80, record=True), Console(width=80, record=True)
    for console, stages in (
        (with_it, "[{stage: compare}]"),
        (without, "[{stage: evaluate}, {stage: compare}]"),
    ):
        recipe = parse_recipe(f"stages: {stages}", source="r.yaml")
        context = RunContext(recipe, memo=NullMemo(), progress=NoProgress())
        show(CompareJob(recipe.stages[-1], context).summary(tmp_path, MANIFEST), console)
    alone = with_it.export_text()
    assert "Policies" in alone
    assert alone.count("length") == 2
    assert (
        alone.count("sampled tokens") == 1
    )  # of the differences; `rlaif evaluate` has told it of the policies
    said = without.export_text()
    assert "Policies" not in said
    assert "Differences" in said
    assert "wins" in said


def test_square_brackets_of_names_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("label", "--model", "scripted", "--limit", "1", "--k", "2", "--out", "runs/[bold]x[red]")
    assert said.status == 0, said.err
    assert "runs/[bold]x[red]" in said.out
    assert "1 comparison labelled, none left out" in said.out
    assert "report: runs/[bold]x[red]/report.html (one file; open it in a browser)" in said.out
    assert (tmp_path / "runs/[bold]x[red]/report.html").is_file()
    assert "[bold]x[red]" in call("runs", "list").out


def test_what_the_audit_and_the_labels_say_stands_under_the_table() -> None:
    counts = {"verdicts": 8, "invalid": 0, "tie_rate": 0.1}
    assert warnings_about(counts | {"flip_rate": None}) == warnings_about(counts | {"flip_rate": 0.5}) == []
    (line,) = warnings_about(counts | {"flip_rate": 0.92})
    assert line == (
        "warning: the two orders disagree on 92 % of questions: position decides, not the text; do not train "
        "on these"
    )
    audit = {"grade": "use with care", "line": "audit (pairwise): label with this only with care"}
    told, line = warnings_about(counts | {"flip_rate": 0.92, "audit": audit})
    assert told == audit["line"]
    assert "position decides more often than the text" in line
