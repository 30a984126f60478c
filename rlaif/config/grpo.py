"""The settings of `rlaif grpo`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlaif.config.kl import FixedKlSettings, KlSettings
from rlaif.config.labelling import refuse_idle
from rlaif.config.on_policy import OnPolicyConfig

__all__ = ["GrpoConfig"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GrpoConfig(OnPolicyConfig):
    """Train a policy by GRPO against a reward: several completions per prompt, each compared with the others;
    no value function."""

    stage: Literal["grpo"] = "grpo"

    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Completions per prompt in one rollout: the group that an advantage is relative to."""

    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over a rollout."""

    micro_batch: Annotated[int, Field(ge=1)] = 8
    """Completions in one forward and backward pass, those of one prompt together; sets the memory needed and
    changes results by rounding only."""

    # Advantages

    advantage: Literal["grpo", "dr_grpo", "rloo"] = "grpo"
    """What a completion is worth in its group. `grpo`: the reward less the group's mean, over its standard
    deviation, and each completion counts the same however long it is (Shao et al. 2024). `dr_grpo`: less the
    mean only, and each token counts the same (Liu et al. 2025). `rloo`: less the mean of the other
    completions, tokens as in `dr_grpo` (Ahmadian et al. 2024)."""

    normalise_parts: bool = False
    """Scale each part of the reward within its group before the parts are added, so that none drowns the
    others (GDPO, Liu et al. 2026); the missing-EOS penalty is a part, too."""

    clip_high: Positive | None = None
    """The probability ratio's distance above 1 beyond which a token gives no more gradient (DAPO's
clip-higher, Yu et al. 2025: 0.28); `clip` when left out. Neither acts while a rollout is learned in one
    step."""

    # KL to the reference

    kl: KlSettings = FixedKlSettings(beta=0.04)
    """The controller of the KL penalty, with its settings: `{kind: fixed, beta: 0.04}`, `{kind: adaptive,
    target: 6}` or `{kind: lagrangian, target: 6}`."""

    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL penalty is applied: token by token in the `loss` (k3), or per completion in the `reward`
    (k1), before the group is compared; where all rewards of a group are equal, without division by a standard
    deviation."""

    # Groups that say nothing

    keep_drawing: bool = False
    """Where all rewards of a group are equal, draw further prompts until the step has `episodes` completions
    whose groups say something (DAPO's dynamic sampling). With `normalise_parts`, where its scaled parts add
    up to the same."""

    max_draws: Annotated[int, Field(ge=2, le=100)] = 4
    """`keep_drawing` only: rollouts per step at most; the update then uses what there is."""

    @model_validator(mode="after")
    def _can_act(self) -> GrpoConfig:
        if not self.keep_drawing:
            refuse_idle(self, "max_draws", needs="keep_drawing: true")
        if self.clip_high is not None and self.clip_high < self.clip:
            raise ValueError(f"clip_high is {self.clip_high:g}, below clip, which is {self.clip:g}")
        if self.epochs * self.minibatches == 1:  # the policy that learns is still the one that sampled
            refuse_idle(self, "clip", "clip_high", "max_update_kl", needs="epochs: 2 or minibatches: 2")
        if self.normalise_parts:
            if self.advantage != "grpo":
                raise ValueError(
                    f"normalise_parts divides by standard deviations, which {self.advantage} does not do"
                )
            if self.kl_in == "reward":
                raise ValueError(
                    "with normalise_parts the KL cannot be put into the reward: put it into the loss "
                    "(kl_in: loss)"
                )
        return self
