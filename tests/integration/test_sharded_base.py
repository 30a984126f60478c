"""Two processes on gloo with a base in parts do what they do with a whole one each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from spine import rows
from tiny import save_tiny
from two_ranks import KILLED_ONCE, PPO, RAISES, TESTS, run_in_two, same_weights, write_recipe

from rlaif.config import load_recipe
from rlaif.errors import ConfigError

STAGES = """
name: sharded
model: {model}
dtype: float32
shard_base: {shard}
stages:
  - {{stage: revise, limit: 4, rounds: 1, max_new_tokens: 4}}
  - {{stage: sft, lora_rank: 2, max_overlong: 0.5}}
  - {{stage: sample, prompts: "builtin:everyday", limit: 5, k: 3, max_new_tokens: 6}}
  - {{stage: label, min_label_share: 0.0}}
  - {{stage: reward, lora_rank: 2, keep: lora, uninformative: allow}}
  - {{stage: best_of_k, name: best-of-k, limit: 5, k: 3, max_new_tokens: 4, lora_rank: 2}}
  - stage: grpo
    limit: 5
    steps: 2
    episodes: 6
    samples_per_prompt: 2
    max_new_tokens: 6
    lora_rank: 2
    reward: {{vowels: {{kind: function, function: "toy_policy:share_of_vowels"}}}}
  - stage: ppo
    limit: 5
    steps: 2
    episodes: 7
    epochs: 2
    minibatches: 2
    value: adapter
    gradient_checkpointing: true
    max_new_tokens: 6
    lora_rank: 2
    reward:
      model: {{kind: model}}
      vowels: {{kind: function, function: "toy_policy:share_of_vowels"}}
  - {{stage: dpo, lora_rank: 2, uninformative: allow}}
  - {{stage: evaluate, limit: 3, samples: 2, max_new_tokens: 6}}
"""
TRAINED = (
    "sft/adapter",
    "reward/model/adapter-0",
    "best-of-k/adapter",
    "ppo/adapter",
    "grpo/adapter",
    "dpo/adapter",
)
SAMPLED = ("revise", "sample", "best-of-k", "ppo", "grpo", "evaluate")
FILES = {"revise": "revisions.jsonl", "best-of-k": "kept.jsonl"}
TEXTS = ("completion", "text", "initial", "rounds")


def in_two(*arguments: Path) -> None:
    """`tests/sharded.py` in two processes."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node",
            "2",
            TESTS / "sharded.py",
            *arguments,
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), context=8192)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, Path]:
    """The run folders with a whole base on each rank, and with one in parts."""
    folders = [tmp_path_factory.mktemp(name) for name in ("whole", "sharded")]
    recipes = [
        write_recipe(folder, STAGES, model=model, shard=shard)
        for folder, shard in zip(folders, ("false", "true"), strict=True)
    ]
    in_two(folders[0], *recipes)
    return folders[0] / "run", folders[1] / "run"


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two ranks found."""
    folder = tmp_path_factory.mktemp("cases")
    in_two(folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("adapter", TRAINED)
def test_a_stage_trains_the_same_adapter(both: tuple[Path, Path], adapter: str) -> None:
    one, two = (run / adapter / "adapter_model.safetensors" for run in both)
    same_weights(one, two)


@pytest.mark.parametrize("stage", SAMPLED)
def test_a_stage_samples_the_same_completions(both: tuple[Path, Path], stage: str) -> None:
    tables = [rows(run / stage / FILES.get(stage, "completions.jsonl")) for run in both]
    texts = [[[row[name] for name in TEXTS if name in row] for row in table] for table in tables]
    assert texts[0] == texts[1]
    assert all(texts[0])
    assert len(texts[0]) > 2


def test_labels_are_the_same_bytes(both: tuple[Path, Path]) -> None:
    one, two = both
    for file in ("label/preferences.jsonl", "label/verdicts.jsonl"):
        assert (two / file).read_bytes() == (one / file).read_bytes(), file


def test_policies_measure_the_same(both: tuple[Path, Path]) -> None:
    mine, theirs = (json.loads((run / "evaluate" / "evaluation.json").read_text()) for run in both)
    assert len(mine["policies"]) > 4
    for one, two in zip(mine["policies"], theirs["policies"], strict=True):
        for name, estimate in one["estimates"].items():
            assert two["estimates"][name]["value"] == pytest.approx(estimate["value"], abs=1e-4), name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_ranks_that_make_different_numbers_of_passes_compute_what_one_does(
    cases: list[dict[str, Any]], kind: str
) -> None:
    gaps = [found[f"uneven {kind}"] for found in cases]
    assert [len(each) for each in gaps] == [6, 7]
    assert max(max(each) for each in gaps) < 1e-5


@pytest.mark.parametrize("case", ["merged odd", "merged gpt2", "failing pass", "mixed"])
def test_both_ranks_hold_the_weights_of_a_whole_model(cases: list[dict[str, Any]], case: str) -> None:
    for found in cases:
        assert max(found[case]) < 1e-5


def test_a_rank_holds_half_of_the_layers(cases: list[dict[str, Any]]) -> None:
    for held, all_of_them in (found["held"] for found in cases):
        embeddings = 270 * 48 + 48
        assert held == embeddings + (all_of_them - embeddings) // 2


def test_a_backward_pass_out_of_turn_is_refused(cases: list[dict[str, Any]]) -> None:
    assert all("a backward pass came after something else" in found["late"] for found in cases)


def test_a_pass_ends_when_another_rank_does(cases: list[dict[str, Any]]) -> None:
    assert [found["gone"] for found in cases] == ["rank 1 of 2 ended with an error", "left"]


@pytest.mark.parametrize(
    ("code", "said"), [(RAISES, "no reward today"), (KILLED_ONCE, "rank 0 of 2 was killed by signal 9")]
)
def test_the_end_of_a_rank_is_told_once(tmp_path: Path, model: Path, code: str, said: str) -> None:
    (tmp_path / "own.py").write_text(code)
    recipe = write_recipe(tmp_path, "shard_base: true" + PPO, model=model, function="own:reward")
    done = run_in_two(recipe, tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_base_in_4_bits_is_not_sharded(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "shard_base: true\nstages:\n  - {stage: sample}\n  - {stage: label}\n  - {stage: reward, quantization: 4bit}\n"
    )
    with pytest.raises(ConfigError, match="4-bit weights are not cut into parts"):
        load_recipe(str(recipe))
