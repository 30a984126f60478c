"""The stage `ppo`: prompts and a reward in, a policy out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.config.ppo import PpoConfig
from rlaif.jobs.learned_rows import read_demonstrations, skipper
from rlaif.jobs.lengths import Adapters
from rlaif.jobs.on_policy import OnPolicyJob, Training
from rlaif.reward.functions import RewardFunction
from rlaif.rl.learner import VALUE
from rlaif.stages.on_policy import OnPolicyResult
from rlaif.stages.ppo import PtxRow, ptx_rows, train_ppo
from rlaif.types import Message

__all__ = ["PpoJob"]


class PpoJob(OnPolicyJob[PpoConfig]):
    """PPO: beside the policy a value function is trained, and a language model's loss if the settings ask for
    it."""

    method = "PPO"

    def train(self, reward: RewardFunction, training: Training) -> OnPolicyResult:
        """See `OnPolicyJob`."""
        return train_ppo(
            self.prompts,
            base=self.context.bases.get(),
            reward=reward,
            config=self.config,
            seed=self.context.seed(self.config),
            messages=self.context.library.policy,
            ptx=self._ptx(),
            **training._asdict(),
        )

    def adapters(self) -> Adapters:
        """See `Job`."""
        found = super().adapters()
        return found._replace(trained=(*found.trained, VALUE)) if self.config.value == "adapter" else found

    def _ptx(self) -> Sequence[PtxRow]:
        """The rows of PPO-ptx, if the settings ask for them: of a revise stage, or a file."""
        if self.config.ptx is None:
            return ()
        named = self.config.ptx.data
        source = self.context.folders[named] / "sft.jsonl" if named in self.context.folders else named
        skipped = skipper(self.config, str(source), self.context)
        rows = read_demonstrations(str(source), skipped=skipped, note=self.context.progress.note)
        return ptx_rows(self.context.bases.get(), [_conversation(row) for row in rows])


def _conversation(row: Mapping[str, Any]) -> list[Message]:
    """A demonstration as one conversation."""
    return [
        Message(role=turn["role"], content=turn["content"]) for turn in (*row["prompt"], *row["completion"])
    ]
