"""Two processes on gloo do what one does: the same completions and labels, and the same adapters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from spine import call, rows
from tiny import save_tiny
from two_ranks import KILLED_ONCE, PPO, RAISES, TESTS, run_in_two, same_weights, write_recipe

from rlaif.runs.run import RunFolder, read_run

STAGES = ("sample", "label", "reward", "best-of-k", "ppo", "grpo", "dpo", "evaluate")
TRAINED = ("reward/model/adapter-0", "best-of-k/adapter", "ppo/adapter", "grpo/adapter", "dpo/adapter")
EVERYTHING = """
name: ranks
model: {model}
dtype: float32
stages:
  - {{stage: sample, prompts: "builtin:everyday", limit: 7, k: 3, max_new_tokens: 6}}
  - {{stage: label, min_label_share: 0.0}}
  - {{stage: reward, lora_rank: 2, keep: lora, uninformative: allow}}
  - {{stage: best_of_k, name: best-of-k, limit: 5, k: 3, max_new_tokens: 4, lora_rank: 2}}
  - stage: ppo
    limit: 5
    steps: 2
    episodes: 7
    epochs: 2
    minibatches: 2
    whiten_rewards: true
    max_new_tokens: 6
    lora_rank: 2
    reward:
      model: {{kind: model}}
      vowels: {{kind: function, function: "toy_policy:share_of_vowels"}}
  - stage: grpo
    limit: 5
    steps: 2
    episodes: 6
    samples_per_prompt: 2
    keep_drawing: true
    max_new_tokens: 6
    lora_rank: 2
    reward: {{vowels: {{kind: function, function: "toy_policy:share_of_vowels"}}}}
  - {{stage: dpo, lora_rank: 2, uninformative: allow}}
  - {{stage: evaluate, limit: 5, samples: 2, max_new_tokens: 6}}
"""
TUNED = """
name: tuned
model: {model}
dtype: float32
stages:
  - {{stage: revise, limit: 4, rounds: 1, max_new_tokens: 4}}
  - {{stage: sft, lora_rank: 2, max_overlong: 0.5}}
  - {{stage: sample, prompts: "builtin:everyday", limit: 3, k: 2, max_new_tokens: 6}}
"""
LAUNCHER_TOO = KILLED_ONCE.replace(
    "        os.kill(os.getpid()",
    "        os.kill(os.getppid(), signal.SIGKILL)\n        os.kill(os.getpid()",
)
ONE_CANNOT = """
import os

if os.environ.get("RANK") == "1":
    raise ValueError("not here")

def reward(prompt, completion):
    return 1.0
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), context=8192)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, Path]:
    """The run folders of one process and of two."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = write_recipe(folder, EVERYTHING, model=model)
    one, two = folder / "one" / "run", folder / "two" / "run"
    said = call("run", recipe, "--out", one)
    assert said.status == 0, said.err
    done = run_in_two(recipe, two)
    assert done.returncode == 0, done.stderr
    return one, two


def test_completions_and_labels_are_the_same_bytes(both: tuple[Path, Path]) -> None:
    one, two = both
    for file in ("sample/completions.jsonl", "label/preferences.jsonl", "label/verdicts.jsonl"):
        assert (two / file).read_bytes() == (one / file).read_bytes(), file


@pytest.mark.parametrize("adapter", TRAINED)
def test_a_stage_trains_the_same_adapter(both: tuple[Path, Path], adapter: str) -> None:
    one, two = both
    same_weights(one / adapter / "adapter_model.safetensors", two / adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("file", ["best-of-k/kept.jsonl", "ppo/completions.jsonl", "grpo/completions.jsonl"])
def test_training_samples_the_same_completions(both: tuple[Path, Path], file: str) -> None:
    mine, theirs = (rows(run / file) for run in both)
    texts = [[row.get("completion", row.get("text")) for row in table] for table in (mine, theirs)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_metrics_are_those_of_all_ranks(both: tuple[Path, Path], stage: str) -> None:
    mine, theirs = (rows(run / stage / "metrics.jsonl") for run in both)
    for one, two in zip(mine, theirs, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            # Passes share less of their prompts where they have fewer rows, and so compute more.
            if value is not None and not name.startswith("seconds") and name != "flops":
                assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_policies_measure_the_same(both: tuple[Path, Path]) -> None:
    mine, theirs = (json.loads((run / "evaluate" / "evaluation.json").read_text()) for run in both)
    for one, two in zip(mine["policies"], theirs["policies"], strict=True):
        for name, estimate in one["estimates"].items():
            assert two["estimates"][name]["value"] == pytest.approx(estimate["value"], abs=1e-4), name


def test_the_first_rank_alone_writes_and_speaks(both: tuple[Path, Path]) -> None:
    one, two = both
    names = {
        run: {
            str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != ".lock"
        }
        for run in both
    }
    assert names[one] == names[two]
    assert read_run(two).status == "finished"
    assert read_run(two).stages == STAGES


def test_a_merged_base_is_the_same_on_all_ranks(tmp_path: Path, model: Path) -> None:
    recipe = write_recipe(tmp_path, TUNED, model=model)
    said = call("run", recipe, "--out", tmp_path / "one")
    assert said.status == 0, said.err
    done = run_in_two(recipe, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    adapter = "sft/adapter/adapter_model.safetensors"
    same_weights(tmp_path / "one" / adapter, tmp_path / "two" / adapter)
    mine, theirs = (rows(tmp_path / run / "sample" / "completions.jsonl") for run in ("one", "two"))
    assert [row["completion"] for row in mine] == [row["completion"] for row in theirs]


def test_a_killed_rank_ends_the_run_which_goes_on_with_one(tmp_path: Path, model: Path) -> None:
    (tmp_path / "own.py").write_text(KILLED_ONCE)
    recipe = write_recipe(tmp_path, PPO, model=model, function="own:reward")
    killed = run_in_two(recipe, tmp_path / "run")
    assert killed.returncode == 1
    assert killed.stderr.count("error:") == 1
    assert "rank 0 of 2 was killed by signal 9" in killed.stderr
    assert "Traceback" not in killed.stderr
    assert (tmp_path / "run" / ".work-ppo" / "step-000002").is_dir()
    # On with one process, from the checkpoint of two.
    paths = os.pathsep.join([str(TESTS.parent), str(tmp_path)])
    for out in ("run", "undisturbed"):
        done = subprocess.run(
            [sys.executable, "-m", "rlaif", "run", str(recipe), "--out", str(tmp_path / out)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "run" / "ppo" / "metrics.jsonl")) == 4
    adapter = "ppo/adapter/adapter_model.safetensors"
    same_weights(tmp_path / "undisturbed" / adapter, tmp_path / "run" / adapter)


def test_a_rank_speaks_where_its_launcher_is_gone_and_leaves_nothing_for_ever(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    (tmp_path / "own.py").write_text(LAUNCHER_TOO)
    recipe = write_recipe(tmp_path, PPO, model=model, function="own:reward")
    killed = run_in_two(recipe, tmp_path / "run")
    assert killed.returncode == -signal.SIGKILL
    assert killed.stderr.count("error:") == 1
    assert "one of the 2 ranks ended without a word" in killed.stderr
    assert "Traceback" not in killed.stderr
    abandoned = temporary / "rlaif-rank-killed"
    with pytest.raises(KeyboardInterrupt), RunFolder.open(abandoned):
        raise KeyboardInterrupt
    again = run_in_two(recipe, tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert not list(temporary.glob("rlaif-rank-*"))


@pytest.mark.parametrize(("code", "said"), [(ONE_CANNOT, "not here"), (RAISES, "no reward today")])
def test_an_error_on_a_rank_is_told_once(tmp_path: Path, model: Path, code: str, said: str) -> None:
    (tmp_path / "own.py").write_text(code)
    recipe = write_recipe(tmp_path, PPO, model=model, function="own:reward")
    done = run_in_two(recipe, tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
