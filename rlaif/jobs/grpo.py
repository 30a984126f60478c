"""The stage `grpo`: prompts and a reward in, a policy out."""

from __future__ import annotations

from rlaif.config.grpo import GrpoConfig
from rlaif.errors import ConfigError
from rlaif.jobs.context import RunContext
from rlaif.jobs.on_policy import OnPolicyJob, Training
from rlaif.reward.functions import RewardFunction
from rlaif.stages.grpo import train_grpo
from rlaif.stages.on_policy import OnPolicyResult

__all__ = ["GrpoJob"]


class GrpoJob(OnPolicyJob[GrpoConfig]):
    """GRPO: completions of one prompt are held against each other; no value function."""

    method = "GRPO"

    def __init__(self, config: GrpoConfig, context: RunContext) -> None:
        super().__init__(config, context)
        if config.normalise_parts and sum(part.weight != 0 for part in config.reward.values()) < 2:
            raise ConfigError(
                "normalise_parts does nothing for a reward of one part",
                where=config.name,
                remedy="leave it out, or name more parts under `reward`",
            )

    def train(self, reward: RewardFunction, training: Training) -> OnPolicyResult:
        """See `OnPolicyJob`."""
        return train_grpo(
            self.prompts,
            base=self.context.bases.get(),
            reward=reward,
            config=self.config,
            seed=self.context.seed(self.config),
            messages=self.context.library.policy,
            **training._asdict(),
        )
