"""Train a policy by PPO against a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rlaif.config.ppo import PpoConfig
from rlaif.errors import ConfigError, DataError
from rlaif.models.shared_base import SharedBase
from rlaif.models.start import Start
from rlaif.reward.functions import RewardFunction
from rlaif.reward.model import Conversation, TurnFormat
from rlaif.rl.learner import PpoLearner, PtxRow
from rlaif.rl.ppo import ppo_step
from rlaif.rl.step import Metrics, StepReport
from rlaif.stages.on_policy import (
    OnPolicyResult,
    Reader,
    check_prompts,
    draw_prompts,
    places_drawn,
    train_on_policy,
)
from rlaif.types import Prompt

__all__ = ["PtxRow", "ptx_rows", "train_ppo"]


def train_ppo(
    prompts: Sequence[Prompt],
    *,
    base: SharedBase,
    reward: RewardFunction,
    config: PpoConfig,
    seed: int,
    start: Start | None = None,
    messages: Reader = lambda prompt: prompt.messages,
    ptx: Sequence[PtxRow] = (),
    on_step: Callable[[Metrics], None] = lambda metrics: None,
    on_rollout: Callable[[StepReport], None] = lambda report: None,
    checkpoint_folder: Path | None = None,
) -> OnPolicyResult:
    """Train the adapter `policy` of `base`, which must not have one yet.

    Args:
        start: The adapter that is trained further; a new one when left out.
        messages: What the policy reads of a prompt (its retrieved documents, for one).
        ptx: The data of PPO-ptx, where the settings ask for it.
        on_step: Told the metrics of each step.
        on_rollout: Told the completions and scores of each step.
        checkpoint_folder: Checkpoints are written here, and training goes on from the newest one there.

    Raises:
        ConfigError: The settings need what was not given.
        DataError: There are no prompts, too many cannot be answered, or the reward is a constant.
        RunError: The checkpoint is damaged, or is one of another run.
    """
    check_prompts(prompts)
    _check_ptx(config, ptx)
    learner = PpoLearner(base, config, seed=seed, ptx=ptx, start=start)
    return train_on_policy(
        prompts,
        learner,
        lambda asked, step: ppo_step(
            learner, draw_prompts(asked, config, seed=seed, step=step), reward, step=step
        ),
        drawn=lambda count: places_drawn(count, config, seed=seed),
        messages=messages,
        on_step=on_step,
        on_rollout=on_rollout,
        checkpoint_folder=checkpoint_folder,
    )


def ptx_rows(base: SharedBase, conversations: Sequence[Conversation]) -> list[PtxRow]:
    """The data of PPO-ptx in tokens; each conversation ends with the assistant's message, whose turn is
    closed.

    Raises:
        DataError: One does not.
    """
    return [
        PtxRow(prompt=tuple(prompt), completion=tuple(ids))
        for prompt, ids in TurnFormat(base).encode(conversations)
    ]


def _check_ptx(config: PpoConfig, ptx: Sequence[PtxRow]) -> None:
    if config.ptx and not ptx:
        remedy = "give rows of prompt and completion, or leave `ptx` out"
        raise ConfigError("PPO-ptx has no data", where=config.ptx.data, remedy=remedy)
    if any(not row.completion or not row.prompt for row in ptx):
        raise DataError("a row of the PPO-ptx data has no prompt or no completion", remedy="drop empty rows")
