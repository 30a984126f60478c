"""The settings of `rlaif evaluate` and `rlaif compare`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from rlaif.config.labelling import (
    LEAST_LABEL_SHARE,
    BaseStage,
    LabelShare,
    PromptSettings,
    ProtocolName,
    RubricAggregate,
    refuse_idle,
)
from rlaif.config.rollout import ComparedRollout

__all__ = ["Budget", "CompareConfig", "EvaluateConfig", "MetricName"]

MetricName = Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
Budget = Literal["tokens", "seconds"]


class EvaluateConfig(BaseStage, PromptSettings):
    """Sample from policies on held-out prompts and measure what they say."""

    stage: Literal["evaluate"] = "evaluate"
    holds_base: ClassVar[bool] = True

    policies: tuple[str, ...] = ()
    """Names of stages that trained a policy, or folders of adapters; every such stage before this one when
    left out. The policy that they started from is always evaluated too."""

    samples: Annotated[int, Field(ge=1)] = 4
    """Completions per prompt, of each policy."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest completion in tokens."""

    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Policies are softmax(logits / temperature), in sampling and in the KL; take the one that they were
    trained at."""

    rows: Annotated[int, Field(ge=1)] = 64
    """Completions sampled side by side; changes results by rounding only."""

    rollout: ComparedRollout | None = None
    """vLLM servers that sample the policies of the recipe's base, as `{base_urls:
    [http://localhost:8000/v1]}`; this process does when left out, and for policies of another base."""

    max_refused: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Prompts that a policy cannot answer (too long, refused by the chat template, logits that are NaN) are
    left out for every policy and listed; the stage fails when more than this share is."""

    gold: MetricName | None = None
    """The held-out measure, `package.module:function`: one that no training signal touches."""

    metrics: tuple[MetricName, ...] = ()
    """Further metrics."""

    reward: str | None = None
    """Name of a reward stage, or folder of a reward model; the last reward stage when left out, none if there
    is none."""

    rubric: RubricAggregate | None = None
    """Measure the score of every completion under the rubric of its prompt, by the answers of `judge`."""

    win_rate: bool = True
    """Ask the judge which of each policy's completions is better than the start policy's."""

    judge: str | None = None
    """Model that judges; the recipe's `model` when left out."""

    protocol: ProtocolName | None = None
    """How it is asked; what the constitution was written for when left out."""

    min_label_share: LabelShare = LEAST_LABEL_SHARE
    """A verdict is invalid where its two labels hold less than this share of the probability together."""

    principles: Literal["sample", "all"] = "all"
    """`all` asks all principles and averages them by weight; `sample` draws one per comparison."""

    judged: Annotated[int, Field(ge=1)] | None = None
    """Completions per prompt that are judged, from the first; all when left out."""

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluateConfig:
        named = [*([self.gold] if self.gold else []), *self.metrics]
        last = [name.partition(":")[2] for name in named]
        if double := sorted({name for name in last if last.count(name) > 1}):
            raise ValueError(
                f"two metrics are called {', '.join(double)}: their figures could not be told apart"
            )
        if not self.win_rate:
            refuse_idle(self, "protocol", "principles", "judged", needs="win_rate: true")
            if self.rubric is None:
                refuse_idle(self, "judge", "min_label_share", needs="win_rate: true")
        if self.judged is not None and self.judged > self.samples:
            raise ValueError(f"{self.judged} of {self.samples} completions per prompt cannot be judged")
        return self

    def answering_models(self, default: str) -> tuple[str, ...]:
        return (self.judge or default,)


class CompareConfig(BaseStage):
    """Say which policy won on held-out prompts, and at what cost."""

    stage: Literal["compare"] = "compare"

    evaluations: tuple[str, ...] = ()
    """Names of evaluate stages, or files that they wrote; the last such stage when left out."""

    human: str | None = None
    """Labels of people on some of the evaluation's pairs, drawn at random, as `rlaif collect labels
    EVALUATE/pairs.jsonl` writes them: they correct the judge's win rates (prediction-powered inference)."""

    budgets: tuple[Budget, ...] = ("tokens", "seconds")
    """Where training curves are known: compare also at equal tokens generated, and at equal wall-clock."""

    resamples: Annotated[int, Field(ge=100, le=100_000)] = 2000
    """Draws of prompts behind each interval."""

    def main_model(self, default: str) -> str | None:
        return None
