"""What a policy is rewarded for: the parts of a reward, which are weighted and added."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rlaif.config.labelling import LEAST_LABEL_SHARE, LabelShare, RubricAggregate, Settings
from rlaif.config.protocol import ProtocolName
from rlaif.config.settings import refuse_idle

__all__ = [
    "DirectivesPart",
    "FormatPart",
    "FunctionPart",
    "JudgePart",
    "LengthPart",
    "ModelPart",
    "ModerationPart",
    "PatternPart",
    "RewardPart",
    "RubricPart",
    "check_weights",
    "cohorts_in",
    "directed_in",
    "judges_of",
]

Weight = Annotated[float, Field(allow_inf_nan=False)]


class BasePart(Settings):
    weight: Weight = 1.0
    """What this part is multiplied by in the sum; below 0 it is a penalty. A part of weight 0 is measured and
    logged, and never trained on."""


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

    mode: Literal["alone", "cohort"] = "alone"
    """`alone` scores each completion by the constitution's questions; `cohort` compares the completions that
    a prompt has in one rollout and scores each by its strength among them (Bradley and Terry, nats, mean
    0)."""

    protocol: ProtocolName | None = None
    """`cohort` only: how two completions are compared; what the constitution was written for when left
    out."""

    scale: Literal["probability", "log-odds"] = "probability"
    """`alone` only: `probability` of the good answer, 0 to 1, or its `log-odds`, which do not saturate."""

    min_label_share: LabelShare = LEAST_LABEL_SHARE
    """An answer is invalid where its two labels hold less than this share of the probability together."""

    @model_validator(mode="after")
    def _is_asked_as_said(self) -> JudgePart:
        if self.mode == "cohort":
            refuse_idle(self, "scale", needs="mode: alone")
        else:
            refuse_idle(self, "protocol", needs="mode: cohort")
        return self


class RubricPart(BasePart):
    """The rubric of the prompt (Gunjal et al. 2025): a judge is asked whether each criterion is true of the
    completion."""

    kind: Literal["rubric"] = "rubric"

    judge: str | None = None
    """Model that judges; the recipe's `model` when left out."""

    aggregate: RubricAggregate = "mean"
    """Points won over points possible (`mean`, at most 1), the worst criterion (`min`), or the probability
    that all are met (`all-pass`)."""

    without: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Score of the completions of a prompt that has no rubric; such a prompt is refused when left out."""

    min_label_share: LabelShare = LEAST_LABEL_SHARE
    """An answer is invalid where its two labels hold less than this share of the probability together."""


class ModerationPart(BasePart):
    """A moderator: minus how probable it is that the completion breaks the principle that it breaks most
    surely."""

    kind: Literal["moderation"] = "moderation"

    path: str
    """Folder of a moderator, or of the stage that trained it in an earlier run."""

    scale: Literal["probability", "log-odds"] = "probability"
    """Minus the `probability`, -1 to 0, or minus its `log-odds`, which do not saturate."""


class DirectivesPart(BasePart):
    """The directive whose prior the prompt is under (`directives` of the stage): a judge is asked whether the
    completion follows it. 0 for prompts under none."""

    kind: Literal["directives"] = "directives"

    judge: str | None = None
    """Model that judges; the recipe's `model` when left out."""

    scale: Literal["log-odds", "probability"] = "log-odds"
    """`log-odds` of the good answer, which do not saturate, or its `probability` less a half."""

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
    ModelPart
    | FunctionPart
    | JudgePart
    | RubricPart
    | ModerationPart
    | DirectivesPart
    | LengthPart
    | PatternPart
    | FormatPart,
    Field(discriminator="kind"),
]


def check_weights(parts: Mapping[str, RewardPart]) -> None:
    """Refuse a reward that is 0 whatever is said.

    Raises:
        ValueError: Every part has weight 0.
    """
    if not any(part.weight for part in parts.values()):
        raise ValueError(
            f"all parts of the reward ({', '.join(parts)}) have weight 0, so there is nothing to learn from: "
            "give one another weight"
        )


def cohorts_in(parts: Mapping[str, RewardPart]) -> list[str]:
    """The parts that compare the completions of a prompt with each other."""
    return [name for name, part in parts.items() if isinstance(part, JudgePart) and part.mode == "cohort"]


def directed_in(parts: Mapping[str, RewardPart]) -> list[str]:
    """The parts that reward following directives."""
    return [name for name, part in parts.items() if isinstance(part, DirectivesPart)]


def judges_of(parts: Mapping[str, RewardPart], default: str) -> tuple[str, ...]:
    """The models that judge for a reward, `default` where a part names none."""
    asking = JudgePart | RubricPart | DirectivesPart
    return tuple(part.judge or default for part in parts.values() if isinstance(part, asking))
