"""The settings of `rlaif sft`, `rlaif best-of-k` and `rlaif dpo`: what is fine-tuned by TRL."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlaif.config.labelling import BaseStage, PromptSettings, Settings, refuse_idle
from rlaif.config.reward import PreferenceFile
from rlaif.config.rewards import ModelPart, RewardPart, check_weights, cohorts_in, directed_in, judges_of
from rlaif.config.rollout import ComparedRollout
from rlaif.config.start import StartSettings

__all__ = ["BestOfKConfig", "DpoConfig", "FinetuneSettings", "SftConfig"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class FinetuneSettings(Settings):
    """How an adapter is fine-tuned."""

    epochs: Annotated[int, Field(ge=1, le=100)] = 1
    """Passes over the rows."""

    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows an optimiser step; LoRA tolerates large batches less well than full fine-tuning."""

    micro_batch: Annotated[int, Field(ge=1)] = 8
    """Rows in one forward and backward pass; sets the memory needed and changes results by rounding only."""

    learning_rate: Positive = 2e-4
    """Of the adapter, about 10 times that of full fine-tuning; it rises over the first steps and falls
    linearly to 0."""

    lora_rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the adapter, on all linear layers."""

    lora_alpha: Positive = 32.0
    """The adapter's product is scaled by this over the rank."""

    max_tokens: Annotated[int, Field(ge=8)] | None = None
    """Longest prompt and completion together; the model's context when left out."""

    max_overlong: Share = 0.05
    """Rows that are longer are left out and counted; the stage fails when more than this share is."""

    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, a third more work."""

    @model_validator(mode="after")
    def _batches_divide(self) -> FinetuneSettings:
        if self.micro_batch < self.batch_size and self.batch_size % self.micro_batch:
            raise ValueError(
                f"a batch of {self.batch_size} rows cannot be cut into micro-batches of {self.micro_batch}"
            )
        return self


class SftConfig(BaseStage, FinetuneSettings):
    """Fine-tune a policy on completions to imitate: revisions, or rows of your own."""

    stage: Literal["sft"] = "sft"
    holds_base: ClassVar[bool] = True

    input: str | None = None
    """Name of the revise stage to learn from; the last one when left out and `files` is empty."""

    files: tuple[str, ...] = ()
    """Files to learn from, with or instead of a stage's: prompts with answers, in any form of
    docs/reference/data-forms.md, and `weight`."""

    skip_bad_rows: bool = False
    """Go on without rows that cannot be learned from (an empty answer, for one); they are counted and the
    first is named."""

    model: str | None = None
    """Model to fine-tune; the recipe's `model` when left out."""

    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the prompts, with all their rows, that the loss before and after is measured on; 0 measures on
    the rows learned."""

    @property
    def trained_model(self) -> str | None:
        return self.model

    def answering_models(self, default: str) -> tuple[str, ...]:
        return (self.model or default,)


class BestOfKConfig(BaseStage, PromptSettings, FinetuneSettings, StartSettings):
    """Sample K completions per prompt, score them, and fine-tune on those that scored best (rejection
    sampling)."""

    stage: Literal["best_of_k"] = "best_of_k"
    holds_base: ClassVar[bool] = True
    trains_policy: ClassVar[bool] = True

    # Sampling

    k: Annotated[int, Field(ge=2, le=1024)] = 16
    """Completions per prompt; the prompt is read once for all of them."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest completion in tokens."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """The policy samples from softmax(logits / temperature)."""

    rollout: ComparedRollout | None = None
    """vLLM servers that sample the completions, as `{base_urls: [http://localhost:8000/v1]}`; this process
    does when left out. A `student` is measured here."""

    max_refused: Share = 0.05
    """Prompts that the policy cannot answer (too long, refused by the chat template, logits that are NaN) are
    left out and listed; the stage fails when more than this share is."""

    # Selection

    reward: dict[str, RewardPart] = Field(default={"model": ModelPart()}, min_length=1)
    """The parts that are weighted and added, by name, as in `ppo`."""

    missing_eos_penalty: NotNegative = 1.0
    """Taken from the score of a completion that was cut at `max_new_tokens`, for the choice; reported rewards
    are without it."""

    keep: Literal["best", "weighted"] | Annotated[int, Field(ge=1)] = "best"
    """What is learned from each prompt: the `best` one, that many of the best, or all, `weighted` by
    softmax(score / `weight_temperature`)."""

    weight_temperature: Positive = 0.5
    """For `weighted`, in units of the score; towards 0 only the best counts."""

    rounds: Annotated[int, Field(ge=1, le=100)] = 1
    """Times to sample, choose and learn; each samples from the policy that the last one made (RAFT, Dong et
    al. 2023)."""

    # Result

    student: str | None = None
    """Another model that learns from the last round's choice in the policy's place (distillation)."""

    measure_prompts: Annotated[int, Field(ge=1)] = 64
    """Prompts on which what was made is sampled once, to measure its reward and its KL to the reference."""

    @model_validator(mode="after")
    def _chooses(self) -> BestOfKConfig:
        check_weights(self.reward)
        if compared := cohorts_in(self.reward):
            raise ValueError(
                f"the reward {compared[0]!r} is by cohort, which says how completions of one prompt compare; "
                "best of K is measured across prompts: use mode: alone"
            )
        if directed := directed_in(self.reward):
            raise ValueError(
                f"the reward {directed[0]!r} is of directives, which `ppo` and `grpo` train under: choose a "
                "reward of another kind"
            )
        if self.student is not None and self.policy is not None:
            raise ValueError("a `student` learns in the policy's place, so `policy` would not be trained")
        if self.keep != "weighted":
            refuse_idle(self, "weight_temperature", needs="keep: weighted")
        if isinstance(self.keep, int) and self.keep >= self.k:
            raise ValueError(
                f"`keep: {self.keep}` of {self.k} completions leaves out none: raise `k`, or use `keep: "
                "weighted`"
            )
        return self

    @property
    def trained_model(self) -> str | None:
        return self.student

    def answering_models(self, default: str) -> tuple[str, ...]:
        return judges_of(self.reward, default)


class DpoConfig(BaseStage, FinetuneSettings, StartSettings):
    """Train a policy on preferences without a reward model (Rafailov et al. 2023): a cheap baseline."""

    stage: Literal["dpo"] = "dpo"
    holds_base: ClassVar[bool] = True
    trains_policy: ClassVar[bool] = True

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

    model: str | None = None
    """Model to train; the recipe's `model` when left out."""

    beta: Positive = 0.1
    """How strongly the policy is held to the reference: its implicit reward is beta · log(policy /
    reference)."""

    labels: Literal["soft", "hard"] = "soft"
    """`soft` learns the judge's probabilities, `hard` only which completion was chosen."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts, with all their pairs, that the report is measured on."""

    learning_rate: Positive = 5e-5
    """Of the adapter; it rises over the first steps and falls linearly to 0."""

    @property
    def trained_model(self) -> str | None:
        return self.model
