"""What a run finds when it begins again: changed inputs, damaged files, gaps. Nothing is mixed, and nothing
is taken for finished."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from spine import call, environment, rows
from tiny import save_tiny

from rlaif.config import parse_recipe
from rlaif.errors import ConfigError, DataError, ModelError, RlaifError
from rlaif.jobs.learned_rows import pairs_digest, read_preferences
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.pipeline.run import RunResult, _why_again, run_recipe
from rlaif.progress import NoProgress
from rlaif.runs.manifest import MANIFEST, Manifest, damaged_outputs
from rlaif.stages.sample import check_refused_rate

pytestmark = pytest.mark.usefixtures("one_thread")

PPO = """
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
    reward: {{vowels: {{kind: function, function: toy_policy:share_of_vowels, weight: {weight}}}}}
"""


class Cut(Exception):
    """Stands for the end of the process."""


class Notes(NoProgress):
    """Keeps what it hears, and raises when it hears `end`."""

    def __init__(self, end: str = "") -> None:
        self.heard: list[str] = []
        self.end = end

    def note(self, text: str) -> None:
        self.heard.append(text)
        if self.end and self.end in text:
            raise Cut


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"Say {word}."}) + "\n" for word in ("one", "two", "three", "four", "five")
        )
    )
    return path


def run(text: str, out: Path, progress: NoProgress | None = None) -> RunResult:
    return run_recipe(parse_recipe(text, source="test"), out=out, progress=progress)


def test_ppo_does_not_go_on_with_another_reward(model: Path, prompts: Path, tmp_path: Path) -> None:
    before, after = (PPO.format(model=model, prompts=prompts, weight=weight) for weight in (1, -1))
    with pytest.raises(Cut):
        run(before, tmp_path / "cut" / "run", Notes(end="step 3 of 4"))
    notes = Notes()
    mixed = run(after, tmp_path / "cut" / "run", notes).stages[0].folder
    assert any("starts over, since" in line and "rewards changed" in line for line in notes.heard)
    alone = run(after, tmp_path / "alone" / "run").stages[0].folder
    weights = "adapter/adapter_model.safetensors"
    assert (mixed / weights).read_bytes() == (alone / weights).read_bytes()
    assert [row["step"] for row in rows(mixed / "metrics.jsonl")] == [0, 1, 2, 3]
    assert list((tmp_path / "cut" / "run" / "superseded").glob("work-ppo*/step-*"))


def test_an_adapter_may_be_called_as_a_part_of_the_model_is(model: Path, tmp_path: Path) -> None:
    base = SharedBase.load(str(model), dtype="float32")
    for seed, role in enumerate(("model", "policy", "value", "q_proj")):
        base.add_adapter(role, LoraSettings(rank=2), seed=seed)
    states = {role: base.adapter_state(role) for role in base.roles}
    assert len({len(state) for state in states.values()}) == 1
    assert len({id(weight) for role in base.roles for weight in base.trainable(role)}) == sum(
        map(len, states.values())
    )
    for role, state in states.items():
        base.save_adapter(role, tmp_path / role)
        base.load_adapter(f"again-{role}", tmp_path / role)
        assert all(
            torch.equal(state[name], value) for name, value in base.adapter_state(f"again-{role}").items()
        )


def test_a_finished_stage_with_a_damaged_file_runs_again(prompts: Path, tmp_path: Path) -> None:
    command = ("sample", "--policy", "scripted", "--prompts", prompts, "--k", 2, "--out", tmp_path / "run")
    assert call(*command).status == 0
    file = tmp_path / "run" / "sample" / "completions.jsonl"
    whole = file.read_bytes()
    for damage in (whole[:-20], whole.replace(b"one", b"two", 1), None):
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        said = call(*command)
        assert said.status == 0
        assert "runs again, since completions.jsonl" in said.err
        assert file.read_bytes() == whole
    assert "finished before" in call(*command).err


def test_a_stage_killed_before_it_was_noted_is_listed(prompts: Path, tmp_path: Path) -> None:
    command = ("sample", "--policy", "scripted", "--prompts", prompts, "--k", 2, "--out", tmp_path / "run")
    assert call(*command).status == 0
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stages": []}))
    assert call(*command).status == 0
    assert json.loads(path.read_text())["stages"] == ["sample"]


def test_gaps_hand_made_keys_and_changed_files_are_reasons_to_run_again(
    prompts: Path, tmp_path: Path
) -> None:
    call("sample", "--policy", "scripted", "--prompts", prompts, "--k", 2, "--out", tmp_path / "run")
    folder = tmp_path / "run" / "sample"
    manifest = Manifest.read_json(folder / MANIFEST)
    assert _why_again(manifest, folder, manifest.parts) == []
    assert damaged_outputs(folder, manifest) == []
    assert _why_again(replace(manifest, gaps=3), folder, manifest.parts) == ["3 questions got no answer"]
    forged = replace(manifest, parts={**manifest.parts, "seed": "7"})
    assert _why_again(forged, folder, manifest.parts) == ["seed changed"]


@pytest.mark.parametrize(
    ("missing", "asked", "limit", "refused"),
    [(0, 8, 0.1, False), (1, 20, 0.1, False), (2, 8, 0.1, True), (8, 8, 1.0, True), (7, 8, 1.0, False)],
)
def test_too_many_missing_completions_fail(missing: int, asked: int, limit: float, refused: bool) -> None:
    reasons = ["transient:timeout"] * missing
    if not refused:
        check_refused_rate(reasons, asked, limit)
        return
    with pytest.raises(
        ModelError,
        match=f"{missing} of {asked} completions could not be sampled .*transient:timeout {missing}",
    ):
        check_refused_rate(reasons, asked, limit)


def preferences(path: Path, *more: dict[str, Any]) -> Path:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    table = [
        {
            "prompt": turn("user", f"Say {n}."),
            "chosen": turn("assistant", f"{n}!"),
            "rejected": turn("assistant", "no"),
        }
        for n in range(4)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*table, *more]))
    return path


def test_the_digest_of_pairs_does_not_depend_on_where_they_lie(tmp_path: Path) -> None:
    here, there = (preferences(tmp_path / name / "labels.jsonl") for name in ("here", "there"))
    assert pairs_digest(read_preferences(str(here))) == pairs_digest(read_preferences(str(there)))


def test_the_files_of_an_adapter_do_not_depend_on_the_hash_seed(model: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rlaif.models.shared_base import SharedBase\n"
        "base = SharedBase.load(sys.argv[1], dtype='float32'); base.add_adapter('policy')\n"
        "base.save_adapter('policy', Path(sys.argv[2]))\n"
    )
    for seed in ("0", "1"):
        command = [sys.executable, "-c", code, str(model), str(tmp_path / seed)]
        subprocess.run(command, env=environment() | {"PYTHONHASHSEED": seed}, check=True, timeout=120)
    for name in os.listdir(tmp_path / "0"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_one_bad_row_is_left_out_only_where_that_was_asked_for(tmp_path: Path) -> None:
    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    same = {"prompt": turn("user", "q"), "chosen": turn("assistant", "a"), "rejected": turn("assistant", "a")}
    path = preferences(tmp_path / "labels.jsonl", same)
    with pytest.raises(DataError, match="skip-bad-rows"):
        read_preferences(str(path))
    told: list[Any] = []
    assert len(read_preferences(str(path), skipped=told.extend)) == 4
    assert [problem.where for problem in told] == [f"{path}:5"]
    path.write_text("no json\n" + path.read_text())
    told.clear()
    assert len(read_preferences(str(path), skipped=told.extend)) == 4
    assert [problem.where for problem in told] == [f"{path}:1", f"{path}:6"]


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("model: {kind: model, reward: no/such}", "there is no reward model"),
        ("model: {kind: model}", "needs a reward stage before it"),
        ("f: {kind: function, function: nosuch_module:f}", "cannot be imported"),
    ],
)
def test_a_reward_that_is_not_there_is_found_before_a_model_is_loaded(
    reward: str, told: str, prompts: Path, tmp_path: Path
) -> None:
    text = f"model: no/such/model\nstages: [{{stage: ppo, prompts: {prompts}, reward: {{{reward}}}}}]"
    with pytest.raises(RlaifError, match=told):
        run(text, tmp_path / "run")


def test_a_tracker_that_is_not_there_is_found_before_a_model_is_loaded(prompts: Path, tmp_path: Path) -> None:
    rule = "r: {kind: length, max_words: 3}"
    text = (
        "model: no/such/model\nstages: "
        f"[{{stage: ppo, prompts: {prompts}, reward: {{{rule}}}, trackers: [nosuch]}}]"
    )
    with pytest.raises(ConfigError, match="there is no tracker nosuch"):
        run(text, tmp_path / "run")


@pytest.mark.parametrize("form", ["messages", "ShareGPT", "Alpaca", "plain text"])
def test_sft_learns_from_every_form_alike(form: str, model: Path, tmp_path: Path) -> None:
    """The whole stage, so that a form that is read is one that is learned from."""

    def row(number: int, form: str) -> dict[str, Any]:
        question, answer = f"Say {number}.", f"{number}!"
        return {
            "ours": {
                "prompt": [{"role": "user", "content": question}],
                "completion": [{"role": "assistant", "content": answer}],
            },
            "messages": {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            },
            "ShareGPT": {
                "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            },
            "Alpaca": {"instruction": question, "input": "", "output": answer},
            "plain text": {"prompt": question, "completion": answer},
        }[form]

    weights = {}
    for name in ("ours", form):
        file = tmp_path / f"{name.replace(' ', '-')}.jsonl"
        file.write_text("".join(json.dumps(row(number, name)) + "\n" for number in range(6)))
        text = f"model: {model}\ndtype: float32\nstages: [{{stage: sft, files: ['{file}'], lora_rank: 2}}]"
        folder = run(text, tmp_path / name / "run").stages[0].folder
        weights[name] = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    assert weights["ours"] == weights[form]
