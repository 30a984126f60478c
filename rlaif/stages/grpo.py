"""Train a policy by GRPO against a reward: no value function, each completion held against others of its
prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rlaif.config.grpo import GrpoConfig
from rlaif.models.shared_base import SharedBase
from rlaif.models.start import Start
from rlaif.reward.functions import RewardFunction
from rlaif.rl.grpo import grpo_step
from rlaif.rl.learner import GrpoLearner
from rlaif.rl.step import Metrics, StepReport
from rlaif.stages.on_policy import (
    OnPolicyResult,
    Reader,
    check_prompts,
    places_drawn,
    prompt_queue,
    train_on_policy,
)
from rlaif.types import Prompt

__all__ = ["train_grpo"]


def train_grpo(
    prompts: Sequence[Prompt],
    *,
    base: SharedBase,
    reward: RewardFunction,
    config: GrpoConfig,
    seed: int,
    start: Start | None = None,
    messages: Reader = lambda prompt: prompt.messages,
    on_step: Callable[[Metrics], None] = lambda metrics: None,
    on_rollout: Callable[[StepReport], None] = lambda report: None,
    checkpoint_folder: Path | None = None,
) -> OnPolicyResult:
    """Train the adapter `policy` of `base`, which must not have one yet.

    Args:
        start: The adapter that is trained further; a new one when left out.
        messages: What the policy reads of a prompt (its retrieved documents, for one).
        on_step: Told the metrics of each step.
        on_rollout: Told the completions and scores of each step.
        checkpoint_folder: Checkpoints are written here, and training goes on from the newest one there.

    Raises:
        ConfigError: The reward has one part, and the settings ask to scale its parts.
        DataError: There are no prompts, too many cannot be answered, or the reward is a constant.
        RunError: The checkpoint is damaged, or is one of another run.
    """
    check_prompts(prompts)
    learner = GrpoLearner(base, config, seed=seed, start=start)
    return train_on_policy(
        prompts,
        learner,
        lambda asked, step: grpo_step(
            learner, prompt_queue(asked, config, seed=seed, step=step), reward, step=step
        ),
        # Any prompt may be drawn where a step goes on drawing.
        drawn=range if config.keep_drawing else lambda count: places_drawn(count, config, seed=seed),
        messages=messages,
        on_step=on_step,
        on_rollout=on_rollout,
        checkpoint_folder=checkpoint_folder,
    )
