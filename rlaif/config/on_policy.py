"""The settings that PPO and GRPO share: what is rewarded, how a rollout is sampled, how it is learned, and
when to stop."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from rlaif.config.directives import DirectiveSettings
from rlaif.config.kl import FixedKlSettings, KlSettings
from rlaif.config.labelling import BaseStage, PromptSettings
from rlaif.config.monitor import MonitorSettings
from rlaif.config.rewards import ModelPart, RewardPart, check_weights, cohorts_in, directed_in, judges_of
from rlaif.config.rollout import RolloutSettings
from rlaif.config.start import StartSettings

__all__ = ["OnPolicyConfig"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class OnPolicyConfig(BaseStage, PromptSettings, StartSettings):
    """Train a policy on its own samples against a reward, held near the model it started from by a KL
    penalty."""

    holds_base: ClassVar[bool] = True
    trains_policy: ClassVar[bool] = True

    # What is rewarded

    reward: dict[str, RewardPart] = Field(default={"model": ModelPart()}, min_length=1)
    """The parts that are weighted and added, by name; each is logged under its name."""

    missing_eos_penalty: NotNegative = 1.0
    """Taken from the score of a completion that was cut at `max_new_tokens` before it ended its turn."""

    directives: DirectiveSettings | None = None
    """Directives that the policy learns to follow, as `{path: directives.yaml, share: 0.3}`, rewarded by a
    part of kind `directives`; none when left out."""

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

    rollout: RolloutSettings | None = None
    """vLLM servers that sample the rollouts, as `{base_urls: [http://localhost:8000/v1]}`; this process does
    when left out."""

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
    """Let learning rates fall linearly to 0 over the run (Huang, detail 5)."""

    adam_eps: Positive = 1e-5
    """Adam's ε (Huang, detail 21: PyTorch's 1e-8 makes the first updates too large)."""

    max_grad_norm: Positive = 1.0
    """Gradients of the policy are scaled down to this norm."""

    clip: Positive = 0.2
    """The probability ratio's distance from 1 beyond which a token gives no more gradient."""

    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapters, on all linear layers."""

    lora_alpha: Positive = 32.0
    """The adapters' product is scaled by this over the rank."""

    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, a third more work."""

    # KL to the reference

    kl: KlSettings = FixedKlSettings()
    """The controller of the per-token KL penalty, with its settings: `{kind: fixed, beta: 0.05}`,
    `{kind: adaptive,
    target: 6}` or `{kind: lagrangian, target: 6}`."""

    # When to stop

    max_update_kl: Positive = 0.2
    """An update ends early when the policy has moved this far from the one that sampled (mean nats per
    token)."""

    max_kl: Positive = 100.0
    """Training stops, and the last good adapters return, when the KL to the reference passes this (nats per
    completion)."""

    max_loss: Positive = 100.0
    """The same, when a loss passes this or is not a number."""

    # Watching

    monitor: MonitorSettings | None = None
    """Readings on held-out prompts along the training, as `{gold: {kind: function, function:
    "module:name"}, every: 5, prompts: 16}`; none when left out."""

    # Keeping

    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Steps between checkpoints; an interrupted run continues from the newest."""

    trackers: tuple[str, ...] = ()
    """Where metrics go besides `metrics.jsonl`, as Accelerate names it: `tensorboard`, `wandb`, `trackio`,
    …"""

    @model_validator(mode="after")
    def _rollouts_add_up(self) -> OnPolicyConfig:
        if self.episodes % self.samples_per_prompt:
            raise ValueError(
                f"{self.episodes} episodes cannot be divided into groups of {self.samples_per_prompt} "
                "samples per prompt"
            )
        if self.samples_per_prompt < 2 and (compared := cohorts_in(self.reward)):
            raise ValueError(
                f"the reward {compared[0]!r} compares the completions of a prompt, and a rollout has one of "
                "each: set samples_per_prompt to 2 or more"
            )
        if self.minibatches > self.episodes:
            raise ValueError(f"{self.episodes} episodes cannot be cut into {self.minibatches} minibatches")
        return self

    @model_validator(mode="after")
    def _follows_what_it_is_told(self) -> OnPolicyConfig:
        directed = directed_in(self.reward)
        if self.directives is None and directed:
            raise ValueError(
                f"the reward {directed[0]!r} is of directives, and there are none: add `directives: {{path: "
                "FILE}`"
            )
        if self.directives is not None and not directed:
            raise ValueError(
                "nothing rewards following the directives: add `directives: {kind: directives}` to `reward`"
            )
        return self

    @model_validator(mode="after")
    def _can_be_measured(self) -> OnPolicyConfig:
        check_weights(self.reward)
        if self.monitor is not None and (compared := cohorts_in(self.reward)):
            raise ValueError(
                f"the reward {compared[0]!r} compares the completions of a prompt, so its mean is 0 at every "
                "reading of the monitor: leave `monitor` out, or judge in mode: alone"
            )
        return self

    def answering_models(self, default: str) -> tuple[str, ...]:
        """See `BaseStage`."""
        watched = {"gold": self.monitor.gold} if self.monitor else {}
        return judges_of({**self.reward, **watched}, default)
