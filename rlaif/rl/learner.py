"""All that PPO trains, with its optimisers: what a checkpoint holds, and what a rollback returns to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlaif.config.ppo import PpoConfig
from rlaif.digest import seed_from
from rlaif.errors import ModelError
from rlaif.models.shared_base import REFERENCE, LoraSettings, SharedBase
from rlaif.rl.episodes import Episodes, micro_batches, response_states
from rlaif.rl.kl import open_controller
from rlaif.rl.rollout import Sampler
from rlaif.rl.value import ValueHead

__all__ = ["POLICY", "VALUE", "Learner", "PtxRow", "RunawayError", "states_of", "values_of"]

POLICY, VALUE = "policy", "value"
UNTRAINED = 4
"""So many times as many rows go through a pass that keeps nothing for the backward pass."""


class RunawayError(ModelError):
    """The policy has left the region that its settings allow: KL or a loss is too large or no number."""


@dataclass(frozen=True, slots=True)
class PtxRow:
    """A row of the language-modelling data that PPO-ptx mixes in, in tokens."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


class Learner:
    """All that a step changes: adapters, value head, optimisers, KL controller; and the last good weights.

    Everything random is drawn from seeds that `seed_from` derives from the run's seed and the step, so there
    is no generator whose state a checkpoint would have to keep.

    Args:
        base: Has no adapter named `policy` or `value` yet.
    """

    def __init__(self, base: SharedBase, config: PpoConfig, *, seed: int, ptx: Sequence[PtxRow] = ()) -> None:
        self.base, self.config, self.seed, self.ptx = base, config, seed, tuple(ptx)
        self.sampler = Sampler(base, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
        lora = LoraSettings(rank=config.lora_rank, alpha=config.lora_alpha)
        roles = (POLICY,) if config.value == "reference" else (POLICY, VALUE)
        for role in roles:
            base.add_adapter(role, lora, seed=seed_from(seed, "adapter", role) % (1 << 31))
        base.assert_only_trainable(roles)
        self.value_role = REFERENCE if config.value == "reference" else VALUE
        self.head = ValueHead(base.hidden_size).to(base.device)
        self.policy_weights = base.trainable(POLICY)
        self.value_weights = [*self.head.parameters(), *(base.trainable(VALUE) if VALUE in roles else [])]
        # Detail 21: ε = 1e-5.
        self.policy_optimizer = torch.optim.Adam(
            self.policy_weights, lr=config.learning_rate, eps=config.adam_eps
        )
        self.value_optimizer = torch.optim.Adam(
            self.value_weights, lr=config.value_learning_rate, eps=config.adam_eps
        )
        self.kl = open_controller(config.kl, episodes=config.episodes)
        self.good: list[Tensor] = []
        self.keep()

    def keep(self) -> None:
        """Remember the policy's weights as the last good ones."""
        self.good = [weight.detach().clone() for weight in self.policy_weights]

    @torch.no_grad()
    def roll_back(self) -> None:
        """Return to the last good weights of the policy."""
        for weight, good in zip(self.policy_weights, self.good, strict=True):
            weight.copy_(good)

    def anneal(self, step: int) -> float:
        """Set both learning rates for this step; they fall linearly to 0 after the last (detail 5)."""
        config = self.config
        share = 1 - step / config.steps if config.anneal else 1.0
        for optimizer, rate in (
            (self.policy_optimizer, config.learning_rate),
            (self.value_optimizer, config.value_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        return config.learning_rate * share


def states_of(learner: Learner, episodes: Episodes) -> Tensor:
    """The active role's states (B, T, H) that predict the completions' tokens, without gradient."""
    states = torch.zeros_like(episodes.states)
    for rows in micro_batches(
        episodes.prompt_ids, range(len(episodes)), UNTRAINED * learner.config.micro_batch
    ):
        states[rows] = response_states(learner.base, *episodes.part(rows))
    return states


@torch.no_grad()
def values_of(learner: Learner, episodes: Episodes, ref_states: Tensor) -> Tensor:
    """V(s_t) before the update: (B, T), fp32."""
    if not learner.head.calibrated:
        learner.head.calibrate(ref_states[episodes.is_real])
    with learner.base.role(learner.value_role):
        states = ref_states if learner.value_role == REFERENCE else states_of(learner, episodes)
    values: Tensor = learner.head(states) * episodes.is_real
    return values
