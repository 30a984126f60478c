"""The training stages from end to end on a tiny model: the recipes that ship, resumption, merging, and bad
input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from spine import call, rows
from tiny import save_tiny

from rlaif.config import load_recipe, parse_recipe
from rlaif.config.ppo import PpoConfig
from rlaif.errors import ConfigError, DataError, ModelError
from rlaif.jobs.context import RunContext
from rlaif.jobs.merging import merge_adapter
from rlaif.jobs.ppo import PpoJob
from rlaif.models.shared_base import SharedBase
from rlaif.pipeline.run import RunResult, run_recipe
from rlaif.progress import NoProgress
from rlaif.runs.journal import Journal

JUDGE = "scripted:spine:swift"
SHORT = {
    "revise": {"limit": 4, "rounds": 1, "max_new_tokens": 4, "policy": JUDGE},
    "sft": {"lora_rank": 2},
    "sample": {"limit": 8, "k": 3, "max_new_tokens": 6},
    "label": {"judge": JUDGE},
    "audit": {"variants": 2},
    "reward": {"lora_rank": 2, "quantization": "none"},
    "best-of-k": {"limit": 4, "k": 2, "max_new_tokens": 4, "lora_rank": 2},
    "ppo": {"limit": 4, "steps": 2, "episodes": 4, "max_new_tokens": 4, "lora_rank": 2},
    "grpo": {
        "limit": 4,
        "steps": 2,
        "episodes": 4,
        "samples_per_prompt": 2,
        "max_new_tokens": 4,
        "lora_rank": 2,
    },
    "dpo": {"lora_rank": 2},
    "evaluate": {"limit": 3, "samples": 2, "max_new_tokens": 4, "judge": JUDGE},
    "compare": {"resamples": 100},
}
LONE_PPO = """
name: alone
model: {model}
dtype: float32
stages:
  - stage: ppo
    prompts: {prompts}
    steps: 4
    episodes: 4
    max_new_tokens: 4
    lora_rank: 2
    checkpoint_every: 1
    reward: {{vowels: {{kind: function, function: toy_policy:share_of_vowels}}}}
"""
LONE_GRPO = LONE_PPO.replace("stage: ppo", "stage: grpo\n    samples_per_prompt: 2\n    keep_drawing: true")


class Cut(Exception):
    """Stands for the end of the process."""


class CutAt(NoProgress):
    """Raises when it hears of a step."""

    def __init__(self, text: str) -> None:
        self.text = text

    def note(self, text: str) -> None:
        if self.text in text:
            raise Cut


class Notes(NoProgress):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts that are short for a tokenizer of bytes."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"Say {word}."}) + "\n"
            for word in ["one", "two", "three", "four", "five", "six"]
        )
    )
    return path


def shortened(recipe: str, model: Path) -> list[str]:
    """`--set` arguments that make a shipped recipe short enough for a test."""
    stages = {stage.name for stage in load_recipe(recipe).stages}
    settings = [f"stages.{stage}.{name}={value}" for stage in stages for name, value in SHORT[stage].items()]
    return [part for each in (f"model={model}", "dtype=float32", *settings) for part in ("--set", each)]


def run(text: str, out: Path, *overrides: str, progress: NoProgress | None = None) -> RunResult:
    return run_recipe(parse_recipe(text, source="test", overrides=overrides), out=out, progress=progress)


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def full(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


# The recipes that ship --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The constitutional recipe, run; its folder, and what it printed."""
    out = tmp_path_factory.mktemp("chain") / "run"
    said = call(
        "run", "recipes/constitutional.yaml", *shortened("recipes/constitutional.yaml", model), "--out", out
    )
    assert said.status == 0, said.err
    return out, said.out + said.err


def test_the_whole_chain_prints_its_tables_and_its_memory(chain: tuple[Path, str]) -> None:
    out, said = chain
    tables = ("head on frozen features", "first and last step", "Differences", "judge's win rate")
    for part in (*tables, "peak (estimate)", "step 2 of 2"):
        assert part in said, part
    for stage in ("sft", "ppo"):
        assert (out / stage / "adapter" / "README.md").is_file()
    verdict = json.loads((out / "compare" / "comparison.json").read_text())["verdict"]
    assert all(sentence in said for sentence in verdict)


def test_an_evaluation_keeps_what_was_asked_and_what_the_judge_said(chain: tuple[Path, str]) -> None:
    out, said = chain
    evaluated = out / "evaluate"
    verdicts, pairs = rows(evaluated / "verdicts.jsonl"), rows(evaluated / "pairs.jsonl")
    texts: dict[str, list[str]] = {}
    for row in rows(evaluated / "completions.jsonl"):
        assert row["prompt"][-1]["role"] == "user"
        texts.setdefault(f"{row['policy']}/{row['prompt_id']}", []).append(row["completion"])
    assert pairs
    for pair in pairs:
        mine = [each for each in verdicts if each["comparison_id"] == pair["id"]]
        assert {each["order"] for each in mine} == {"ab", "ba"}
        policy, _, number = pair["id"].rpartition("/")
        ours = pair["chosen"][0]["content"] == texts[policy][int(number)]
        assert pair["p_chosen"] == 0.5 or (sum(each["logit_a"] for each in mine) > 0) == ours
    assert f"report: {out / 'report.html'}" in said
    assert (out / "report.html").read_text(encoding="utf-8").count("<figure>") == 5


def merged(model: Path, adapter: Path) -> SharedBase:
    base = SharedBase.load(str(model), dtype="float32")
    base.load_adapter("merged", adapter)
    base.merge("merged")
    return base


def test_after_sft_every_later_stage_starts_from_the_policy_that_it_made(
    chain: tuple[Path, str], model: Path
) -> None:
    out, _ = chain
    parts = {
        name: json.loads((out / name / "manifest.json").read_text())["parts"]
        for name in ("sft", "reward", "ppo", "evaluate")
    }
    assert parts["sft"]["base"] != parts["ppo"]["base"]
    assert parts["reward"]["base"] == parts["ppo"]["base"] == parts["evaluate"]["base"]
    tuned = merged(model, out / "sft" / "adapter")
    assert tuned.identity == parts["ppo"]["base"]
    policies = json.loads((out / "evaluate" / "evaluation.json").read_text())["policies"]
    assert [policy["name"] for policy in policies] == ["start", "ppo"]
    assert not torch.equal(logits(tuned.model), logits(full(model)))


def test_an_adapter_trained_after_sft_is_refused_on_the_model_before_it(
    chain: tuple[Path, str], model: Path, tmp_path: Path
) -> None:
    out, _ = chain
    said = call(
        "evaluate",
        "--policy",
        out / "ppo",
        "--model",
        model,
        "--no-win-rate",
        "--dtype",
        "float32",
        "--out",
        tmp_path / "e",
    )
    assert said.status == 1
    assert "trained on other weights" in said.err
    assert "SFT stage" in said.err


def test_a_finished_chain_is_skipped_and_its_reward_model_is_read_from_its_folder(
    chain: tuple[Path, str], model: Path
) -> None:
    out, _ = chain
    overrides = [each for each in shortened("recipes/constitutional.yaml", model) if each != "--set"]
    before = (out / "reward" / "manifest.json").stat().st_mtime_ns
    notes = Notes()
    recipe = load_recipe("recipes/constitutional.yaml", [*overrides, "stages.ppo.steps=1"])
    result = run_recipe(recipe, out=out, progress=notes)
    assert {stage.config.name: stage.skipped for stage in result.stages} == {
        "revise": True,
        "sft": True,
        "sample": True,
        "audit": True,
        "label": True,
        "reward": True,
        "ppo": False,
        "evaluate": False,
        "compare": False,
    }
    assert (out / "reward" / "manifest.json").stat().st_mtime_ns == before
    assert any("since settings changed" in line for line in notes.lines)
    assert not any(line.startswith("reward: memory") for line in notes.lines)


@pytest.mark.parametrize("name", ["ppo_vs_best_of_k", "dpo", "gpu_8b", "gpu_70b"])
def test_the_recipes_run_shortened(name: str, model: Path, tmp_path: Path) -> None:
    recipe = f"recipes/{name}.yaml"
    said = call("run", recipe, *shortened(recipe, model), "--out", tmp_path / "run")
    assert said.status == 0, said.err
    assert "Differences" in said.out
    if any(stage.stage == "best_of_k" for stage in load_recipe(recipe).stages):
        assert "reward of the best" in said.out


def test_the_memory_of_a_recipe_is_told_without_loading_it(model: Path) -> None:
    said = call("memory", "recipes/constitutional.yaml", *shortened("recipes/constitutional.yaml", model))
    assert said.status == 0, said.err
    heads = [line for line in said.out.splitlines() if not line.startswith(" ")]
    assert [
        line for line in heads if line in ("sft (sft)", "reward (reward)", "ppo (ppo)", "evaluate (evaluate)")
    ] == ["sft (sft)", "reward (reward)", "ppo (ppo)", "evaluate (evaluate)"]
    assert heads[-1].startswith("the whole run: ")
    assert "as it was before fine-tuning" in said.out
    assert "adapter policy" in said.out


# Adapters and full models -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(model: Path, asked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stage folder of a policy that `rlaif ppo --merge` left."""
    out = tmp_path_factory.mktemp("policy") / "run"
    said = call(
        "ppo",
        "--model",
        model,
        "--dtype",
        "float32",
        "--reward-function",
        "toy_policy:share_of_vowels",
        "--prompts",
        asked,
        "--steps",
        2,
        "--episodes",
        4,
        "--max-new-tokens",
        4,
        "--set",
        "learning_rate=0.01",
        "--set",
        "lora_rank=2",
        "--out",
        out,
        "--merge",
    )
    assert said.status == 0, said.err
    assert "the full model is in" in said.err
    return out / "ppo"


# PEFT 0.21 asks transformers for it.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_two_lines_load_the_adapter_and_one_the_full_model(policy: Path, model: Path) -> None:
    base = SharedBase.load(str(model), dtype="float32")
    base.load_adapter("policy", policy / "adapter")
    with base.role("policy"):
        ours = logits(base.model)
    start = full(model)
    assert not torch.equal(ours, logits(start))
    assert torch.allclose(logits(PeftModel.from_pretrained(full(model), policy / "adapter")), ours, atol=1e-5)
    start.load_adapter(str(policy / "adapter"))
    assert torch.allclose(logits(start), ours, atol=1e-5)
    assert torch.allclose(logits(full(policy / "merged")), ours, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained(policy / "merged").chat_template


def test_merging_after_sft_folds_in_both_adapters(chain: tuple[Path, str], model: Path) -> None:
    out, _ = chain
    said = call("push", out / "sft", "me/nothing", "--merge", "--dry-run")
    assert "adapter_model.safetensors" in said.out
    assert "nothing was uploaded" in said.out
    base = merged(model, out / "sft" / "adapter")
    base.load_adapter("policy", out / "ppo" / "adapter")
    with base.role("policy"):
        ours = logits(base.model)
    assert torch.allclose(logits(full(merge_adapter(out / "ppo" / "adapter"))), ours, atol=1e-4)


def test_policies_of_one_name_are_told_apart(policy: Path, model: Path, asked: Path, tmp_path: Path) -> None:
    said = call(
        "evaluate",
        "--policy",
        policy,
        "--policy",
        policy / "adapter" / ".." / ".." / "ppo",
        "--model",
        model,
        "--dtype",
        "float32",
        "--prompts",
        asked,
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
    assert "length_words (gold)" in said.out
    compared = call("compare", tmp_path / "e" / "evaluate" / "evaluation.json", "--out", tmp_path / "c")
    assert compared.status == 0, compared.err
    assert "No single winner" in compared.out or "Winner" in compared.out


@pytest.mark.parametrize(("command", "key"), [("sft", "--data"), ("dpo", "--preferences")])
def test_the_small_commands_train_on_a_file(command: str, key: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs() + pairs(4)))
    said = call(
        command,
        key,
        tmp_path / "rows.jsonl",
        "--model",
        model,
        "--dtype",
        "float32",
        "--set",
        "lora_rank=2",
        "--out",
        tmp_path / "run",
        "--merge",
    )
    assert said.status == 0, said.err
    assert (tmp_path / "run" / command / "merged" / "README.md").is_file()


def test_best_of_k_from_the_command_line(model: Path, asked: Path, tmp_path: Path) -> None:
    said = call(
        "best-of-k",
        "--reward-function",
        "toy_policy:share_of_vowels",
        "--prompts",
        asked,
        "--k",
        4,
        "--max-new-tokens",
        4,
        "--model",
        model,
        "--dtype",
        "float32",
        "--set",
        "lora_rank=2",
        "--out",
        tmp_path / "run",
    )
    assert said.status == 0, said.err
    assert "reward of the best" in said.out
    assert set(json.loads((tmp_path / "run" / "best-of-k" / "report.json").read_text())) == {
        "rounds",
        "student",
        "counts",
    }


# Resumption -------------------------------------------------------------------------------------------------


def test_a_value_function_with_an_adapter_leaves_the_base_to_later_stages(
    model: Path, asked: Path, tmp_path: Path
) -> None:
    """It stayed on the base once, trainable, and the next stage refused to train beside it."""
    first, _, then = LONE_PPO.replace("stage: ppo", "stage: ppo\n    value: adapter").partition("stages:")
    own = LONE_GRPO.partition("stages:")[2]
    text = f"{first}stages:{then}{own}".format(model=model, prompts=asked)
    stages = run(text, tmp_path / "run").stages
    assert [stage.folder.name for stage in stages] == ["ppo", "grpo"]
    assert all((stage.folder / "adapter").is_dir() for stage in stages)


@pytest.mark.parametrize("recipe", [LONE_PPO, LONE_GRPO], ids=["ppo", "grpo"])
def test_a_stage_that_was_cut_off_ends_as_an_undisturbed_one(
    model: Path, asked: Path, tmp_path: Path, recipe: str
) -> None:
    text = recipe.format(model=model, prompts=asked)
    whole = run(text, tmp_path / "whole" / "run").stages[0].folder
    with pytest.raises(Cut):
        run(text, tmp_path / "cut" / "run", progress=CutAt("step 3 of 4"))
    assert not {"ppo", "grpo"} & {each.name for each in (tmp_path / "cut" / "run").iterdir()}
    resumed = run(text, tmp_path / "cut" / "run").stages[0].folder
    for name in ("adapter_model.safetensors", "adapter_config.json", "rlaif.json", "README.md"):
        assert (resumed / "adapter" / name).read_bytes() == (whole / "adapter" / name).read_bytes()
    told, expected = (
        [without_seconds(row) for row in rows(folder / "metrics.jsonl")] for folder in (resumed, whole)
    )
    assert told == expected
    assert [row["step"] for row in told] == [0, 1, 2, 3]
    assert rows(resumed / "completions.jsonl") == rows(whole / "completions.jsonl")
    assert not list((tmp_path / "cut" / "run").glob(".work-*"))
    counts = json.loads((resumed / "manifest.json").read_text())["counts"]
    assert counts["episodes"] == sum(row["episodes"] for row in told), "what was drawn again counts, too"


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("seconds/")}


# Bad input --------------------------------------------------------------------------------------------------


def pairs(count: int = 8, **changed: Any) -> list[dict[str, Any]]:
    """Preference rows, which are rows for SFT as well."""

    def turn(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    return [
        {
            "id": f"r{number}",
            "prompt": [{"role": "user", "content": f"Say {number} of {count}."}],
            "p_chosen": 0.9,
            "chosen": turn("aei" * (1 + number % 2)),
            "rejected": turn("bcd" * (1 + number % 3)),
            "completion": turn("aei"),
            **changed,
        }
        for number in range(count)
    ]


def reward(folder: Path, model: Path, table: list[dict[str, Any]], *settings: str) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    overrides = [part for each in ("lora_rank=2", *settings) for part in ("--set", each)]
    return call(
        "reward",
        "--preferences",
        folder / "labels.jsonl",
        "--model",
        model,
        "--dtype",
        "float32",
        *overrides,
        "--out",
        folder / "run",
    )


def ppo_with(folder: Path, model: Path, asked: Path, out: Path) -> Any:
    return call(
        "ppo",
        "--reward",
        folder,
        "--model",
        model,
        "--dtype",
        "float32",
        "--prompts",
        asked,
        "--steps",
        4,
        "--episodes",
        4,
        "--max-new-tokens",
        4,
        "--set",
        "lora_rank=2",
        "--out",
        out,
    )


@pytest.fixture(scope="module")
def reward_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    said = reward(folder, model, pairs())
    assert said.status == 0, said.err
    assert "head on frozen features" in said.out
    return folder / "run" / "reward" / "model"


def test_a_reward_model_of_another_base_is_refused(reward_model: Path, asked: Path, tmp_path: Path) -> None:
    said = ppo_with(reward_model, save_tiny(tmp_path / "other", seed=1), asked, tmp_path / "run")
    assert said.status == 1
    assert "was trained on" in said.err
    assert not (tmp_path / "run" / "ppo").exists()


def test_a_reward_model_cut_short_is_refused(
    reward_model: Path, model: Path, asked: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "model"
    cut.mkdir()
    for path in reward_model.iterdir():
        if path.is_file():
            (cut / path.name).write_bytes(path.read_bytes())
    (cut / "heads.safetensors").write_bytes((cut / "heads.safetensors").read_bytes()[:-8])
    said = ppo_with(cut, model, asked, tmp_path / "run")
    assert said.status == 1
    assert "cut short" in said.err
    assert not (tmp_path / "run" / "ppo").exists()


def test_a_reward_model_that_is_not_there_is_told(model: Path, asked: Path, tmp_path: Path) -> None:
    said = ppo_with(tmp_path / "nowhere", model, asked, tmp_path / "run")
    assert said.status == 1
    assert "there is no reward model" in said.err


def test_a_constant_reward_is_refused(model: Path, asked: Path, tmp_path: Path) -> None:
    text = LONE_PPO.format(model=model, prompts=asked)
    constant = "stages.ppo.reward={rule: {kind: length, max_words: 10000}}"
    with pytest.raises(DataError, match="nothing to learn from"):
        run(text, tmp_path / "run", constant, "stages.ppo.missing_eos_penalty=0")
    assert not (tmp_path / "run" / "ppo").exists()


@pytest.mark.parametrize("command", ["reward", "dpo"])
def test_labels_that_are_no_numbers_are_refused_with_their_rows(
    command: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*pairs(), *pairs(1, p_chosen=float("nan"))])
    )
    said = call(
        command, "--preferences", tmp_path / "labels.jsonl", "--model", model, "--out", tmp_path / "run"
    )
    assert said.status == 1
    assert "9" in said.err
    assert not (tmp_path / "run" / command).exists()


def test_prompts_used_for_labels_are_refused_for_ppo(model: Path, asked: Path, tmp_path: Path) -> None:
    text = LONE_PPO.format(model=model, prompts=asked).replace(
        "stages:", f"stages:\n  - stage: sample\n    prompts: {asked}"
    )
    with pytest.raises(DataError, match=r"(?s)label.*rl"):
        run(text, tmp_path / "run")
    short = ("stages.sample.k=1", "stages.sample.max_new_tokens=2", "stages.ppo.steps=1")
    run(text, tmp_path / "run", "allow_prompt_overlap=true", *short)


def test_a_stage_without_its_source_is_told(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a revise stage before it"):
        run(f"model: {model}\nstages:\n  - stage: sft\n", tmp_path / "run")
    with pytest.raises(ConfigError, match="no policy to evaluate"):
        run(f"model: {model}\nstages:\n  - stage: evaluate\n", tmp_path / "run")


def test_an_adapter_cut_short_is_refused_at_evaluation(
    policy: Path, model: Path, asked: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    cut.mkdir()
    for path in (policy / "adapter").iterdir():
        content = path.read_bytes()
        (cut / path.name).write_bytes(content[:-10] if path.suffix == ".safetensors" else content)
    stage = f"{{stage: evaluate, policies: [{cut}], win_rate: false, prompts: {asked}}}"
    with pytest.raises(ModelError, match="cannot be read"):
        run(f"model: {model}\nstages: [{stage}]\n", tmp_path / "run")


def test_a_4bit_base_is_refused_where_it_cannot_work(tmp_path: Path) -> None:
    """The setting of the reward stage reaches the base."""
    save_tiny(tmp_path / "model")
    stage = "{stage: reward, quantization: 4bit, files: [{file: p.jsonl}]}"
    text = f"model: {tmp_path / 'model'}\ndevice: cpu\nstages: [{stage}]\n"
    with Journal(tmp_path / "journal.sqlite") as memo:
        context = RunContext(parse_recipe(text, source="r.yaml"), memo=memo, progress=NoProgress())
        with pytest.raises(ConfigError, match="4-bit weights need an NVIDIA GPU"):
            context.bases.get()


def with_bad(folder: Path) -> Path:
    """Rows for every training stage, and three bad ones: not JSON, without an answer, and an identical
    pair."""
    folder.mkdir(parents=True, exist_ok=True)
    good = [json.dumps(row) for row in pairs()]
    same = [{"role": "assistant", "content": " "}]
    bad = [
        "{",
        '{"prompt": "Why?"}',
        json.dumps({**pairs(1)[0], "chosen": same, "rejected": same, "completion": same}),
    ]
    (folder / "rows.jsonl").write_text("\n".join([*good, *bad]) + "\n")
    return folder / "rows.jsonl"


@pytest.mark.parametrize(
    ("command", "key"), [("sft", "--data"), ("dpo", "--preferences"), ("reward", "--preferences")]
)
def test_rows_that_are_left_out_are_counted_in_manifest_and_summary(
    command: str, key: str, model: Path, tmp_path: Path
) -> None:
    rows = with_bad(tmp_path)
    given = (
        command,
        key,
        rows,
        "--model",
        model,
        "--dtype",
        "float32",
        "--set",
        "lora_rank=2",
        "--out",
        tmp_path / "run",
    )
    refused = call(*given)
    assert refused.status == 1
    assert "--skip-bad-rows" in refused.err
    said = call(*given, "--skip-bad-rows")
    assert said.status == 0, said.err
    assert "3 rows left out" in said.err
    assert "3 bad rows" in said.out
    assert json.loads((tmp_path / "run" / command / "manifest.json").read_text())["counts"]["bad_rows"] == 3


def test_pairs_by_people_that_were_learned_from_are_refused(model: Path, tmp_path: Path) -> None:
    shared = [{**row, "p_chosen": 1.0} for row in pairs()[:2]]
    shared[1] |= {"chosen": shared[1]["rejected"], "rejected": shared[1]["chosen"]}  # whoever won
    other = pairs(3)
    (tmp_path / "human.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*other, *shared]))
    said = reward(tmp_path, model, pairs(), f"human={tmp_path / 'human.jsonl'}")
    assert said.status == 1
    assert "2 of 5 pairs of `human` are among the preferences" in said.err


PTX = {
    "text.jsonl": {"prompt": "Say it.", "completion": "aei"},
    "alpaca.jsonl": {"instruction": "Say", "input": "it", "output": "aei"},
    "share.jsonl": {
        "conversations": [{"from": "human", "value": "Say it."}, {"from": "gpt", "value": "aei"}]
    },
    "hh.jsonl": {"prompt": "\n\nHuman: Say it.\n\nAssistant:", "completion": " aei"},
}


def test_ppo_mixes_in_the_forms_that_sft_takes(model: Path, asked: Path, tmp_path: Path) -> None:
    learned = set()
    for name, row in PTX.items():
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        job = ppo_job(tmp_path / name, model, asked)
        learned.add(tuple(entry.completion for entry in job._ptx()))
    assert len(learned) == 1
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match="language-modelling"):
        ppo_job(tmp_path / "bad.jsonl", model, asked)._ptx()


def ppo_job(data: Path, model: Path, asked: Path) -> PpoJob:
    recipe = parse_recipe(
        LONE_PPO.format(model=model, prompts=asked),
        source="r.yaml",
        overrides=[f"stages.ppo.ptx={{data: {data}}}"],
    )
    with Journal(data.with_suffix(".sqlite")) as journal:
        context = RunContext(recipe, memo=journal, progress=NoProgress())
        (config,) = recipe.stages
        assert isinstance(config, PpoConfig)
        return PpoJob(config, context)
