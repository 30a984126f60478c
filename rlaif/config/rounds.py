"""The settings of a recipe that is run round after round."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlaif.config.reward import PreferenceFile
from rlaif.config.settings import Settings
from rlaif.config.start import ReferenceChoice

__all__ = ["FeedbackSettings", "RoundsConfig"]


class FeedbackSettings(Settings):
    """Prompts and people's preferences that arrive from elsewhere: each round takes what no earlier one
    took."""

    prompts: tuple[str, ...] = ()
    """Files of prompts, sampled and labelled beside the round's own."""

    preferences: tuple[PreferenceFile, ...] = ()
    """Files of preferences, with weights, which reward models and DPO learn from beside the round's own."""

    since: date | None = None
    """First day (UTC) of the rows to take; rows without a time are then left out and counted."""

    until: date | None = None
    """Last day of the rows to take."""

    time_column: str = "time"
    """Column with each row's time: ISO 8601, or seconds since 1970."""


class RoundsConfig(Settings):
    """How often a recipe is run, each time from the policy of the time before and on fresh prompts."""

    count: Annotated[int, Field(ge=1, le=100)] = 3
    """Rounds, at most."""

    policy: str | None = None
    """Name of the stage whose policy goes on to the next round; the last one that trains a policy when left
    out."""

    memory: Literal["all", "last"] | Annotated[int, Field(ge=1)] = "all"
    """Whose preferences a round learns from beside its own: those of `all` earlier rounds, none but its own
    (`last`), or those of that many rounds, its own among them."""

    reward: Literal["anew", "further"] = "anew"
    """Whether each round trains a reward model `anew`, or trains that of the round before `further`, on its
    own preferences alone (`memory: last`)."""

    reference: ReferenceChoice = "first"
    """What policies are held to from the second round on: `first` the model without any adapter, `previous`
    the policy of the round before."""

    fresh: Annotated[int, Field(ge=2)] | None = 24
    """Prompts that each round is evaluated on besides, other ones each time; `null` for none."""

    feedback: FeedbackSettings | None = None
    """Files from elsewhere that enter the rounds, as `{preferences: [{file: labels.jsonl, weight: 2}], since:
    2026-11-01}`."""

    stop_when: Literal["never", "no_gain"] = "never"
    """`no_gain` ends after a round whose gold measure did not rise over the round before by more than its
    interval; the best policy is kept."""

    @model_validator(mode="after")
    def _learns_once(self) -> RoundsConfig:
        if self.reward == "further" and self.memory not in ("last", 1):
            raise ValueError(
                "`reward: further` needs `memory: last`: the model has learned from the earlier rounds' "
                "preferences, and would learn from them again"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _from_a_number(cls, values: Any) -> Any:
        is_number = isinstance(values, int) and not isinstance(values, bool)
        return {"count": values} if is_number else values
