"""All that PPO and GRPO train, with its optimisers: what a checkpoint holds, and what a rollback returns
to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from rlaif.config.grpo import GrpoConfig
from rlaif.config.on_policy import OnPolicyConfig
from rlaif.config.ppo import PpoConfig
from rlaif.digest import seed_from
from rlaif.errors import ModelError
from rlaif.models.shared_base import LoraSettings, SharedBase
from rlaif.models.start import Start, begin_adapter
from rlaif.rl.episodes import Episodes, micro_batches, response_states
from rlaif.rl.kl import open_controller
from rlaif.rl.rollout import Sampler
from rlaif.rl.value import ValueHead

__all__ = [
    "POLICY",
    "VALUE",
    "GrpoLearner",
    "Learner",
    "PpoLearner",
    "PtxRow",
    "RunawayError",
    "check_kl",
    "states_of",
    "values_of",
]

POLICY, VALUE = "policy", "value"
UNTRAINED = 4
"""So many times as many rows go through a pass that keeps nothing for the backward pass."""

Config = TypeVar("Config", bound=OnPolicyConfig)


class RunawayError(ModelError):
    """The policy has left the region that its settings allow: KL or a loss is too large or no number."""


@dataclass(frozen=True, slots=True)
class PtxRow:
    """A row of the language-modelling data that PPO-ptx mixes in, in tokens."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


class Learner(Generic[Config]):
    """All that a step changes: the policy's adapter, its optimiser, the KL controller; and the last good
    weights.

    Everything random is drawn from seeds that `seed_from` derives from the run's seed and the step, so there
    is no generator whose state a checkpoint would have to keep.

    Args:
        base: Has no adapter named `policy` yet.
        start: The adapter that is trained further; a new one when left out.
    """

    def __init__(self, base: SharedBase, config: Config, *, seed: int, start: Start | None = None) -> None:
        self.base, self.config, self.seed, self.start = base, config, seed, start
        self.sampler = Sampler(base, max_new_tokens=config.max_new_tokens, temperature=config.temperature)
        self.reference = self._add_adapter(POLICY, start)
        """Role that the policy is held to."""
        base.assert_only_trainable((POLICY,))
        self.policy_weights = base.trainable(POLICY)
        # Huang, detail 21: ε = 1e-5.
        self.policy_optimizer = Adam(self.policy_weights, lr=config.learning_rate, eps=config.adam_eps)
        self.kl = open_controller(config.kl, episodes=config.episodes)
        self.good: list[Tensor] = []
        self.keep(0)

    def _add_adapter(self, role: str, start: Start | None = None) -> str:
        lora = LoraSettings(rank=self.config.lora_rank, alpha=self.config.lora_alpha)
        seed = seed_from(self.seed, "adapter", role) % (1 << 31)
        return begin_adapter(self.base, role, lora, seed=seed, start=start)

    def keep(self, steps: int) -> None:
        """Remember the policy's weights, which so many steps made, as the last good ones."""
        self.good_steps = steps
        self.good = [weight.detach().clone() for weight in self.policy_weights]

    @torch.no_grad()
    def roll_back(self) -> None:
        """Return to the last good weights of the policy."""
        for weight, good in zip(self.policy_weights, self.good, strict=True):
            weight.copy_(good)

    def optimizers(self) -> Mapping[str, tuple[Optimizer, float]]:
        """The optimisers by name, each with its learning rate at the first step."""
        return {"policy": (self.policy_optimizer, self.config.learning_rate)}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that a step changes, but for those of the optimisers, by names that a checkpoint
        keeps."""
        for kind, tensors in (("policy", self.policy_weights), ("good", self.good)):
            yield from ((f"{kind}.{index}", tensor) for index, tensor in enumerate(tensors))

    def anneal(self, step: int) -> float:
        """Set the learning rates for this step, which fall linearly to 0 after the last (Huang, detail 5);
        that of the policy."""
        share = 1 - step / self.config.steps if self.config.anneal else 1.0
        for optimizer, rate in self.optimizers().values():
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        return self.config.learning_rate * share

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer, _ in self.optimizers().values():
            optimizer.zero_grad()

    def descend(self, step: int) -> dict[str, float]:
        """One step of each optimiser; the norm of the policy's gradient.

        Raises:
            RunawayError: The gradient is no number.
        """
        self.base.ranks.add_up(self.policy_weights)
        norm = torch.nn.utils.clip_grad_norm_(self.policy_weights, self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise RunawayError(
                f"the norm of the policy's gradient is {norm:.4g}", remedy="use lower learning rates"
            )
        self.policy_optimizer.step()
        return {"grad_norm": float(norm)}


class GrpoLearner(Learner[GrpoConfig]):
    """What GRPO trains: the policy alone."""


class PpoLearner(Learner[PpoConfig]):
    """What PPO trains: the policy, and a value function with an optimiser of its own.

    Args:
        base: Has no adapter named `policy` or `value` yet.
        ptx: The data of PPO-ptx.
        start: See `Learner`.
    """

    def __init__(
        self,
        base: SharedBase,
        config: PpoConfig,
        *,
        seed: int,
        ptx: Sequence[PtxRow] = (),
        start: Start | None = None,
    ) -> None:
        super().__init__(base, config, seed=seed, start=start)
        self.ptx = tuple(ptx)
        own_adapter = config.value == "adapter"
        if own_adapter:
            self._add_adapter(VALUE)
            base.assert_only_trainable((POLICY, VALUE))
        self.value_role = VALUE if own_adapter else self.reference
        self.head = ValueHead(base.hidden_size).to(base.device)
        self.value_weights = [*self.head.parameters(), *(base.trainable(VALUE) if own_adapter else [])]
        self.value_optimizer = Adam(self.value_weights, lr=config.value_learning_rate, eps=config.adam_eps)

    def optimizers(self) -> Mapping[str, tuple[Optimizer, float]]:
        """See `Learner`."""
        return {**super().optimizers(), "value": (self.value_optimizer, self.config.value_learning_rate)}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """See `Learner`."""
        yield from super().tensors()
        yield from ((f"value.{index}", tensor) for index, tensor in enumerate(self.value_weights))
        yield from ((f"head.{name}", buffer) for name, buffer in self.head.named_buffers())

    def descend(self, step: int) -> dict[str, float]:
        """See `Learner`; in the warm-up of the value function the policy stays."""
        self.base.ranks.add_up(self.value_weights)
        self.value_optimizer.step()
        return super().descend(step) if step >= self.config.value_warmup else {}


def check_kl(kl: float, learner: Learner[Config]) -> None:
    """Refuse a policy that is further from the reference than the settings allow.

    Args:
        kl: In nats per completion.

    Raises:
        RunawayError: It is.
    """
    if not kl <= learner.config.max_kl:
        raise RunawayError(
            f"the KL to the reference is {kl:.4g} nats per completion, the limit is "
            f"{learner.config.max_kl:g}",
            remedy="use a lower learning rate, a larger beta, or a KL controller; or raise max_kl",
        )


def states_of(learner: Learner[Config], episodes: Episodes) -> Tensor:
    """The active role's states (B, T, H) that predict the completions' tokens, without gradient."""
    states = torch.zeros_like(episodes.states)
    for rows in micro_batches(
        episodes.prompt_ids, range(len(episodes)), UNTRAINED * learner.config.micro_batch
    ):
        states[rows] = response_states(learner.base, *episodes.part(rows))
    return states


@torch.no_grad()
def values_of(learner: PpoLearner, episodes: Episodes, ref_states: Tensor) -> Tensor:
    """V(s_t) before the update: (B, T), fp32."""
    if not learner.head.calibrated:
        learner.head.calibrate(ref_states[episodes.is_real], learner.base.ranks)
    with learner.base.role(learner.value_role):
        states = ref_states if learner.value_role == learner.reference else states_of(learner, episodes)
    values: Tensor = learner.head(states) * episodes.is_real
    return values
