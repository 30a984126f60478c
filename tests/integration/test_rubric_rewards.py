"""Rubrics through the stages that train and measure, on a tiny model: their scores, and what is refused first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from spine import rows
from tiny import save_tiny

from rlaif.config import parse_recipe
from rlaif.errors import DataError
from rlaif.pipeline.run import RunResult, run_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

RUBRIC = [{"text": "Is short", "points": 2}, {"text": "Is rude", "points": -1}]
TRAIN = "episodes: 4, samples_per_prompt: 2, steps: 1"


def prompts(folder: Path, name: str, *, bare: int = 0, count: int = 6) -> Path:
    """A file of prompts, the first ones without a rubric."""
    path = folder / f"{name}.jsonl"
    lines: list[dict[str, Any]] = [
        {"id": f"{name}{n}", "prompt": f"{name} question {n}?", "rubric": None if n < bare else RUBRIC}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def run(folder: Path, stages: str) -> RunResult:
    text = f"model: {save_tiny(folder / 'model')}\ndtype: float32\nconstitution: warmth\nstages:\n{stages}"
    return run_recipe(parse_recipe(text, source="r.yaml"), out=folder / "run")


def test_grpo_and_best_of_k_learn_from_a_rubric_that_evaluate_measures(tmp_path: Path) -> None:
    train, best, held = (prompts(tmp_path, name) for name in ("train", "best", "held"))
    reward = "reward: {score: {kind: rubric, aggregate: all-pass, min_label_share: 0}}"
    done = run(
        tmp_path,
        f"""
  - {{stage: grpo, prompts: {train}, {TRAIN}, max_new_tokens: 4, {reward}}}
  - {{stage: best_of_k, prompts: {best}, k: 2, rounds: 1, max_new_tokens: 4, {reward}}}
  - {{stage: evaluate, prompts: {held}, samples: 1, max_new_tokens: 4, win_rate: false, rubric: min,
      min_label_share: 0}}
""",
    ).stages
    (step,) = rows(done[0].folder / "metrics.jsonl")
    assert 0 < step["reward/score"] < 1
    kept = rows(done[1].folder / "kept.jsonl")
    assert kept
    assert all(0 < row["reward"] < 1 for row in kept)
    assert kept[0]["rubric"][0]["text"] == "Is short"
    measured = [row["measures"]["rubric"] for row in rows(done[2].folder / "completions.jsonl")]
    assert len(measured) == 3 * 6
    assert all(0 < value < 1 for value in measured)
    assert "rubric score" in (done[2].folder / "evaluation.md").read_text("utf-8")


@pytest.mark.parametrize("stage", ["grpo", "best_of_k"])
def test_prompts_without_a_rubric_are_refused_before_a_model_is_loaded(stage: str, tmp_path: Path) -> None:
    file = prompts(tmp_path, "train", bare=2)
    with pytest.raises(
        DataError, match=rf"(?s){stage.replace('_', '-')}, reward `score`: 2 of 6 .*train0, train1.*`without`"
    ):
        run(tmp_path, f"  - {{stage: {stage}, prompts: {file}, reward: {{score: {{kind: rubric}}}}}}")


@pytest.mark.parametrize(("protocol", "need"), [("rubric", "rubric"), ("reference", "reference")])
def test_label_refuses_them_before_anything_is_sampled(protocol: str, need: str, tmp_path: Path) -> None:
    file = prompts(tmp_path, "asked", bare=2)
    stages = f"  - {{stage: sample, prompts: {file}, k: 2}}\n  - {{stage: label, protocol: {protocol}}}"
    with pytest.raises(DataError, match=f"(?s)label: .* of 6 prompts have no {need}: asked0"):
        run(tmp_path, stages)
    assert not (tmp_path / "run/sample").exists()


def test_evaluate_refuses_them_too(tmp_path: Path) -> None:
    file = prompts(tmp_path, "held", bare=1)
    grpo = f"  - {{stage: grpo, prompts: {prompts(tmp_path, 'train')}, reward: {{s: {{kind: rubric}}}}}}\n"
    for setting in ("rubric: mean, win_rate: false", "protocol: rubric"):
        with pytest.raises(DataError, match="1 of 6 prompts have no rubric: held0"):
            run(tmp_path, f"{grpo}  - {{stage: evaluate, prompts: {file}, {setting}}}")


def test_a_score_may_be_given_to_prompts_without_a_rubric(tmp_path: Path) -> None:
    file = prompts(tmp_path, "best", bare=6)
    with pytest.raises(DataError, match="the 6 prompts all score the same"):
        run(
            tmp_path,
            f"  - {{stage: best_of_k, prompts: {file}, k: 2, rounds: 1, max_new_tokens: 4,\n"
            "      reward: {score: {kind: rubric, without: 0.5}}}",
        )
