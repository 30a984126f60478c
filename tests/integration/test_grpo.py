"""GRPO on a toy policy: it learns, it stays near, it goes on drawing, it resumes, and it changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_policy import GROUPS, prompts, share_of_vowels, toy_base

from rlaif.config.grpo import GrpoConfig
from rlaif.digest import unit_from
from rlaif.errors import ConfigError, DataError
from rlaif.models.shared_base import SharedBase
from rlaif.ranks import Ranks
from rlaif.reward.functions import FunctionReward, RewardFunction, RewardSum
from rlaif.rl.episodes import Episodes
from rlaif.rl.grpo import Targets, gradients, grpo_step, sample_groups
from rlaif.rl.learner import POLICY, GrpoLearner, RunawayError
from rlaif.rl.step import Clock, Metrics, StepReport
from rlaif.stages.grpo import train_grpo
from rlaif.stages.on_policy import OnPolicyResult
from rlaif.types import Completion

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, Any] = {**GROUPS, "steps": 14}
VOWELS = FunctionReward(share_of_vowels)


def train(
    base: SharedBase, *, seed: int = 0, reward: RewardFunction = VOWELS, count: int = 24, **rest: Any
) -> OnPolicyResult:
    told = {name: rest.pop(name) for name in ("on_step", "on_rollout", "checkpoint_folder") if name in rest}
    return train_grpo(
        prompts(count), base=base, reward=reward, config=GrpoConfig(**SETTINGS | rest), seed=seed, **told
    )


def mean(result: OnPolicyResult, name: str, steps: slice) -> float:
    values = [float(metrics[name] or 0.0) for metrics in result.history[steps]]
    return sum(values) / len(values)


def weights(base: SharedBase) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in base.trainable(POLICY)]


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("kl_in", ["loss", "reward"])
def test_it_reaches_90_percent_of_the_best_reward_with_the_kl_under_its_target(
    advantage: str, kl_in: str
) -> None:
    base = toy_base()
    result = train(base, advantage=advantage, kl_in=kl_in)
    assert result.stopped == ""
    assert mean(result, "reward", slice(0, 1)) < 0.3
    assert mean(result, "reward", slice(-3, None)) > 0.9
    assert mean(result, "kl", slice(-3, None)) < 12.0
    assert base.roles == (POLICY,), "there is no value function"


def test_the_kl_is_charged_in_the_loss() -> None:
    far, near = (train(toy_base(), steps=8, kl={"kind": "fixed", "beta": beta}) for beta in (0.0, 1.0))
    assert mean(near, "kl", slice(-2, None)) < mean(far, "kl", slice(-2, None)) / 2


def test_micro_batches_change_nothing_but_rounding() -> None:
    found = []
    for micro_batch in (32, 5):
        base = toy_base()
        train(base, steps=2, micro_batch=micro_batch)
        found.append(weights(base))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def some_alike(prompt: object, completion: Completion) -> float:
    """The same for every completion of some prompts, the share of vowels for the others."""
    return 0.5 if int(completion.prompt_id.strip("p")) % 3 else share_of_vowels(prompt, completion)  # type: ignore[arg-type]


def test_groups_that_say_nothing_are_counted() -> None:
    result = train(toy_base(), reward=FunctionReward(some_alike), steps=6)
    assert all(metrics["groups"] == 4 for metrics in result.history)
    assert all(metrics["learned_episodes"] == 32 for metrics in result.history)
    assert sum(int(metrics["equal_groups"] or 0) for metrics in result.history) == 16


def test_it_goes_on_drawing_until_the_step_is_full() -> None:
    reports: list[StepReport] = []
    result = train(
        toy_base(),
        reward=FunctionReward(some_alike),
        steps=4,
        keep_drawing=True,
        max_draws=10,
        on_rollout=reports.append,
    )
    for metrics, report in zip(result.history, reports, strict=True):
        groups, equal = int(metrics["groups"] or 0), int(metrics["equal_groups"] or 0)
        assert groups > 4
        assert groups - equal == 4, "no more was drawn than was needed"
        assert metrics["learned_episodes"] == 32
        assert metrics["episodes"] == len(report.episodes) == 8 * groups
        drawn = [row.prompt.id for row in report.episodes.rows]
        assert len(set(drawn)) == groups, "none was drawn twice in a step"


def test_drawing_ends_where_there_is_nothing_more_or_it_was_done_often_enough() -> None:
    few = train(
        toy_base(), reward=FunctionReward(some_alike), steps=2, count=8, keep_drawing=True, max_draws=10
    )
    assert [metrics["learned_episodes"] for metrics in few.history] == [24, 24]
    assert [metrics["groups"] for metrics in few.history] == [8, 8]
    once = train(
        toy_base(),
        reward=FunctionReward(lambda prompt, given: float(given.prompt_id == "p1")),
        steps=2,
        keep_drawing=True,
        max_draws=2,
    )
    assert [metrics["groups"] for metrics in once.history] == [8, 8]
    assert [metrics["learned_episodes"] for metrics in once.history] == [0, 0]


def test_a_reward_that_is_the_same_for_all_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to learn from"):
        train(toy_base(), reward=FunctionReward(lambda prompt, given: 1.0))


def test_a_small_part_is_learned_beside_a_large_one() -> None:
    def noise(prompt: object, given: Completion) -> float:
        return 1000.0 * unit_from("noise", given.text)

    parts = RewardSum({"vowels": (1.0, VOWELS), "noise": (1.0, FunctionReward(noise, name="noise"))})
    settings: dict[str, Any] = {"steps": 8, "kl": {"kind": "fixed", "beta": 0.0}}
    drowned = train(toy_base(), reward=parts, **settings)
    both = train(toy_base(), reward=parts, normalise_parts=True, **settings)
    assert (
        mean(both, "reward/vowels", slice(-2, None)) > mean(drowned, "reward/vowels", slice(-2, None)) + 0.1
    )


def test_parts_cannot_be_scaled_where_there_is_one() -> None:
    with pytest.raises(ConfigError, match="reward of one part"):
        train(toy_base(), normalise_parts=True)


def test_a_policy_that_runs_away_is_rolled_back() -> None:
    base = toy_base()
    result = train(base, learning_rate=3.0, max_kl=1.0, kl={"kind": "fixed", "beta": 0.0})
    assert "the last good weights are back" in result.stopped
    learner = GrpoLearner(toy_base(), GrpoConfig(**SETTINGS | {"max_loss": 1e-9}), seed=0)
    asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts(4)]
    with pytest.raises(RunawayError, match=r"policy_loss is|kl_loss is"):
        grpo_step(learner, asked, VOWELS, step=0)


def test_groups_are_sampled_as_a_whole_rollout_would_be() -> None:
    """The completions of a step do not depend on whether it may go on drawing."""
    texts = []
    for settings in ({}, {"keep_drawing": True}):
        learner = GrpoLearner(toy_base(), GrpoConfig(**SETTINGS | settings), seed=3)
        asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts(4)]
        sampled, _, _ = sample_groups(learner, asked, VOWELS, Clock(), step=0)
        texts.append([row.completion.text for row in sampled.episodes.rows])
    assert texts[0] == texts[1][: len(texts[0])]


# Resumption


class Killed(Exception):
    """Stands for the process's end."""


def killer(at: int) -> Callable[[Metrics], None]:
    def on_step(metrics: Metrics) -> None:
        if metrics["step"] == at:
            raise Killed

    return on_step


RESUMED: dict[str, Any] = {
    "steps": 4,
    "checkpoint_every": 1,
    "minibatches": 2,
    "reward": FunctionReward(some_alike),
}


@pytest.mark.parametrize("keep_drawing", [False, True])
@pytest.mark.parametrize("at", [1, 3])
def test_killed_at_any_step_it_ends_with_the_same_weights(
    tmp_path: Path, at: int, keep_drawing: bool
) -> None:
    settings = RESUMED | {"keep_drawing": keep_drawing}
    whole = toy_base()
    train(whole, **settings)
    with pytest.raises(Killed):
        train(toy_base(), checkpoint_folder=tmp_path, on_step=killer(at), **settings)
    base = toy_base()
    result = train(base, checkpoint_folder=tmp_path, **settings)
    assert result.first_step == at
    assert all(torch.equal(one, two) for one, two in zip(weights(base), weights(whole), strict=True))


def test_gradients_of_a_minibatch_are_those_of_its_rows_alone() -> None:
    learner = GrpoLearner(toy_base(), GrpoConfig(**SETTINGS), seed=0)
    asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts(4)]
    report = grpo_step(learner, asked, VOWELS, step=0)
    episodes = report.episodes
    targets = Targets(torch.randn(len(episodes)), episodes.logprobs)
    _, logprobs = gradients(learner, episodes, targets, [0, 3, 9], None, (0, 0))
    assert logprobs[[0, 3, 9]].abs().sum() > 0
    assert not logprobs[[1, 2, 4, 31]].any()


def test_metrics_are_json_values() -> None:
    history = train(toy_base(), steps=1).history
    assert json.loads(json.dumps(history[0])) == history[0]
    assert not {"value_loss", "explained_variance"} & set(history[0])
    assert {"kl_loss", "policy_loss", "groups", "equal_groups", "group_std", "clip_fraction"} <= set(
        history[0]
    )


# The gradient, the slow way


def slow_gradient(
    learner: GrpoLearner, episodes: Episodes, targets: Targets, rows: list[int], old: torch.Tensor
) -> list[torch.Tensor]:
    """Row by row and token by token: Shao 2024, eq. 3, Liu 2025, eq. 1 for the others, with k3 (eq. 4)."""
    config, base, loss = learner.config, learner.base, torch.zeros(())
    for row in rows:
        count = int(episodes.is_real[row].sum())
        divisor = count if config.advantage == "grpo" else config.max_new_tokens
        ids = [*episodes.rows[row].prompt_ids, *episodes.tokens[row, :count].tolist()]
        with base.role(POLICY):
            logits = base.model(input_ids=torch.tensor([ids])).logits[0] / config.temperature
        for at in range(count):
            place = len(episodes.rows[row].prompt_ids) + at
            now = logits[place - 1].log_softmax(0)[ids[place]]
            ratio, advantage = (now - old[row, at]).exp(), targets.advantages[row]
            high = config.clip if config.clip_high is None else config.clip_high
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + high) * advantage)
            d = targets.ref_logprobs[row, at] - now
            charge = d.exp() - d - 1 if config.kl_in == "loss" else 0.0
            loss = loss - (gain - learner.kl.beta * charge) / divisor / len(rows)
    return list(torch.autograd.grad(loss, learner.policy_weights))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"advantage": "dr_grpo", "clip": 0.05, "clip_high": 0.1},
        {"advantage": "rloo", "kl_in": "reward", "temperature": 0.7},
    ],
    ids=["grpo", "dr_grpo", "rloo"],
)
def test_the_gradient_is_that_of_a_loop_over_tokens(settings: dict[str, Any], ranks: int) -> None:
    """Of a minibatch that cuts through groups, with micro-batches, rows of every length, and its rows divided
    among ranks."""
    config = GrpoConfig(**SETTINGS | {"micro_batch": 3, "minibatches": 3, "samples_per_prompt": 2} | settings)
    learner = GrpoLearner(toy_base(), config, seed=0)
    asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts(16)]
    with learner.base.role(POLICY):
        episodes = learner.sampler.sample(asked, samples=2, seed=1).without_states()
    lengths = 1 + torch.arange(32) % 6
    episodes = replace(episodes, is_real=torch.arange(6) < lengths.unsqueeze(1))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(episodes.logprobs.shape, generator=generator)
    old = (episodes.logprobs + 0.2 * noise) * episodes.is_real
    targets = Targets(torch.randn(32, generator=generator), old.roll(1, 0) * episodes.is_real)
    rows = torch.randperm(32, generator=generator)[:11].tolist()
    expected = slow_gradient(learner, episodes, targets, rows, old)
    learner.zero_grad()
    for index in range(ranks):
        learner.base.ranks = Ranks(index, ranks)
        gradients(learner, episodes, targets, rows, old, (0, 0))
    for weight, slow in zip(learner.policy_weights, expected, strict=True):
        found = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(found, slow, atol=1e-5, rtol=1e-3)
    assert max(float(slow.abs().max()) for slow in expected) > 1e-3


def test_fewer_rows_than_minibatches_are_as_many_steps_as_rows() -> None:
    result = train(
        toy_base(),
        reward=FunctionReward(lambda prompt, given: float(given.prompt_id == "p1" and given.index == 0)),
        steps=2,
        count=4,
        samples_per_prompt=2,
        episodes=8,
        minibatches=8,
        keep_drawing=True,
        max_draws=2,
        learning_rate=1e-4,
    )
    for metrics in result.history:
        assert metrics["learned_episodes"] == 2
        assert metrics["optimizer_steps"] == 4, "two epochs of two rows"
        assert metrics["stopped_early"] == 0
        assert metrics["update_kl"] is not None


def test_parts_that_add_up_to_the_same_still_say_something() -> None:
    parts = {
        "vowels": (1.0, VOWELS),
        "less": (0.5, FunctionReward(lambda prompt, given: -2 * share_of_vowels(prompt, given), name="less")),
    }
    result = train(toy_base(), reward=RewardSum(parts), steps=1, normalise_parts=True, keep_drawing=True)
    metrics = result.history[0]
    assert metrics["reward_std"] == 0.0
    assert metrics["learned_episodes"] == 32


def test_a_kl_in_the_reward_of_equal_groups_is_as_large_as_its_coefficient() -> None:
    """Nothing but the KL differs; a coefficient ten times as large must act ten times as much."""
    norms = []
    for beta in (0.001, 0.01):
        learner = GrpoLearner(
            toy_base(),
            GrpoConfig(**SETTINGS | {"kl_in": "reward", "epochs": 1, "kl": {"kind": "fixed", "beta": beta}}),
            seed=0,
        )
        with torch.no_grad():
            for weight in learner.policy_weights:
                weight.add_(0.05 * torch.sign(torch.arange(weight.numel()).sin()).view_as(weight))
        asked = [learner.sampler.question(prompt, prompt.messages) for prompt in prompts(4)]
        reward = FunctionReward(lambda prompt, given: 0.5)
        norms.append(float(grpo_step(learner, asked, reward, step=0).metrics["grad_norm"] or 0.0))
    assert norms[1] == pytest.approx(10 * norms[0], rel=1e-3)
    assert norms[0] > 0
