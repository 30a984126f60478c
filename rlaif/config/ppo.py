"""The settings of `rlaif ppo`: the reward's parts, and PPO itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.config.kl import FixedKlSettings, KlSettings, with_kl_as_settings
from rlaif.config.labelling import LEAST_LABEL_SHARE, BaseStage, LabelShare, PromptSettings, Settings

__all__ = [
    "FormatPart",
    "FunctionPart",
    "JudgePart",
    "LengthPart",
    "ModelPart",
    "PatternPart",
    "PpoConfig",
    "PtxSettings",
    "RewardPart",
]

Weight = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BasePart(Settings):
    weight: Weight = 1.0
    """What this part is multiplied by in the sum; below 0 it is a penalty."""


class ModelPart(BasePart):
    """The score of a reward model."""

    kind: Literal["model"] = "model"

    reward: str | None = None
    """Name of the reward stage, or folder of a reward model; the last reward stage when left out."""


class FunctionPart(BasePart):
    """A function of your own: `(prompt, completion) -> number`, as metrics are."""

    kind: Literal["function"] = "function"

    function: str = Field(pattern=r"^[\w.]+:[\w.]+$")
    """Where it can be imported from: `package.module:name`."""


class JudgePart(BasePart):
    """The judge itself (direct RLAIF): how much of its answer to the constitution's questions is the good
    one."""

    kind: Literal["judge"] = "judge"

    judge: str | None = None
    """Model that judges; the recipe's `model` when left out."""

    scale: Literal["probability", "log-odds"] = "probability"
    """`probability` of the good answer, 0 to 1, or its `log-odds`, which do not saturate."""

    min_label_share: LabelShare = LEAST_LABEL_SHARE
    """An answer is invalid where its two labels hold less than this share of the probability together."""


class LengthPart(BasePart):
    """A rule: -1 for a completion outside a length in words, else 0."""

    kind: Literal["length"] = "length"

    min_words: Annotated[int, Field(ge=0)] = 0
    """Fewest words."""

    max_words: Annotated[int, Field(ge=1)] | None = None
    """Most words; no limit when left out."""

    @model_validator(mode="after")
    def _some_limit(self) -> LengthPart:
        if self.max_words is None and not self.min_words:
            raise ValueError("a length rule needs `min_words` or `max_words`")
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(
                f"no completion has at least {self.min_words} and at most {self.max_words} words"
            )
        return self


class _Pattern(BasePart):
    pattern: str
    """A Python regular expression."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class PatternPart(_Pattern):
    """A rule: -1 for a completion in which the pattern is found anywhere, else 0."""

    kind: Literal["pattern"] = "pattern"


class FormatPart(_Pattern):
    """A rule: -1 for a completion that the pattern does not match as a whole, else 0."""

    kind: Literal["format"] = "format"


RewardPart = Annotated[
    ModelPart | FunctionPart | JudgePart | LengthPart | PatternPart | FormatPart, Field(discriminator="kind")
]


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


class PpoConfig(BaseStage, PromptSettings):
    """Train a policy by PPO against a reward, held near the model it started from by a KL penalty."""

    stage: Literal["ppo"] = "ppo"
    holds_base: ClassVar[bool] = True
    trains_policy: ClassVar[bool] = True

    # What is rewarded

    reward: dict[str, RewardPart] = Field(default={"model": ModelPart()}, min_length=1)
    """The parts that are weighted and added, by name; each is logged under its name."""

    missing_eos_penalty: NotNegative = 1.0
    """Taken from the score of a completion that was cut at `max_new_tokens` before it ended its turn."""

    # How much, and how it is sampled

    steps: Annotated[int, Field(ge=1)] = 50
    """Rollouts, each followed by an update."""

    episodes: Annotated[int, Field(ge=2)] = 32
    """Completions per rollout."""

    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    """Completions per prompt in one rollout; a prompt is read once for all of them."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest completion in tokens."""

    max_refused: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Prompts that the policy cannot answer (too long, refused by the chat template, logits that are NaN) are
    left out and listed; the stage fails when more than this share is."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """The policy is softmax(logits / temperature), in sampling and in training alike (Huang, detail 10)."""

    # Updates

    epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over a rollout."""

    minibatches: Annotated[int, Field(ge=1)] = 1
    """Optimiser steps per pass."""

    micro_batch: Annotated[int, Field(ge=1)] = 16
    """Completions in one forward and backward pass; sets the memory needed and changes results by rounding
    only."""

    learning_rate: Positive = 3e-4
    """Of the policy's adapter: about 10 times that of full fine-tuning."""

    anneal: bool = True
    """Let both learning rates fall linearly to 0 over the run (Huang, detail 5)."""

    adam_eps: Positive = 1e-5
    """Adam's ε (Huang, detail 21: PyTorch's 1e-8 makes the first updates too large)."""

    max_grad_norm: Positive = 1.0
    """Gradients of the policy are scaled down to this norm."""

    clip: Positive = 0.2
    """The probability ratio's distance from 1 beyond which a token gives no more gradient."""

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per token."""

    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation."""

    whiten_rewards: bool = True
    """Scale a rollout's per-token rewards to variance 1, keeping their mean."""

    whiten_advantages: bool = True
    """Shift and scale a rollout's advantages to mean 0 and variance 1."""

    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapters, on all linear layers."""

    lora_alpha: Positive = 32.0
    """The adapters' product is scaled by this over the rank."""

    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, a third more work."""

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

    # KL to the reference

    kl: KlSettings = FixedKlSettings()
    """The controller of the per-token KL penalty, with its settings: `{kind: fixed, beta: 0.05}`,
    `{kind: adaptive,
    target: 6}` or `{kind: lagrangian, target: 6}`."""

    # When to stop

    max_update_kl: Positive = 0.2
    """An update ends early when the policy has moved this far from the one that sampled (mean nats a
    token)."""

    max_kl: Positive = 100.0
    """Training stops, and the last good adapters return, when the KL to the reference passes this (nats a
    completion)."""

    max_loss: Positive = 100.0
    """The same, when a loss passes this or is no number."""

    ptx: PtxSettings | None = None
    """PPO-ptx; off when left out."""

    # Keeping

    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Steps between checkpoints; a run that was cut off goes on from the newest."""

    trackers: tuple[str, ...] = ()
    """Where metrics go beside `metrics.jsonl`, as Accelerate names them: `tensorboard`, `wandb`, `trackio`,
    …"""

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
    def _adds_up(self) -> PpoConfig:
        if self.episodes % self.samples_per_prompt:
            raise ValueError(
                f"{self.episodes} episodes cannot be shared out at {self.samples_per_prompt} samples per "
                "prompt"
            )
        if self.minibatches > self.episodes:
            raise ValueError(f"{self.episodes} episodes cannot be cut into {self.minibatches} minibatches")
        if self.value_warmup >= self.steps:
            raise ValueError(
                f"a value warm-up of {self.value_warmup} steps leaves nothing of {self.steps} steps for the "
                "policy"
            )
        return self

    def answering_models(self, default: str) -> tuple[str, ...]:
        return tuple(part.judge or default for part in self.reward.values() if isinstance(part, JudgePart))
