"""GRPO on a toy policy: it learns, it stays near, it goes on drawing, it resumes, and it changes nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_policy import GROUPS, prompts, share_of_vowels, toy_base

from rlaif.config.grpo import GrpoConfig
from rlaif.digest import unit_from
from rlaif.errors import ConfigError, DataError
from rlaif.models.shared_base import SharedBase
from rlaif.reward.functions import FunctionReward, RewardFunction, RewardSum
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
