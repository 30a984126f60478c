"""The settings of `rlaif reward`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlaif.config.labelling import BaseStage, Settings, refuse_idle

__all__ = ["EnsembleSettings", "PreferenceFile", "RewardConfig"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PreferenceFile(Settings):
    """A file of preferences that is mixed in (Bai et al. 2022 mix human helpfulness with AI harmlessness)."""

    file: str
    """Preferences in any form of docs/reference/data-forms.md, with `p_chosen` if the labels
    are soft."""

    weight: Positive = 1.0
    """Weight of each of its rows in the loss."""


class EnsembleSettings(Settings):
    """Several reward models that differ by their seed (Coste et al. 2023)."""

    members: Annotated[int, Field(ge=1, le=16)] = 1
    """How many are trained; with more than one, each fits its head to prompts drawn with replacement."""

    combine: Literal["mean", "min", "mean-variance"] = "mean"
    """How their normalised scores become one; `mean-variance` is mean − λ · variance."""

    variance_penalty: NotNegative = 1.0
    """λ of `mean-variance`."""

    @model_validator(mode="after")
    def _penalty_acts(self) -> EnsembleSettings:
        if self.combine != "mean-variance":
            refuse_idle(self, "variance_penalty", needs="combine: mean-variance")
        if self.members == 1:
            refuse_idle(self, "combine", needs="members: 2 or more")
        return self


class RewardConfig(BaseStage):
    """Train a reward model on preferences."""

    stage: Literal["reward"] = "reward"
    holds_base: ClassVar[bool] = True

    # Data

    input: str | None = None
    """Name of the label stage to learn from; the last one when left out and `files` is empty."""

    files: tuple[PreferenceFile, ...] = ()
    """Files of preferences to learn from, with or instead of a stage's."""

    skip_bad_rows: bool = False
    """Go on without preferences that cannot be learned from (an identical pair, for one); they are counted
    and the first are named."""

    uninformative: Literal["refuse", "allow"] = "refuse"
    """What to do with labels that say nothing (nearly all are ties, or position decided them; see
    docs/concepts.md): stop, or learn from them with a warning."""

    previous: str | None = None
    """Folder of an earlier reward model, for the report: how it ranks the pairs that are held out, beside the
    new one, and all of the label stage's pairs, none of which it has learned from."""

    further: bool = False
    """Train the model of `previous` further in place of a new one: its head is what the closed form is drawn
    towards, and its adapter, if it has one, is where training begins. For preferences that it has not seen:
    on those that it has, cross-validation would trust it too much."""

    human: str | None = None
    """File of human preferences, to report the accuracy on; never trained on."""

    model: str | None = None
    """Base of the reward model; the recipe's `model` when left out, which then is held in memory once for all
    roles."""

    labels: Literal["soft", "hard"] = "soft"
    """`soft` learns the judge's probabilities, `hard` only which completion was chosen."""

    margin: NotNegative = 0.0
    """With hard labels: how much the chosen one should win by, in units of the row's own margin (Llama 2, eq.
    2)."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts, with all their pairs, that the report is measured on."""

    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Longest prompt and completion together; the model's context when left out."""

    overlong: Literal["refuse", "drop"] = "refuse"
    """What to do with a pair that is longer: stop, or go on without it and count it."""

    # Model

    pooling: Literal["last", "mean"] = "mean"
    """What the head reads: the state of the completion's last token, or the mean over its tokens, which needs
    less data."""

    warm_start: bool = True
    """Fit the head in closed form on the frozen base's features first; without it the head is drawn at
    random."""

    keep: Literal["best", "head", "lora"] = "best"
    """`best` trains the head and then an adapter, and keeps what has the lower loss on held-out pairs; `head`
    trains no adapter."""

    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter, on all linear layers."""

    lora_alpha: Positive = 32.0
    """The adapter's product is scaled by this over the rank."""

    quantization: Literal["none", "4bit"] = "none"
    """`4bit` holds the frozen base in 4 bits (QLoRA); needs an NVIDIA GPU and bitsandbytes."""

    ensemble: EnsembleSettings = EnsembleSettings()
    """Several models instead of one."""

    # Training

    epochs: Annotated[int, Field(ge=1, le=20)] = 1
    """Passes over the pairs; more than one overfits quickly."""

    batch_size: Annotated[int, Field(ge=1)] = 8
    """Pairs an optimiser step."""

    learning_rate: Positive = 1e-4
    """Of the adapter; it rises over the first steps and falls linearly to 0."""

    head_learning_rate: Positive = 1e-4
    """Of the head, on standardised features; its fitted weights are of the order of 0.01, and Adam moves each
    by about this a step."""

    micro_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one forward and backward pass, padding included; sets the memory needed. By device when left
    out."""

    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, a third more work."""

    share_prompt: bool = True
    """Read the prompt of a pair once for both completions, where the model allows it."""

    @model_validator(mode="after")
    def _settings_agree(self) -> RewardConfig:
        if self.margin and self.labels == "soft":
            raise ValueError(
                "`margin` is for hard labels: soft ones say already by how much the chosen one should win"
            )
        if self.previous is None:
            refuse_idle(self, "further", needs="previous")
        if self.further and self.ensemble.members > 1:
            raise ValueError("`further` trains one model, and `ensemble` asks for several")
        if self.keep == "head" and not self.warm_start:
            raise ValueError(
                "`keep: head` trains nothing but the closed-form fit, so `warm_start` must be true"
            )
        return self

    @property
    def trained_model(self) -> str | None:
        return self.model
