"""A run and a journal of version 0.1.0 open, go on and give the same labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from spine import call, rows

from rlaif.jobs.learned_rows import read_preferences

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "v0.1.0"
COMMAND = (
    "label", "--model", "scripted", "--constitution", "warmth", "--protocol", "pointwise", "--prompts", "builtin:everyday",
    "--limit", 4, "--k", 2, "--max-new-tokens", 12, "--out",
)  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE, tmp_path / "old")
    return tmp_path / "old"


def test_the_run_is_shown(old: Path) -> None:
    said = call("runs", "show", old / "run")
    assert said.status == 0, said.err
    assert "label" in said.out


def test_its_answers_are_reused_and_the_labels_are_the_same(old: Path) -> None:
    before = rows(old / "run" / "label" / "preferences.jsonl")
    said = call(*COMMAND, old / "run", "--no-audit")
    assert said.status == 0, said.err
    assert "asked 0 questions" in said.out
    after = rows(old / "run" / "label" / "preferences.jsonl")
    assert len(after) == len(before) > 0
    for one, other in zip(before, after, strict=True):
        assert other.pop("audit") == "not audited"
        assert one.pop("margin") == pytest.approx(other.pop("log_odds"), abs=1e-5)
        assert one == other


def test_its_preferences_are_read(old: Path) -> None:
    file = old / "run" / "label" / "preferences.jsonl"
    labels = [row["p_chosen"] for row in rows(file)]
    assert [pair.p_chosen for pair in read_preferences(str(file))] == pytest.approx(labels, abs=1e-12)
    assert json.loads((old / "run" / "run.json").read_text())["version"] == "0.1.0"
