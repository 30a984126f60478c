"""PPO on a toy policy: it learns, it stays near, it stops, and it changes nothing that it must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from toy_policy import prompts, share_of_vowels, toy_base

from rlaif.config import parse_recipe
from rlaif.config.ppo import PpoConfig
from rlaif.engines.journaled import NullMemo
from rlaif.errors import ConfigError, DataError
from rlaif.jobs import rewards
from rlaif.jobs.context import RunContext
from rlaif.models.shared_base import SharedBase
from rlaif.progress import NoProgress
from rlaif.reward.functions import FunctionReward, RewardSum
from rlaif.rl.learner import POLICY, PpoLearner, PtxRow, RunawayError
from rlaif.rl.ppo import ppo_step
from rlaif.stages.on_policy import OnPolicyResult, draw_prompts
from rlaif.stages.ppo import ptx_rows, train_ppo
from rlaif.types import Completion, Message

QUICK: dict[str, Any] = {
    "episodes": 16,
    "samples_per_prompt": 2,
    "max_new_tokens": 6,
    "missing_eos_penalty": 0.0,
    "lora_rank": 4,
    "lora_alpha": 8.0,
    "micro_batch": 16,
    "learning_rate": 1e-2,
    "value_learning_rate": 1e-2,
    "steps": 2,
}
LEARN: dict[str, Any] = QUICK | {
    "episodes": 32,
    "samples_per_prompt": 4,
    "micro_batch": 32,
    "epochs": 3,
    "kl": {"kind": "lagrangian", "beta": 0.02},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def train(
    base: SharedBase, *, sign: float = 1.0, seed: int = 0, ptx_rows: Sequence[PtxRow] = (), **settings: Any
) -> OnPolicyResult:
    reward = FunctionReward(lambda prompt, given: sign * share_of_vowels(prompt, given))
    return train_ppo(
        prompts(), base=base, reward=reward, config=PpoConfig(**QUICK | settings), seed=seed, ptx=ptx_rows
    )


def reference_logits(base: SharedBase) -> torch.Tensor:
    ids = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad(), base.role("reference"):
        return base.logits_at(base.hidden(ids, torch.ones_like(ids)))


def mean(result: OnPolicyResult, name: str, steps: slice) -> float:
    values = [float(metrics[name] or 0.0) for metrics in result.history[steps]]
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(5))
def test_it_reaches_90_percent_of_the_best_reward_with_the_kl_under_its_target(seed: int) -> None:
    base = toy_base()
    before = reference_logits(base)
    result = train(
        base, seed=seed, **LEARN | {"steps": 14, "kl": {"kind": "lagrangian", "beta": 0.02, "target": 12.0}}
    )
    assert result.stopped == ""
    assert mean(result, "reward", slice(0, 1)) < 0.3
    assert mean(result, "reward", slice(-3, None)) > 0.9
    assert mean(result, "kl", slice(-3, None)) < 12.0
    assert torch.equal(reference_logits(base), before), "the reference must not move by a bit"


@pytest.mark.parametrize("seed", range(2))
def test_with_the_sign_turned_it_goes_the_other_way(seed: int) -> None:
    result = train(
        toy_base(),
        sign=-1.0,
        seed=seed,
        **LEARN | {"steps": 8, "kl": {"kind": "lagrangian", "beta": 0.02, "target": 12.0}},
    )
    assert mean(result, "reward", slice(0, 1)) < -0.15
    assert mean(result, "reward", slice(-3, None)) > -0.05


def test_a_value_adapter_learns_too() -> None:
    base = toy_base()
    result = train(
        base,
        **LEARN
        | {"steps": 8, "value": "adapter", "kl": {"kind": "lagrangian", "beta": 0.02, "target": 12.0}},
    )
    assert mean(result, "reward", slice(-2, None)) > 0.6
    assert base.roles == ("policy", "value")


def test_the_adaptive_controller_moves_beta_towards_its_target() -> None:
    result = train(
        toy_base(), **LEARN | {"steps": 6, "kl": {"kind": "adaptive", "target": 1.0, "horizon": 64}}
    )
    betas = [float(metrics["beta"] or 0) for metrics in result.history]
    assert betas[1] < betas[0], "no KL yet: less of it is charged"
    assert betas[-1] > min(betas), "past the target: more of it is charged"


def test_gradients_reach_the_policy_and_the_value_head_only() -> None:
    base = toy_base()
    learner = PpoLearner(base, PpoConfig(**QUICK), seed=0)
    asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts()]
    weights = {name: weight.detach().clone() for name, weight in base.model.named_parameters()}
    ppo_step(learner, asked, FunctionReward(share_of_vowels), step=0)
    changed = {
        name for name, weight in base.model.named_parameters() if not torch.equal(weight, weights[name])
    }
    with_gradient = {name for name, weight in base.model.named_parameters() if weight.grad is not None}
    assert changed
    assert all(".policy." in name for name in changed | with_gradient)
    assert learner.head.head.weight.abs().max() > 0
    assert base.active == "reference"


def test_the_first_pass_has_ratio_one_and_the_first_rollout_no_kl() -> None:
    first = train(toy_base(), epochs=1, steps=1).history[0]
    assert first["clip_fraction"] == 0
    assert first["update_kl"] == pytest.approx(0, abs=1e-7)
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["kl_k1"] == pytest.approx(0, abs=1e-5)
    assert first["explained_variance"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("changed", [{"micro_batch": 3}, {"gradient_checkpointing": True}])
def test_how_the_work_is_cut_up_changes_rounding_only(changed: dict[str, Any]) -> None:
    plain, other = toy_base(), toy_base()
    train(plain, steps=1)
    train(other, steps=1, **changed)
    for one, two in zip(plain.trainable(POLICY), other.trainable(POLICY), strict=True):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-3)


def test_minibatches_each_take_a_step() -> None:
    metrics = train(toy_base(), minibatches=4, steps=1, learning_rate=1e-3).history[0]
    assert metrics["optimizer_steps"] == 8
    assert metrics["stopped_early"] == 0


def test_an_update_that_goes_too_far_ends_early() -> None:
    metrics = train(toy_base(), learning_rate=0.1, epochs=4, max_update_kl=0.01, steps=1).history[0]
    assert metrics["stopped_early"] == 1
    assert metrics["optimizer_steps"] == 1


def test_when_the_kl_runs_away_the_last_good_weights_return() -> None:
    base, one_step = toy_base(), toy_base()
    result = train(base, learning_rate=0.05, anneal=False, max_kl=1e-3, max_update_kl=1e9, steps=6)
    assert "step 1: the KL to the reference is" in result.stopped
    assert "the limit is 0.001" in result.stopped
    assert result.steps == 1
    train(one_step, steps=1, learning_rate=1e-12)  # the weights that the policy began with
    for weight, begun in zip(base.trainable(POLICY), one_step.trainable(POLICY), strict=True):
        torch.testing.assert_close(weight, begun, atol=1e-8, rtol=0)


def test_when_a_loss_runs_away_the_step_is_undone() -> None:
    learner = PpoLearner(toy_base(), PpoConfig(**QUICK, max_loss=1e-4), seed=0)
    asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts()]
    before = [weight.detach().clone() for weight in learner.policy_weights]
    with pytest.raises(RunawayError, match="value_loss is"):
        ppo_step(learner, asked, FunctionReward(share_of_vowels), step=0)
    learner.roll_back()
    assert all(torch.equal(now, then) for now, then in zip(learner.policy_weights, before, strict=True))


def test_a_gradient_that_is_no_number_takes_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda weights, limit: torch.tensor(float("nan")))
    base, untouched = toy_base(), toy_base()
    assert "the norm of the policy's gradient is nan" in train(base).stopped
    PpoLearner(untouched, PpoConfig(**QUICK), seed=0)
    assert all(
        torch.equal(one, two)
        for one, two in zip(base.trainable(POLICY), untouched.trainable(POLICY), strict=True)
    )


def test_value_warmup_leaves_the_policy_alone() -> None:
    base = toy_base()
    result = train(base, steps=3, value_warmup=2)
    assert [("policy_loss" in metrics) for metrics in result.history] == [False, False, True]
    assert result.history[2]["kl"] == pytest.approx(0, abs=1e-5), "nothing moved before the third rollout"


def test_ptx_pulls_towards_its_data() -> None:
    end, p = 1, 19
    rows = [PtxRow(prompt=(2, 4 + index, 3), completion=(p, p, end)) for index in range(8)]
    settings = {"steps": 6, "learning_rate": 1e-2, "ptx": {"data": "rows", "coefficient": 5.0, "rows": 4}}
    result = train(toy_base(), ptx_rows=rows, **settings)
    losses = [float(metrics["ptx_loss"] or 0) for metrics in result.history]
    assert losses[-1] < 0.7 * losses[0]


def test_a_cut_completion_is_penalised_and_real_ends_are_reported() -> None:
    metrics = train(toy_base(), steps=1, missing_eos_penalty=5.0).history[0]
    assert 0 < float(metrics["ended"] or 0) < 1
    assert metrics["reward_ended"] is not None
    assert float(metrics["reward"] or 0) >= 0, (
        "the penalty is PPO's, the reward is reported as the function gave it"
    )


def test_parts_of_the_reward_are_logged_apart() -> None:
    long = FunctionReward(lambda prompt, completion: float(len(completion.text)))
    reward = RewardSum({"vowels": (2.0, FunctionReward(share_of_vowels)), "long": (-1.0, long)})
    result = train_ppo(
        prompts(), base=toy_base(), reward=reward, config=PpoConfig(**QUICK | {"steps": 1}), seed=0
    )
    metrics = {name: float(value or 0) for name, value in result.history[0].items()}
    assert metrics["reward"] == pytest.approx(2 * metrics["reward/vowels"] - metrics["reward/long"], abs=1e-5)


def test_the_reward_that_the_settings_describe(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {
        "m": {"kind": "model", "weight": 2.0},
        "j": {"kind": "judge"},
        "f": {"kind": "function", "function": "toy_policy:share_of_vowels"},
        "l": {"kind": "length", "max_words": 1},
        "x": {"kind": "pattern", "pattern": "b"},
        "y": {"kind": "format", "pattern": "[a-z]+"},
    }
    config = PpoConfig.model_validate({"reward": parts})
    ten, half = FunctionReward(lambda messages, text: 10.0), FunctionReward(lambda messages, text: 0.5)
    monkeypatch.setattr(rewards, "model_reward", lambda *_: ten)
    monkeypatch.setattr(rewards, "JudgeReward", lambda *_, **__: half)
    recipe = parse_recipe("{model: scripted, constitution: warmth, stages: [{stage: ppo}]}", source="r.yaml")
    context = RunContext(recipe, memo=NullMemo(), progress=NoProgress())
    reward = rewards.open_reward(config.reward, config, context)
    said = Completion(id="p/0", prompt_id="p", index=0, text="ab ab", finish="stop", model="m")
    found = reward(prompts(1), [said])
    parts_found = {name: values[0] for name, values in found.parts.items()}
    assert parts_found == {"m": 10.0, "j": 0.5, "f": 0.4, "l": -1.0, "x": -1.0, "y": -1.0}
    assert found.total == (pytest.approx(20.0 + 0.5 + 0.4 - 3.0),)


def test_ptx_rows_are_tokens_with_the_turn_closed() -> None:
    (row,) = ptx_rows(toy_base(), [(Message("user", "ab"), Message("assistant", "pp"))])
    assert row == PtxRow(prompt=(2, 4, 5, 3), completion=(19, 19, 1))


def test_every_prompt_is_asked_before_any_comes_again() -> None:
    base = toy_base()
    learner = PpoLearner(base, PpoConfig(**QUICK), seed=0)
    asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts(12)]
    config = PpoConfig(**QUICK | {"episodes": 8, "samples_per_prompt": 2})
    drawn = [
        question.prompt.id for step in range(6) for question in draw_prompts(asked, config, seed=1, step=step)
    ]
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == sorted(question.prompt.id for question in asked)
    assert drawn[:12] != drawn[12:]


def test_a_constant_reward_is_refused() -> None:
    config = PpoConfig(**QUICK | {"steps": 5})
    with pytest.raises(DataError, match="the reward gave 1 to every completion of the first 3 rollouts"):
        train_ppo(prompts(), base=toy_base(), reward=FunctionReward(lambda p, t: 1.0), config=config, seed=0)


def test_missing_data_is_refused() -> None:
    with pytest.raises(DataError, match="no prompts to train on"):
        train_ppo(
            [], base=toy_base(), reward=FunctionReward(share_of_vowels), config=PpoConfig(**QUICK), seed=0
        )
    with pytest.raises(ConfigError, match="PPO-ptx has no data"):
        train(toy_base(), ptx={"data": "sft"})
    with pytest.raises(DataError, match="no prompt or no completion"):
        train(toy_base(), ptx_rows=[PtxRow(prompt=(1,), completion=())])


def test_bfloat16_learns_too() -> None:
    base = toy_base(dtype=torch.bfloat16)
    result = train(base, **LEARN | {"steps": 8, "kl": {"kind": "lagrangian", "beta": 0.02, "target": 12.0}})
    assert mean(result, "reward", slice(-2, None)) > 0.6
    assert all(weight.dtype == torch.float32 for weight in base.trainable(POLICY))
