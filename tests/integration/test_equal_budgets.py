"""What training took and how its reward rose with that, from the stages to the comparison; and a student on
its own base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from spine import call, rows
from tiny import save_tiny

from rlaif.config import load_recipe, parse_recipe
from rlaif.pipeline.run import run_recipe
from rlaif.progress import NoProgress

JUDGE = "scripted:spine:swift"
SHORT = {
    "sample": {"limit": 8, "k": 3, "max_new_tokens": 6},
    "label": {"judge": JUDGE},
    "audit": {"variants": 2},
    "reward": {"lora_rank": 2},
    "best-of-k": {"limit": 4, "k": 2, "max_new_tokens": 4, "lora_rank": 2},
    "ppo": {"limit": 4, "steps": 3, "episodes": 4, "max_new_tokens": 4, "lora_rank": 2},
    "evaluate": {"limit": 3, "samples": 2, "max_new_tokens": 4, "judge": JUDGE},
    "compare": {"resamples": 100},
}
BOTH = """
name: both
model: {model}
dtype: float32
stages:
  - {{stage: ppo, prompts: {prompts}, steps: 3, episodes: 4, max_new_tokens: 4, lora_rank: 2, checkpoint_every: 1, reward: {vowels}}}
  - {{stage: best_of_k, prompts: {prompts}, k: 2, max_new_tokens: 4, lora_rank: 2, reward: {vowels}}}
  - {{stage: evaluate, prompts: {held_out}, samples: 2, max_new_tokens: 4, win_rate: false, gold: "rlaif.metrics:length_words"}}
  - {{stage: compare, resamples: 100}}
"""
VOWELS = "{vowels: {kind: function, function: 'toy_policy:share_of_vowels'}}"


class Cut(Exception):
    """Stands for the end of the process."""


class CutAt(NoProgress):
    """Raises when it hears of a step."""

    def note(self, text: str) -> None:
        if "step 3 of 3" in text:
            raise Cut


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def recipe(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """PPO and best of K from one reward, on the same prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, words in (("prompts", "one two three four"), ("held_out", "five six")):
        text = "".join(json.dumps({"prompt": f"Say {word}."}) + "\n" for word in words.split())
        (folder / f"{name}.jsonl").write_text(text)
    return BOTH.format(
        model=model, prompts=folder / "prompts.jsonl", held_out=folder / "held_out.jsonl", vowels=VOWELS
    )


def run(text: str, out: Path, *overrides: str, progress: NoProgress | None = None) -> Path:
    run_recipe(parse_recipe(text, source="test", overrides=overrides), out=out, progress=progress)
    return out


def cost(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "cost.json").read_text())
    return found


def compared(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "compare" / "comparison.json").read_text())
    return found


@pytest.fixture(scope="module")
def finished(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(recipe, tmp_path_factory.mktemp("run") / "run")


def test_the_study_prints_the_policies_at_equal_tokens_and_at_equal_time(model: Path, tmp_path: Path) -> None:
    """The recipe that asks for it, shortened."""
    stages = [stage.name for stage in load_recipe("recipes/ppo_vs_best_of_k.yaml").stages]
    settings = [
        f"stages.{stage}.{name}={value}" for stage in stages for name, value in SHORT.get(stage, {}).items()
    ]
    overrides = [part for each in (f"model={model}", "dtype=float32", *settings) for part in ("--set", each)]
    said = call("run", "recipes/ppo_vs_best_of_k.yaml", *overrides, "--out", tmp_path / "run")
    assert said.status == 0, said.err
    found = compared(tmp_path / "run")
    assert [each["budget"] for each in found["at_budgets"]] == ["tokens", "seconds"]
    printed = " ".join(said.out.split())
    for each in found["at_budgets"]:
        assert set(each["readings"]) == {"best-of-k", "ppo"}
        assert " ".join(each["words"].split()) in printed
        assert "by the reward-model score of training prompts" in each["words"]
        assert "This is the reward in training, not the held-out measure" in each["words"]
    assert found["endpoints"] == ""


def test_the_curves_are_those_of_the_metrics(finished: Path) -> None:
    history, (first, second, third) = (
        rows(finished / "ppo" / "metrics.jsonl"),
        cost(finished / "ppo")["curve"],
    )
    assert [first["tokens"], second["tokens"]] == [0, history[0]["tokens"]]
    assert third["tokens"] == history[0]["tokens"] + history[1]["tokens"]
    assert [point["value"] for point in (first, second, third)] == [step["reward"] for step in history]
    start, end = cost(finished / "best-of-k")["curve"]
    report = json.loads((finished / "best-of-k" / "report.json").read_text())
    assert (start["tokens"], start["value"]) == (0, report["student"]["start_reward"])
    assert (end["tokens"], end["value"]) == (report["counts"]["tokens"], report["student"]["reward"])
    assert cost(finished / "ppo")["shows"] == "reward of training prompts", (
        "it is no reward model that gives it"
    )


def test_the_comparison_has_the_flops_of_training(finished: Path) -> None:
    found = compared(finished)
    (table,) = [table for table in found["tables"] if table["title"] == "Training"]
    flops = {row[0]: float(row[2]) for row in table["rows"]}
    assert flops == {
        name: pytest.approx(cost(finished / name)["flops"], rel=1e-2) for name in ("ppo", "best-of-k")
    }
    assert all(value > 1e6 for value in flops.values())
    assert [each["budget"] for each in found["at_budgets"]] == ["tokens", "seconds"]


def test_an_interrupted_run_has_the_curve_of_an_undisturbed_one(
    finished: Path, recipe: str, tmp_path: Path
) -> None:
    with pytest.raises(Cut):
        run(recipe, tmp_path / "run", progress=CutAt())
    resumed, whole = (cost(out / "ppo") for out in (run(recipe, tmp_path / "run"), finished))
    for name in ("tokens", "flops", "shows", "basis"):
        assert resumed[name] == whole[name]
    points = [[(point["tokens"], point["value"]) for point in found["curve"]] for found in (resumed, whole)]
    assert points[0] == points[1]


def test_other_sampling_settings_make_curves_that_are_not_compared(recipe: str, tmp_path: Path) -> None:
    found = compared(run(recipe, tmp_path / "run", "stages.ppo.temperature=0.8"))
    assert found["at_budgets"] == []
    assert "shows a reward, or samples, that no other curve does" in found["endpoints"]


def test_a_student_is_evaluated_on_its_own_base(recipe: str, model: Path, tmp_path: Path) -> None:
    student = save_tiny(tmp_path / "student", "qwen2", seed=3)
    out = run(recipe, tmp_path / "run", f"stages.best-of-k.student={student}")
    policies = {
        each["name"]: each
        for each in json.loads((out / "evaluate" / "evaluation.json").read_text())["policies"]
    }
    assert policies["best-of-k"]["model"].startswith(str(student))
    assert policies["ppo"]["model"].startswith(str(model))
    assert policies["best-of-k"]["rows"]["texts"] != policies["start"]["rows"]["texts"]
    found = compared(out)
    assert "there is no training curve of `best-of-k`" in found["endpoints"]
    assert found["training"]["best-of-k"]["flops"] > 0


def test_the_costs_come_along_when_policies_of_other_runs_are_evaluated(
    finished: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "Say seven."}\n{"prompt": "Say eight."}\n')
    said = call(
        "evaluate",
        "--policy",
        finished / "ppo",
        "--policy",
        finished / "best-of-k",
        "--model",
        model,
        "--dtype",
        "float32",
        "--prompts",
        tmp_path / "asked.jsonl",
        "--no-win-rate",
        "--gold",
        "rlaif.metrics:length_words",
        "--samples",
        2,
        "--max-new-tokens",
        4,
        "--out",
        tmp_path / "e",
    )
    assert said.status == 0, said.err
    said = call("compare", tmp_path / "e" / "evaluate" / "evaluation.json", "--out", tmp_path / "c")
    assert said.status == 0, said.err
    assert compared(tmp_path / "c")["training"] == compared(finished)["training"]
    assert "generated tokens of training, by the reward of training prompts" in " ".join(said.out.split())
