"""The recipe that the README's first line runs, shortened, on the small real model: every stage, from prompts
to a comparison."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from datasets import load_dataset

from rlaif.config import load_recipe
from rlaif.pipeline.run import RunResult, run_recipe

SHORTER = (
    "stages.sample.limit=8",
    "stages.sample.k=3",
    "stages.sample.max_new_tokens=16",
    "stages.revise.limit=2",
    "stages.revise.max_new_tokens=16",
    "stages.audit.variants=2",
    "stages.reward.keep=head",
    "stages.best-of-k.limit=6",
    "stages.best-of-k.k=3",
    "stages.best-of-k.max_new_tokens=12",
    "stages.best-of-k.epochs=1",
    "stages.ppo.steps=2",
    "stages.ppo.episodes=6",
    "stages.ppo.max_new_tokens=12",
    "stages.evaluate.limit=6",
    "stages.evaluate.samples=1",
    "stages.evaluate.max_new_tokens=12",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One run, read by all tests here."""
    return run_recipe(load_recipe("quickstart", SHORTER), out=tmp_path_factory.mktemp("quickstart") / "run")


def test_every_stage_left_its_folder(run: RunResult) -> None:
    names = ["sample", "revise", "audit", "label", "reward", "best-of-k", "ppo", "evaluate", "compare"]
    assert [stage.config.name for stage in run.stages] == names
    for stage in run.stages:
        assert (stage.folder / "manifest.json").is_file()
        assert (stage.folder / "samples.md").read_text(encoding="utf-8").startswith("#")


def test_labels_are_soft_and_load_as_a_dataset(run: RunResult, tmp_path: Path) -> None:
    path = str(run.folder / "label" / "preferences.jsonl")
    rows = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path))
    assert len(rows) == 24  # 8 prompts, the three pairs of three completions
    assert all(0.5 <= p <= 1 for p in rows["p_chosen"])
    assert any(0.5 < p < 0.99 for p in rows["p_chosen"])
    assert {verdict["principle"] for row in rows for verdict in row["verdicts"]} == {
        "positive-tone",
        "good-feeling",
        "friendly",
    }


def test_the_comparison_tells_of_both_policies_on_unseen_prompts(run: RunResult) -> None:
    evaluation = json.loads((run.folder / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    assert [policy["name"] for policy in evaluation["policies"]] == ["start", "best-of-k", "ppo"]
    for policy in evaluation["policies"]:
        assert math.isfinite(policy["estimates"]["vader_compound"]["value"])
    completions = (run.folder / "sample" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    trained = {json.loads(line)["prompt_id"] for line in completions}
    assert trained.isdisjoint(evaluation["policies"][0]["rows"]["prompts"])
    assert "ppo" in (run.folder / "compare" / "comparison.md").read_text(encoding="utf-8")


def test_running_again_asks_nothing(run: RunResult) -> None:
    again = run_recipe(load_recipe("quickstart", SHORTER), out=run.folder)
    assert all(stage.skipped for stage in again.stages)
    assert again.asked == 0
