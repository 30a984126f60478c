"""Directives through the stages that train, on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from spine import call, rows
from tiny import save_tiny
from toy_policy import GROUPS, toy_base, vowels
from toy_policy import prompts as toy_prompts

from rlaif.config import parse_recipe
from rlaif.config.grpo import GrpoConfig
from rlaif.directives.load import parse_directives
from rlaif.directives.training import DirectiveReward, steer
from rlaif.engines.base import LabelRequest
from rlaif.engines.scripted import ScriptedEngine
from rlaif.errors import ConfigError
from rlaif.pipeline.run import RunResult, run_recipe
from rlaif.prompts import PromptLibrary
from rlaif.rl.step import StepReport
from rlaif.stages.grpo import train_grpo

pytestmark = pytest.mark.usefixtures("one_thread")
RULES = """
directives:
  - {id: short, when: {always: true}, prior: Be short., question: Is the response short?}
"""
TRAIN = "episodes: 8, samples_per_prompt: 2, steps: 2, max_new_tokens: 4, lora_rank: 2"


def prompts(folder: Path, name: str, *, count: int = 8) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"{name}{n}", "prompt": f"{name} {n}?"}) + "\n" for n in range(count))
    )
    return path


def run(folder: Path, stages: str, *, rules: str = RULES) -> RunResult:
    (folder / "d.yaml").write_text(rules)
    if not (folder / "model").exists():
        save_tiny(folder / "model")
    text = f"model: {folder / 'model'}\ndtype: float32\nconstitution: warmth\nstages:\n{stages}"
    return run_recipe(parse_recipe(text, source="r.yaml"), out=folder / "run")


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_share_is_asked_under_the_prior_and_rewarded_by_the_question(stage: str, tmp_path: Path) -> None:
    reward = (
        "reward: {d: {kind: directives, min_label_share: 0}, l: {kind: length, max_words: 2, weight: 0.1}}"
    )
    stages = (
        f"  - {{stage: {stage}, prompts: {prompts(tmp_path, 'train')}, {TRAIN}, {reward}, "
        f"directives: {{path: {tmp_path / 'd.yaml'}, share: 0.5}}}}"
    )
    done = run(tmp_path, stages).stages[0]
    samples = rows(done.folder / "completions.jsonl")
    roles = {sample["prompt"][0]["role"] for sample in samples}
    assert roles == {"system", "user"}
    assert {s["prompt"][0]["content"] for s in samples if s["prompt"][0]["role"] == "system"} == {"Be short."}
    steps = rows(done.folder / "metrics.jsonl")
    assert all(step["reward/d"] != 0 for step in steps)
    card = (done.folder / "adapter" / "README.md").read_text("utf-8")
    assert "asked directly" in card
    again = run(tmp_path, stages)
    assert again.stages[0].skipped
    said = call(
        "directives",
        "test",
        tmp_path / "d.yaml",
        *("--prompts", prompts(tmp_path, "held"), "--model", tmp_path / "model", "--policy", done.folder),
        *("--judge", "scripted", "--max-new-tokens", 4, "--dtype", "float32", "--out", tmp_path / "tried"),
    )
    assert said.status == 0, said.err
    (tried,) = (tmp_path / "tried").glob("directives-test-*.json")
    assert json.loads(tried.read_text("utf-8"))["applied"] == {"short": 8}
    other = run(tmp_path, stages, rules=RULES.replace("response short", "response brief"))
    assert not other.stages[0].skipped


def test_completions_sampled_under_a_prior_are_learned_with_it(tmp_path: Path) -> None:
    """Context distillation of the plain kind: the prior is shown in sampling, and stays in the prompt."""
    sampled = run(
        tmp_path,
        f"  - {{stage: sample, prompts: {prompts(tmp_path, 'asked')}, k: 1, max_new_tokens: 4, "
        f"directives: {{path: {tmp_path / 'd.yaml'}, share: 1}}}}",
    ).stages[0]
    found = rows(sampled.folder / "completions.jsonl")
    assert len(found) == 8
    assert all(row["prompt"][0] == {"role": "system", "content": "Be short."} for row in found)
    tuned = run_recipe(
        parse_recipe(
            f"model: {tmp_path / 'model'}\ndtype: float32\nconstitution: warmth\nstages:\n"
            f"  - {{stage: sft, files: [{sampled.folder / 'completions.jsonl'}], lora_rank: 2, epochs: 1}}",
            source="s.yaml",
        ),
        out=tmp_path / "tuned",
    ).stages[0]
    assert (tuned.folder / "adapter").is_dir()


OPPOSED = parse_directives(
    """
directives:
  - {id: vowels, when: {always: true}, prior: aaaaaa, question: Does the response have vowels only?}
  - {id: others, when: {always: true}, prior: kkkkkk, question: Does the response have no vowels?}
""",
    source="d.yaml",
)


def by_the_share_of_vowels(request: LabelRequest) -> tuple[float, float]:
    """A judge of both questions."""
    text = request.messages[1].content
    share = vowels(text.partition("<response>\n")[2].partition("\n</response>")[0])
    wanted = 0.05 + 0.9 * (share if "vowels only" in text else 1 - share)
    return math.log(wanted), math.log(1 - wanted)


def test_a_policy_learns_to_do_what_the_prior_says() -> None:
    """One adapter, the same prompts, two opposite priors: only a policy that reads the prior is rewarded for
    both."""
    base, seen = toy_base(), []
    found = steer(toy_prompts(24), OPPOSED, share=1, seed=0, asked=True, where="d.yaml")
    judge = ScriptedEngine(labels=by_the_share_of_vowels)
    train_grpo(
        found.prompts,
        base=base,
        reward=DirectiveReward(judge, PromptLibrary(), found.under),
        config=GrpoConfig(**GROUPS | {"steps": 24}),
        seed=0,
        on_rollout=seen.append,
    )

    def share(report: StepReport, id: str) -> float:
        texts = [
            row.completion.text
            for row in report.episodes.rows
            if found.under[row.prompt.fingerprint()][0].id == id
        ]
        return sum(map(vowels, texts)) / len(texts) if texts else math.nan

    last = [(share(report, "vowels"), share(report, "others")) for report in seen[-4:]]
    assert all(following > opposing for following, opposing in last if opposing == opposing)
    rewards = [report.metrics["reward/directives"] for report in seen]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:2]) / 2 + 1.0, (rewards, last)


def test_a_file_that_cannot_be_used_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    stages = (
        f"  - {{stage: grpo, prompts: {prompts(tmp_path, 'train')}, reward: {{d: {{kind: directives}}}}, "
        f"directives: {{path: {tmp_path / 'd.yaml'}}}}}"
    )
    with pytest.raises(ConfigError, match="directive `a` does nothing"):
        run(tmp_path, stages, rules="directives: [{id: a, when: {always: true}}]")
