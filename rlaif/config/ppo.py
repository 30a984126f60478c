"""The settings of `rlaif ppo`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlaif.config.kl import with_kl_as_settings
from rlaif.config.labelling import Settings
from rlaif.config.on_policy import OnPolicyConfig

__all__ = ["PpoConfig", "PtxSettings"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PtxSettings(Settings):
    """PPO-ptx (Ouyang et al. 2022, eq. 2): a language-modelling loss on other data, added to the policy's."""

    data: str
    """Rows to imitate, in any form that `sft` reads: a file, or the name of a revise stage."""

    coefficient: Positive = 1.0
    """What the mean loss over completion tokens is multiplied by."""

    rows: Annotated[int, Field(ge=1)] = 8
    """Rows per minibatch."""


UNTRUNCATED: Mapping[str, float] = {"top_k": 0, "top_p": 1, "repetition_penalty": 1}
"""Settings of sampling that PPO has not, and the values that leave it as it is."""


class PpoConfig(OnPolicyConfig):
    """Train a policy by PPO against a reward, held near the model it started from by a KL penalty."""

    stage: Literal["ppo"] = "ppo"

    # Advantages

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token."""

    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation."""

    whiten_rewards: bool = True
    """Scale a rollout's per-token rewards to variance 1, keeping their mean."""

    whiten_advantages: bool = True
    """Shift and scale a rollout's advantages to mean 0 and variance 1."""

    # Value function

    value: Literal["reference", "adapter"] = "reference"
    """A linear head on the reference's hidden states, which the KL needs anyway, or on those of an adapter of
    its own."""

    value_learning_rate: Positive = 1e-3
    """Of the value head (and of its adapter)."""

    value_clip: Positive = 0.2
    """How far a value may move in one update and still give gradient, in units of reward."""

    value_warmup: Annotated[int, Field(ge=0)] = 0
    """Rollouts at the start on which only the value function is trained."""

    ptx: PtxSettings | None = None
    """PPO-ptx; off when left out."""

    @model_validator(mode="before")
    @classmethod
    def _reads_version_0_1_0(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        found = [name for name, off in UNTRUNCATED.items() if values.get(name, off) != off]
        if found:
            raise ValueError(
                f"{', '.join(found)} cannot be used with PPO: completions would come from another "
                "distribution "
                "than the one whose log-probabilities give the KL and the update, and both would be biased; "
                "lower `temperature` instead"
            )
        return with_kl_as_settings({name: value for name, value in values.items() if name not in UNTRUNCATED})

    @model_validator(mode="after")
    def _leaves_steps_for_the_policy(self) -> PpoConfig:
        if self.value_warmup >= self.steps:
            raise ValueError(
                f"a value warm-up of {self.value_warmup} steps leaves none of the {self.steps} steps for the "
                "policy"
            )
        return self
