"""A run that was cut off ends as an undisturbed one does; damaged and foreign checkpoints are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_policy import prompts, share_of_vowels, toy_base

from rlaif.config.ppo import PpoConfig
from rlaif.errors import RunError
from rlaif.models.shared_base import SharedBase
from rlaif.reward.functions import FunctionReward
from rlaif.rl.checkpoint import newest_checkpoint
from rlaif.rl.learner import POLICY
from rlaif.rl.step import Metrics
from rlaif.stages.on_policy import OnPolicyResult
from rlaif.stages.ppo import train_ppo

SETTINGS: dict[str, Any] = {
    "steps": 5,
    "episodes": 8,
    "samples_per_prompt": 2,
    "max_new_tokens": 4,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "micro_batch": 8,
    "learning_rate": 1e-2,
    "value_learning_rate": 1e-2,
    "kl": {"kind": "lagrangian", "target": 4.0},
    "checkpoint_every": 1,
    "minibatches": 2,
}


class Killed(Exception):
    """Stands for the process's end."""


def train(
    base: SharedBase,
    folder: Path | None,
    *,
    on_step: Callable[[Metrics], None] = lambda m: None,
    **changed: Any,
) -> OnPolicyResult:
    return train_ppo(
        prompts(6),
        base=base,
        reward=FunctionReward(share_of_vowels),
        config=PpoConfig(**SETTINGS | changed),
        seed=7,
        checkpoint_folder=folder,
        on_step=on_step,
    )


def killer(at: int) -> Callable[[Metrics], None]:
    def on_step(metrics: Metrics) -> None:
        if metrics["step"] == at:
            raise Killed

    return on_step


def without_seconds(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if not name.startswith("seconds/")}


@pytest.fixture(scope="module")
def undisturbed() -> tuple[dict[str, list[torch.Tensor]], list[Metrics]]:
    found: dict[str, list[torch.Tensor]] = {}
    history: list[Metrics] = []
    for value in ("reference", "adapter"):
        base = toy_base()
        result = train(base, None, value=value)
        found[value] = [weight.detach().clone() for weight in base.trainable(POLICY)]
        history = (
            [without_seconds(metrics) for metrics in result.history] if value == "reference" else history
        )
    return found, history


@pytest.mark.parametrize("at", range(1, 5))
def test_killed_at_any_step_it_ends_with_the_same_weights(
    tmp_path: Path, at: int, undisturbed: tuple[dict[str, list[torch.Tensor]], list[Metrics]]
) -> None:
    with pytest.raises(Killed):
        train(toy_base(), tmp_path, on_step=killer(at))
    base = toy_base()
    result = train(base, tmp_path)
    assert result.first_step == at
    assert result.steps == SETTINGS["steps"]
    assert all(
        torch.equal(one, two)
        for one, two in zip(base.trainable(POLICY), undisturbed[0]["reference"], strict=True)
    )
    assert [without_seconds(metrics) for metrics in result.history] == undisturbed[1][at:]


def test_a_value_adapter_resumes_too(
    tmp_path: Path, undisturbed: tuple[dict[str, list[torch.Tensor]], list[Metrics]]
) -> None:
    with pytest.raises(Killed):
        train(toy_base(), tmp_path, on_step=killer(3), value="adapter", checkpoint_every=2)
    base = toy_base()
    assert train(base, tmp_path, value="adapter", checkpoint_every=2).first_step == 2
    assert all(
        torch.equal(one, two)
        for one, two in zip(base.trainable(POLICY), undisturbed[0]["adapter"], strict=True)
    )


def test_a_rollback_after_resumption_returns_to_the_same_weights(tmp_path: Path) -> None:
    runaway = {"learning_rate": 0.05, "anneal": False, "max_update_kl": 1e9, "minibatches": 1}
    probe = train(toy_base(), None, **runaway)
    peaks = [float(metrics["kl"] or 0) for metrics in probe.history]
    assert peaks[1] < peaks[2], "the seed should give a KL that rises"
    limit = (peaks[1] + peaks[2]) / 2
    straight, resumed = toy_base(), toy_base()
    assert "step 2" in train(straight, None, max_kl=limit, **runaway).stopped
    with pytest.raises(Killed):
        train(toy_base(), tmp_path, on_step=killer(1), max_kl=limit, **runaway)
    train(toy_base(), tmp_path, max_kl=limit, **runaway)  # goes on from step 1 and writes step 2
    assert "step 2" in train(resumed, tmp_path, max_kl=limit, **runaway).stopped
    assert all(
        torch.equal(one, two)
        for one, two in zip(straight.trainable(POLICY), resumed.trainable(POLICY), strict=True)
    )


def finished(folder: Path) -> Path:
    train(toy_base(), folder, steps=2)
    path = newest_checkpoint(folder)
    assert path is not None
    return path


def test_only_the_newest_checkpoints_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    train(toy_base(), tmp_path, steps=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_cut_short_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    path = finished(tmp_path)
    file = path / name
    file.write_bytes(file.read_bytes()[:-20])
    size = file.stat().st_size
    with pytest.raises(RunError, match=r"the checkpoint is damaged(.|\n)*delete the folder .*step-000002"):
        train(toy_base(), tmp_path, steps=2)
    assert file.stat().st_size == size


def test_a_changed_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path)
    content = bytearray((path / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="its content was changed after it was written"):
        train(toy_base(), tmp_path, steps=2)
    (path / "tensors.safetensors").unlink()
    with pytest.raises(RunError, match="the checkpoint is damaged"):
        train(toy_base(), tmp_path, steps=2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.json", '{"format": 1, "files": []}'),
        ("manifest.json", '{"format": 1, "files": null}'),
        ("state.json", '{"step": 1e400}'),
        ("state.json", '{"step": [3]}'),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path: Path, name: str, text: str) -> None:
    path = finished(tmp_path)
    if name == "state.json":  # what a hand that changes it would take out too
        (path / "manifest.json").write_text('{"format": 1, "files": {}}', "utf-8")
    (path / name).write_text(text, "utf-8")
    with pytest.raises(RunError, match="the checkpoint is damaged"):
        train(toy_base(), tmp_path, steps=2)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(manifest | {"format": 99}), "utf-8")
    with pytest.raises(RunError, match="its format is 99, this version reads 1"):
        train(toy_base(), tmp_path, steps=2)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    with pytest.raises(RunError, match="the checkpoint is of another run; different: gamma, steps"):
        train(toy_base(), tmp_path, steps=3, gamma=0.9)
    train(toy_base(), tmp_path, steps=2, checkpoint_every=7)  # how often it is saved may change


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("", "utf-8")
    with pytest.raises(RunError, match="the checkpoint cannot be written"):
        train(toy_base(), place, steps=1)
